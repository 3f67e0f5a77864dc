-- The counters of status.lua and of the balancer: a block of shared numbers for each group and server (rows.lua).
local M = {}

local addresses = require "addresses"
local rows = require "rows"

local floor, tonumber = math.floor, tonumber

-- Columns of a block; classes and buckets begin at the column after theirs.
M.IN_FLIGHT, M.IN_BYTES, M.OUT_BYTES, M.REQUEST_MS, M.RESPONSE_MS = 0, 1, 2, 3, 4
M.ANSWERS, M.IDLE, M.IDLE_MS, M.WAIT, M.SERVICE = 5, 6, 7, 8, 9
M.CLASSES, M.REQUEST_BUCKETS = 9, 14

local function new_cell(group, server)
    return rows.add({ server = server }, group .. "@" .. server, M.RESPONSE_BUCKETS + #M.bounds + 2)
end

local function number(parameters, name, default)
    return tonumber(parameters:match(" " .. name .. "=(%d+)")) or default
end

local function has(parameters, word)
    return (parameters .. " "):find(" " .. word .. " ", 1, true) ~= nil
end

-- Two lines for the same address are one server here, with the weight and the room of both.
local function add_server(group, name, parameters)
    local weight, room = number(parameters, "weight", 1), number(parameters, "max_conns", 0)
    local cell = group.cells[name]
    if cell then
        cell.weight = cell.weight + weight
        cell.max_conns = cell.max_conns > 0 and room > 0 and cell.max_conns + room or 0
        return
    end
    cell = new_cell(group.name, name)
    cell.weight, cell.max_conns = weight, room
    cell.max_fails, cell.fail_timeout = number(parameters, "max_fails", 1), number(parameters, "fail_timeout", 10)
    cell.down, cell.backup = has(parameters, "down"), has(parameters, "backup")
    group.cells[name] = cell
    group.order[#group.order + 1] = cell
end

-- Reads groups and servers from the rendered upstreams file, which is what NGINX has parsed.
local function read_upstreams(path)
    local by_name, order, group = {}, {}, nil
    for line in io.lines(path) do
        local name = line:match("^upstream (%S+) {")
        if name then
            -- The pseudo-server of vts: $upstream_addr is the name of the group when no server is alive.
            group = { name = name, cells = { [name] = new_cell(name, name) }, order = {}, extra = new_cell(name, " extra") }
            by_name[name] = group
            order[#order + 1] = group
        end
        local server, parameters = line:match("^%s+server (%S+)([^;]*);")
        if group and server then
            for _, address in ipairs(addresses(server)) do
                add_server(group, address, parameters)
            end
        end
    end
    return by_name, order
end

-- whole ms -> bucket
local function buckets(bounds)
    local bucket_of, bucket = {}, 1
    for ms = 0, bounds[#bounds] do
        if ms > bounds[bucket] then
            bucket = bucket + 1
        end
        bucket_of[ms] = bucket
    end
    return setmetatable(bucket_of, { __index = function() return #bounds + 1 end })
end

-- options: upstreams (path), bounds_ms (array), server_name. Runs at each (re)load; existing counters are kept.
-- Fields: dict, bounds, bucket_of (whole ms -> bucket), server_name, loaded_ms, groups (by name), order (groups in the file's order), other, masked.
-- A group: name, cells (by address), order (cells with the parameters of their server lines), extra (a cell: attempts that were retried).
function M.init(options)
    M.dict, M.bounds, M.server_name = ngx.shared.deepsched_status, options.bounds_ms, options.server_name
    M.RESPONSE_BUCKETS, M.bucket_of = M.REQUEST_BUCKETS + #M.bounds + 1, buckets(M.bounds)
    rows.init(M.dict)
    ngx.update_time()
    M.loaded_ms = floor(ngx.now() * 1000 + 0.5)
    M.dict:safe_add("start_ms", M.loaded_ms)
    M.groups, M.order = read_upstreams(options.upstreams)
    M.other = new_cell("*", "*")
    M.masked = rows.add({}, "masked refusals", 1)   -- refused requests that got a status below 500, by error_page
end

return M
