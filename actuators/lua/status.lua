-- vts-shaped statistics for an NGINX without nginx-module-vts.
-- Counts in the log phase into one shared dict, which survives reloads; serves the JSON that actuators/vts.py
-- reads. Everything a request touches (key strings, tables) is built once, in init.
local M = {}

local ngx, var, shared = ngx, ngx.var, ngx.shared
local floor, tonumber, format, concat = math.floor, tonumber, string.format, table.concat
local gmatch, min, max, unpack = string.gmatch, math.min, math.max, unpack
local start_time, now = ngx.req.start_time, ngx.now

local CLASSES = { "1xx", "2xx", "3xx", "4xx", "5xx" }
local CLIENT_GONE = 499

local dict, bounds, bounds_text, zone_name, loaded_ms
local groups = {}     -- group name -> { cells = { address -> cell }, order = { address, … }, extra = keys }
local group_order = {}
local other           -- requests that reached no group (404, a malformed request)

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
    local group
    for line in io.lines(path) do
        local name = line:match("^upstream (%S+) {")
        if name then
            group = { name = name, cells = {}, order = {}, servers = {}, extra = class_keys(name .. " extra ") }
            groups[name] = group
            group_order[#group_order + 1] = group
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
end

-- options: upstreams (path), bounds_ms (array), server_name. Runs at each (re)load. Leaves `M.groups` for the
-- balancer, which sets `M.balancer` when requests are balanced in memory.
function M.init(options)
    dict = shared.deepsched_status
    bounds, bounds_text, zone_name = options.bounds_ms, concat(options.bounds_ms, ","), options.server_name
    ngx.update_time()
    loaded_ms = floor(now() * 1000 + 0.5)
    dict:safe_add("start_ms", loaded_ms)
    read_upstreams(options.upstreams)
    M.groups = group_order
    other = {
        in_bytes = create("* in"), out_bytes = create("* out"),
        classes = class_keys("* "), request_ms = create("* request_ms"),
    }
end

local function bucket_of(ms)
    local low, high = 1, #bounds + 1
    while low < high do
        local middle = floor((low + high) / 2)
        if ms <= bounds[middle] then high = middle else low = middle + 1 end
    end
    return low
end

local function class_of(status)
    return max(1, min(5, floor(status / 100)))
end

local function count_request(cell)
    local request_ms = max(0, floor((now() - start_time()) * 1000 + 0.5))
    dict:incr(cell.in_bytes, tonumber(var.request_length) or 0)
    dict:incr(cell.out_bytes, tonumber(var.bytes_sent) or 0)
    dict:incr(cell.request_ms, request_ms)
    return request_ms
end

local function count_attempt(cell, status, response_ms)
    dict:incr(cell.classes[class_of(status)], 1)
    if response_ms > 0 then
        dict:incr(cell.response_ms, response_ms)
    end
    dict:incr(cell.response_buckets[bucket_of(response_ms)], 1)
end

local function milliseconds(text)
    return floor((tonumber(text) or 0) * 1000 + 0.5)
end

-- $upstream_addr and its kin are lists, "A, B : C", when a request was retried or redirected.
local function split(text)
    local parts, count = {}, 0
    for part in gmatch(text or "", "[^%s,]+") do
        if part ~= ":" then
            count = count + 1
            parts[count] = part
        end
    end
    return parts, count
end

-- Every attempt counts on its own server, as in today's vts; bytes and request time only on the last one.
local function count_attempts(group, addresses)
    local servers, count = split(addresses)
    local statuses, times = split(var.upstream_status), split(var.upstream_response_time)
    for index = 1, count do
        local cell = group.cells[servers[index]]
        local last = index == count
        local status = last and ngx.status or tonumber(statuses[index]) or 502
        if not last then
            dict:incr(group.extra[class_of(status)], 1)
        end
        if cell then
            count_attempt(cell, status, status == CLIENT_GONE and 0 or milliseconds(times[index]))
            if last then
                dict:incr(cell.request_buckets[bucket_of(count_request(cell))], 1)
            end
        end
    end
    return milliseconds(times[count])
end

local function release(response_ms)
    if M.balancer then
        M.balancer.finish(ngx.status, response_ms)
    end
end

-- log_by_lua of a group's location.
function M.log(group_name)
    local group, address = groups[group_name], var.upstream_addr
    if not address then
        return M.log_other()
    end
    local cell = group.cells[address]
    if not cell then
        return release(count_attempts(group, address))
    end
    local status, response_ms = ngx.status, milliseconds(var.upstream_response_time)
    count_attempt(cell, status, status == CLIENT_GONE and 0 or response_ms)
    dict:incr(cell.request_buckets[bucket_of(count_request(cell))], 1)
    release(response_ms)
end

-- log_by_lua for a whole configuration that is not rendered by us: the balancer knows the group.
function M.log_any()
    local group_name = M.balancer.group_name()
    if group_name then
        return M.log(group_name)
    end
    return M.log_other()
end

-- log_by_lua of our own endpoints in a foreign configuration.
function M.log_nothing()
end

-- log_by_lua of everything else.
function M.log_other()
    if not ngx.is_subrequest then
        count_request(other)
        dict:incr(other.classes[class_of(ngx.status)], 1)
    end
    release(0)
end

local function get(key)
    return dict:get(key) or 0
end

local function quoted(text)
    text = tostring(text)
    if text:find('[%c"\\]') then
        text = text:gsub('[%c"\\]', function(char) return format("\\u%04x", char:byte()) end)
    end
    return '"' .. text .. '"'
end

local function responses_json(counts)
    return format('{"1xx":%.0f,"2xx":%.0f,"3xx":%.0f,"4xx":%.0f,"5xx":%.0f}', unpack(counts, 1, 5))
end

local function buckets_json(keys, used)
    if not used then
        return '{"msecs":[],"counters":[]}'
    end
    local counters, total = {}, 0
    for index = 1, #bounds do
        total = total + get(keys[index])
        counters[index] = total
    end
    return format('{"msecs":[%s],"counters":[%s]}', bounds_text, concat(counters, ","))
end

local function class_counts(keys)
    local counts = {}
    for index = 1, #CLASSES do
        counts[index] = get(keys[index])
    end
    return counts
end

-- Every answer has one class: their sum is the number of requests.
local function total(counts)
    return counts[1] + counts[2] + counts[3] + counts[4] + counts[5]
end

local function mean(sum, count)
    return count > 0 and floor(sum / count) or 0
end

local function cell_json(cell, weight, down)
    local classes = class_counts(cell.classes)
    local requests = total(classes)
    local used = requests > 0
    local request_ms, response_ms = get(cell.request_ms), get(cell.response_ms)
    return format(
        '{"server":%s,"requestCounter":%.0f,"inBytes":%.0f,"outBytes":%.0f,"responses":%s,'
        .. '"requestMsecCounter":%.0f,"requestMsec":%.0f,"requestMsecs":{"times":[],"msecs":[]},"requestBuckets":%s,'
        .. '"responseMsecCounter":%.0f,"responseMsec":%.0f,"responseMsecs":{"times":[],"msecs":[]},"responseBuckets":%s,'
        .. '"weight":%d,"maxFails":%d,"failTimeout":%d,"backup":false,"down":%s}',
        quoted(cell.server), requests, get(cell.in_bytes), get(cell.out_bytes), responses_json(classes),
        request_ms, mean(request_ms, requests), buckets_json(cell.request_buckets, used),
        response_ms, mean(response_ms, requests), buckets_json(cell.response_buckets, used),
        weight, cell.max_fails or 0, cell.fail_timeout or 0, tostring(down)
    )
end

local function group_json(group)
    local parts = {}
    for index = 1, #group.order do
        local cell = group.order[index]
        local weight, down = cell.weight, cell.down
        if M.balancer then
            weight, down = M.balancer.weight(group.name, cell.server)
        end
        parts[index] = cell_json(cell, weight, down)
    end
    local nobody = group.cells[group.name]
    if total(class_counts(nobody.classes)) > 0 then
        parts[#parts + 1] = cell_json(nobody, 0, false)
    end
    return quoted(group.name) .. ":[" .. concat(parts, ",") .. "]"
end

local function add_classes(classes, keys, sign)
    for index = 1, #CLASSES do
        classes[index] = classes[index] + sign * get(keys[index])
    end
end

-- The client-side count: every attempt was counted, so the retries are taken off again.
local function server_zone_json()
    local in_bytes, out_bytes = get(other.in_bytes), get(other.out_bytes)
    local request_ms, classes = get(other.request_ms), class_counts(other.classes)
    for position = 1, #group_order do
        local group = group_order[position]
        for index = 0, #group.order do
            local cell = group.order[index] or group.cells[group.name]
            in_bytes = in_bytes + get(cell.in_bytes)
            out_bytes, request_ms = out_bytes + get(cell.out_bytes), request_ms + get(cell.request_ms)
            add_classes(classes, cell.classes, 1)
        end
        add_classes(classes, group.extra, -1)
    end
    local requests = total(classes)
    return format(
        '{"requestCounter":%.0f,"inBytes":%.0f,"outBytes":%.0f,"responses":%s,"requestMsecCounter":%.0f,"requestMsec":%.0f}',
        requests, in_bytes, out_bytes, responses_json(classes), request_ms, mean(request_ms, requests)
    )
end

local function connections_json()
    local body = ngx.location.capture("/stub_status").body or ""
    local accepted, handled, requests = body:match("(%d+)%s+(%d+)%s+(%d+)")
    return format(
        '{"active":%s,"reading":%s,"writing":%s,"waiting":%s,"accepted":%s,"handled":%s,"requests":%s}',
        var.connections_active, var.connections_reading, var.connections_writing, var.connections_waiting,
        accepted or 0, handled or 0, requests or 0
    )
end

local function own_json()
    if M.balancer then
        return M.balancer.json(get("start_ms"))
    end
    return format('{"startMsec":%.0f}', get("start_ms"))
end

local function json(connections)
    local version, parts = ngx.config.nginx_version, {}
    for index = 1, #group_order do
        parts[index] = group_json(group_order[index])
    end
    local zone, size, free = server_zone_json(), dict:capacity(), dict:free_space()
    ngx.update_time()
    return concat({
        format('{"hostName":%s,"moduleVersion":"deepsched","nginxVersion":"%d.%d.%d"', quoted(var.hostname),
            floor(version / 1000000), floor(version / 1000) % 1000, version % 1000),
        format(',"loadMsec":%.0f,"nowMsec":%.0f,"connections":%s', loaded_ms, floor(now() * 1000 + 0.5), connections),
        format(',"sharedZones":{"name":"deepsched_status","maxSize":%.0f,"usedSize":%.0f,"usedNode":%d,"freeSize":%.0f}',
            size, size - free, #group_order, free),
        format(',"serverZones":{%s:%s,"*":%s}', quoted(zone_name), zone, zone),
        format(',"upstreamZones":{%s},"deepsched":%s}\n', concat(parts, ","), own_json()),
    })
end

-- content_by_lua of the status location.
function M.serve()
    ngx.header["Content-Type"] = "application/json"
    ngx.header["Cache-Control"] = "no-store"
    -- The subrequest may let other requests run: it comes first, the counters after it are read in one go.
    local connections = connections_json()
    ngx.print(json(connections))
end

return M
