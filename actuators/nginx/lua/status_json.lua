-- The counters of status.lua as the JSON of nginx-module-vts. Numeric loops only: see cold.lua.
local M = {}

local admission, counters, rows = require "admission", require "counters", require "rows"
local ngx, var = ngx, ngx.var
local floor, format, concat, unpack = math.floor, string.format, table.concat, unpack

local get = rows.total
local dict, bounds, bounds_text, groups, other

-- After counters.init.
function M.init()
    dict, bounds, groups, other = counters.dict, counters.bounds, counters.order, counters.other
    bounds_text = concat(bounds, ",")
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

-- `before`: the column before the first bucket.
local function buckets_json(cell, before, used)
    if not used then
        return '{"msecs":[],"counters":[]}'
    end
    local counts, sum = {}, 0
    for index = 1, #bounds do
        sum = sum + get(cell, before + index)
        counts[index] = sum
    end
    return format('{"msecs":[%s],"counters":[%s]}', bounds_text, concat(counts, ","))
end

local function class_counts(cell)
    local counts = {}
    for index = 1, 5 do
        counts[index] = get(cell, counters.CLASSES + index)
    end
    return counts
end

-- Every response has one class: their sum is the number of requests.
local function total(counts)
    return counts[1] + counts[2] + counts[3] + counts[4] + counts[5]
end

local function mean(sum, count)
    return count > 0 and floor(sum / count) or 0
end

local function cell_json(cell, weight, down)
    local classes = class_counts(cell)
    local requests = total(classes)
    local used = requests > 0
    local request_ms, response_ms = get(cell, counters.REQUEST_MS), get(cell, counters.RESPONSE_MS)
    return format(
        '{"server":%s,"requestCounter":%.0f,"inBytes":%.0f,"outBytes":%.0f,"responses":%s,'
        .. '"requestMsecCounter":%.0f,"requestMsec":%.0f,"requestMsecs":{"times":[],"msecs":[]},"requestBuckets":%s,'
        .. '"responseMsecCounter":%.0f,"responseMsec":%.0f,"responseMsecs":{"times":[],"msecs":[]},"responseBuckets":%s,'
        .. '"weight":%d,"maxFails":%d,"failTimeout":%d,"backup":%s,"down":%s}',
        quoted(cell.server), requests, get(cell, counters.IN_BYTES), get(cell, counters.OUT_BYTES), responses_json(classes),
        request_ms, mean(request_ms, requests), buckets_json(cell, counters.REQUEST_BUCKETS, used),
        response_ms, mean(response_ms, requests), buckets_json(cell, counters.RESPONSE_BUCKETS, used),
        weight, cell.max_fails or 0, cell.fail_timeout or 0, tostring(cell.backup == true), tostring(down)
    )
end

local function group_json(group, balancer)
    local parts = {}
    for index = 1, #group.order do
        local cell = group.order[index]
        local weight, down = cell.weight, cell.down
        if balancer then
            weight, down = balancer.weight(group.name, cell.server)
        end
        parts[index] = cell_json(cell, weight, down)
    end
    local unserved = group.cells[group.name]
    if total(class_counts(unserved)) > 0 then
        parts[#parts + 1] = cell_json(unserved, 0, false)
    end
    return quoted(group.name) .. ":[" .. concat(parts, ",") .. "]"
end

local function add_classes(classes, cell, sign)
    for index = 1, 5 do
        classes[index] = classes[index] + sign * get(cell, counters.CLASSES + index)
    end
end

-- Client-side counts: every attempt was counted, so the retries are subtracted.
local function server_zone_json()
    local in_bytes, out_bytes = get(other, counters.IN_BYTES), get(other, counters.OUT_BYTES)
    local request_ms, classes = get(other, counters.REQUEST_MS), class_counts(other)
    for position = 1, #groups do
        local group = groups[position]
        for index = 0, #group.order do
            local cell = group.order[index] or group.cells[group.name]
            in_bytes, out_bytes = in_bytes + get(cell, counters.IN_BYTES), out_bytes + get(cell, counters.OUT_BYTES)
            request_ms = request_ms + get(cell, counters.REQUEST_MS)
            add_classes(classes, cell, 1)
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

local function own_json(balancer)
    local own = balancer and "," .. balancer.json() or ""
    local entry = admission.json()
    return format(
        '{"startMsec":%.0f,"maskedRefusals":%.0f%s%s}', dict:get("start_ms"), rows.total(counters.masked, 0), own,
        entry and ',"admission":' .. entry or ""
    )
end

-- The whole document; `balancer` is nil when NGINX itself balances.
function M.render(balancer)
    -- The subrequest may let other requests run, so it comes first; the counters after it are read without a pause.
    local connections = connections_json()
    local version, parts = ngx.config.nginx_version, {}
    for index = 1, #groups do
        parts[index] = group_json(groups[index], balancer)
    end
    local zone, size, free = server_zone_json(), dict:capacity(), dict:free_space()
    ngx.update_time()
    return concat({
        format('{"hostName":%s,"moduleVersion":"deepsched","nginxVersion":"%d.%d.%d"', quoted(var.hostname),
            floor(version / 1000000), floor(version / 1000) % 1000, version % 1000),
        format(',"loadMsec":%.0f,"nowMsec":%.0f,"connections":%s', counters.loaded_ms, floor(ngx.now() * 1000 + 0.5), connections),
        format(',"sharedZones":{"name":"deepsched_status","maxSize":%.0f,"usedSize":%.0f,"usedNode":%d,"freeSize":%.0f}',
            size, size - free, #groups, free),
        format(',"serverZones":{%s:%s,"*":%s}', quoted(counters.server_name), zone, zone),
        format(',"upstreamZones":{%s},"deepsched":%s}\n', concat(parts, ","), own_json(balancer)),
    })
end

return M
