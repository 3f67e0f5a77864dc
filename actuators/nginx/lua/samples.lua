-- Samples from which it is learned what requests cost: of requests that found an idle worker, what NGINX saw of them and
-- how long the server took. As many a second as the control says, the newest of which are kept in shared memory.
local M = {}

local ngx, now_s = ngx, ngx.now
local variable = getmetatable(ngx.var).__index   -- LuaJIT does not compile calls through the metatable
local tonumber, format, concat, floor = tonumber, string.format, table.concat, math.floor
local MOST, MOST_ARGUMENTS, LONGEST_NAME, LONGEST_VALUE = 1024, 8, 64, 12
local LONGEST = 480   -- characters of a sample, so that all take at most half a megabyte of the shared dict

local dict
local second, taken = 0, 0   -- samples of this worker in this second

function M.init(shared_dict)
    dict = shared_dict
    dict:safe_add("samples", 0)
end

-- Method, path with its numbers replaced, length of the body, and the arguments that are numbers: nothing else that a
-- client has sent.
local function seen()
    local path = variable(nil, "uri"):gsub("[^!-9;-~]", "?"):gsub("%d+", "*"):sub(1, 256)
    local parts, names = { ngx.req.get_method(), path, tonumber(variable(nil, "content_length")) or 0 }, 0
    for name, value in ("&" .. (variable(nil, "args") or "")):gmatch("&([%w_.-]+)=(%d+%.?%d*)%f[&%z]") do
        if names < MOST_ARGUMENTS and #name <= LONGEST_NAME and #value <= LONGEST_VALUE then
            names = names + 1
            parts[#parts + 1] = name .. "=" .. value
        end
    end
    return concat(parts, " ")
end

-- Log phase of a request that found an idle worker. service_s: what was believed of its server.
function M.note(rate, group_name, response_ms, service_s)
    local now = floor(now_s())
    if now ~= second then
        second, taken = now, 0
    end
    if taken >= rate then
        return
    end
    local line = format("%s %g %.9g %s", group_name, response_ms, service_s, seen())
    if #line <= LONGEST then
        taken = taken + 1
        -- A dict that had no room has lost the count.
        local number = dict:incr("samples", 1) or dict:safe_add("samples", 1) and 1
        if number then
            dict:safe_set("sample " .. number % MOST, format("%d %s", number, line))
        end
    end
end

-- Those that are kept, a line each, in the order in which they came: number, group, milliseconds, seconds believed, method,
-- path, bytes of the body, and numeric arguments.
function M.text()
    local newest, lines = dict:get("samples") or 0, {}
    for number = math.max(1, newest - MOST + 1), newest do
        lines[#lines + 1] = dict:get("sample " .. number % MOST)
    end
    return concat(lines, "\n") .. "\n"
end

return M
