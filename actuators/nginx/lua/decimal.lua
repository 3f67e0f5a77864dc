-- A number as texts of a control have it: decimal, with an exponent if need be; nil for anything else, as 0x10, inf or nan.
local tonumber = tonumber

return function(text)
    return text and (text:find("^-?%d+%.?%d*$") or text:find("^-?%d+%.?%d*[eE][+-]?%d+$")) and tonumber(text) or nil
end
