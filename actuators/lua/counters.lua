-- The counters of status.lua: one shared dict, one cell per group and server; every key string is built once.
local M = {}

local floor, tonumber = math.floor, tonumber

local CLASSES = { "1xx", "2xx", "3xx", "4xx", "5xx" }

local dict, bounds

local function create(key)
    local ok, err = dict:safe_add(key, 0)
    if not ok and err ~= "exists" then
        error("status.lua: the shared dict is too small: " .. tostring(err))
    end
    return key
end

local function class_keys(prefix)
    local keys = {}
    for index, name in ipairs(CLASSES) do
        keys[index] = create(prefix .. name)
    end
    return keys
end

local function bucket_keys(prefix)
    local keys = {}
    for index = 1, #bounds + 1 do
        keys[index] = create(prefix .. index)
    end
    return keys
end

local function new_cell(group, server)
    local prefix = group .. "@" .. server .. " "
    return {
        server = server,
        in_bytes = create(prefix .. "in"),
        out_bytes = create(prefix .. "out"),
        classes = class_keys(prefix),
        request_ms = create(prefix .. "request_ms"),
        response_ms = create(prefix .. "response_ms"),
        request_buckets = bucket_keys(prefix .. "request_bucket "),
        response_buckets = bucket_keys(prefix .. "response_bucket "),
    }
end

-- Reads the groups and servers from the rendered upstreams file: what NGINX parsed is what we show.
local function read_upstreams(path)
    local by_name, order, group = {}, {}, nil
    for line in io.lines(path) do
        local name = line:match("^upstream (%S+) {")
        if name then
            group = { name = name, cells = {}, order = {}, servers = {}, extra = class_keys(name .. " extra ") }
            by_name[name] = group
            order[#order + 1] = group
            -- vts' pseudo-server: $upstream_addr is the group's name when no server is alive.
            group.cells[name] = new_cell(name, name)
        end
        local server, parameters = line:match("^%s+server (%S+)([^;]*);")
        if group and server then
            local cell = new_cell(group.name, server)
            cell.weight = tonumber(parameters:match("weight=(%d+)")) or 1
            cell.max_fails = tonumber(parameters:match("max_fails=(%d+)")) or 1
            cell.fail_timeout = tonumber(parameters:match("fail_timeout=(%d+)")) or 10
            cell.down = parameters:find(" down", 1, true) ~= nil
            group.cells[server] = cell
            group.order[#group.order + 1] = cell
            group.servers[#group.servers + 1] = server
        end
    end
    return by_name, order
end

-- options: upstreams (path), bounds_ms (array), server_name. Runs at each (re)load; counters that exist are kept.
-- Fields: dict, bounds, server_name, loaded_ms, groups (by name), order (groups in the file's order), other.
-- A group: name, cells (by address), order (cells), servers (addresses), extra (keys of attempts passed over).
function M.init(options)
    dict, bounds = ngx.shared.deepsched_status, options.bounds_ms
    ngx.update_time()
    local loaded_ms = floor(ngx.now() * 1000 + 0.5)
    dict:safe_add("start_ms", loaded_ms)
    M.dict, M.bounds, M.server_name, M.loaded_ms = dict, bounds, options.server_name, loaded_ms
    M.groups, M.order = read_upstreams(options.upstreams)
    M.other = {
        in_bytes = create("* in"), out_bytes = create("* out"), classes = class_keys("* "), request_ms = create("* request_ms"),
    }
end

return M
