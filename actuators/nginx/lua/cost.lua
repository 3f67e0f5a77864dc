-- What a request costs in relation to others of its group: a sum of weighted features of what NGINX sees when it comes
-- (actuators/contract/request_cost.py has the same sum).
local M = {}

local ngx = ngx
local variable = getmetatable(ngx.var).__index   -- LuaJIT does not compile calls through the metatable
local log, min, max, tonumber, format = math.log, math.min, math.max, tonumber, string.format
local LEAST, MOST, MOST_VALUE, LONGEST_VALUE = 0.1, 20, 1e12, 12
local MOST_TERMS = 32
local NAME = "^[%w_.-]+$"

local KINDS = { one = 0, body = 0, arg = 1, span = 2, path = 1, method = 1 }

-- A feature as a text, as a table for `of`; nil for one that is unknown.
local function feature(text)
    local whole = text:match("^log_(.+)$")
    local kind, rest = (whole or text):match("^(%l+):?(.*)$")
    local number = KINDS[kind]
    if not number or (whole and (kind == "one" or kind == "path" or kind == "method")) then
        return nil
    end
    local found = { kind = kind, logarithm = whole ~= nil }
    if number == 0 then
        return rest == "" and found or nil
    elseif kind == "span" then
        local first, last = rest:match("^([%w_.-]+):([%w_.-]+)$")
        found.first, found.last = first and "arg_" .. first, last and "arg_" .. last
        return first and found or nil
    elseif kind == "arg" then
        found.last = "arg_" .. rest
        return rest:match(NAME) and found or nil
    end
    found.name = rest
    return rest ~= "" and found or nil
end

-- Adds a term to a model; false for an unknown feature, or too many.
function M.add(model, text, weight)
    local term = text and feature(text)
    if not term or #model >= MOST_TERMS or not (weight and weight >= -1e9 and weight <= 1e9) then
        return false
    end
    term.text, term.weight = text, weight
    model[#model + 1] = term
    return true
end

-- A decimal number of 0 to 1e12 in at most 12 characters, as samples.lua takes them; 0 for any other text.
local function number_of(text)
    local value = text and #text <= LONGEST_VALUE and text:find("^%d+%.?%d*$") and tonumber(text)
    return value and value <= MOST_VALUE and value or 0
end

-- As samples.lua has it. Most paths need no change: `find` is cheaper than `gsub`, the dearest of all this.
local function pattern_of(path)
    if path:find("[^!-9;-~]") then
        path = path:gsub("[^!-9;-~]", "?")
    end
    return path:gsub("%d+", "*"):sub(1, 256)
end

-- The value of a feature that is a number; `path` and `method` are 1 or 0.
local function value_of(term)
    local kind = term.kind
    local value
    if kind == "body" then
        value = number_of(variable(nil, "content_length"))
    elseif kind == "arg" then
        value = number_of(variable(nil, term.last))
    else
        value = max(number_of(variable(nil, term.last)) - number_of(variable(nil, term.first)), 0)
    end
    return term.logarithm and log(value + 1) or value
end

-- The cost of the present request; 1 without a model.
function M.of(model)
    if not model then
        return 1
    end
    local sum, path, method = 0, nil, nil
    for index = 1, #model do
        local term = model[index]
        local kind, value = term.kind, 1
        if kind == "path" then
            path = path or pattern_of(variable(nil, "uri"))   -- once for all patterns
            value = path == term.name and 1 or 0
        elseif kind == "method" then
            method = method or ngx.req.get_method()
            value = method == term.name and 1 or 0
        elseif kind ~= "one" then
            value = value_of(term)
        end
        sum = sum + term.weight * value
    end
    return max(LEAST, min(sum, MOST))
end

-- The model as lines of a control.
function M.lines(group_name, model, lines)
    for index = 1, model and #model or 0 do
        lines[#lines + 1] = format("cost %s %s %.17g", group_name, model[index].text, model[index].weight)
    end
end

return M
