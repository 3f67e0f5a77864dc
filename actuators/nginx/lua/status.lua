-- vts-shaped statistics for an NGINX without nginx-module-vts: counts in the log phase, serves the JSON that
-- actuators/statistics/vts.py reads.
local M = {}

local admission = require "admission"
local cold = require "cold"
local counters = require "counters"
local document = require "status_json"
local records = require "records"
local rows = require "rows"

local ngx = ngx
-- Called directly: LuaJIT does not compile calls through the metatable (return to lower frame).
local variable, property = getmetatable(ngx.var).__index, getmetatable(ngx).__index
local floor, tonumber = math.floor, tonumber
local min, max = math.min, math.max
local start_time, now_s = ngx.req.start_time, ngx.now
local CLIENT_GONE = 499
local IN_BYTES, OUT_BYTES, REQUEST_MS = counters.IN_BYTES, counters.OUT_BYTES, counters.REQUEST_MS
local RESPONSE_MS, CLASSES, REQUEST_BUCKETS = counters.RESPONSE_MS, counters.CLASSES, counters.REQUEST_BUCKETS

local split = records.split
local groups, other, response_buckets, only_final
local owner = admission   -- takes and closes the records of requests
local bucket_of

-- options: of counters.lua; attempts: "all" or "final", which of a request's attempts count; admission: options of
-- admission.lua, nil without it.
-- Leaves `M.groups` for the balancer.
function M.init(options)
    counters.init(options)
    document.init()
    bucket_of = counters.bucket_of
    groups, other, response_buckets = counters.groups, counters.other, counters.RESPONSE_BUCKETS
    M.groups, only_final = counters.order, options.attempts == "final"
    if options.admission then
        options.admission.groups, options.admission.token = M.groups, options.token
        admission.init(options.admission)
    end
end

-- Requests are balanced in memory.
function M.use(balancer)
    M.balancer, owner = balancer, balancer
end

-- init_worker_by_lua.
function M.init_worker()
    if not ngx.worker.id() then
        return   -- a helper process: it serves no requests
    end
    cold(rows.init_worker)
    admission.init_worker()
    if M.balancer then
        M.balancer.init_worker()
    end
end

local function class_of(status)
    return max(1, min(5, floor(status / 100)))
end

local function count_request(own)
    local request_ms = max(0, floor((now_s() - start_time()) * 1000 + 0.5))
    own[IN_BYTES] = own[IN_BYTES] + (tonumber(variable(nil, "request_length")) or 0)
    own[OUT_BYTES] = own[OUT_BYTES] + (tonumber(variable(nil, "bytes_sent")) or 0)
    own[REQUEST_MS] = own[REQUEST_MS] + request_ms
    local bucket = REQUEST_BUCKETS + bucket_of[request_ms]
    own[bucket] = own[bucket] + 1
end

local function count_class(own, status)
    local class = CLASSES + class_of(status)
    own[class] = own[class] + 1
end

local function count_attempt(own, status, response_ms)
    count_class(own, status)
    own[RESPONSE_MS] = own[RESPONSE_MS] + response_ms
    local bucket = response_buckets + bucket_of[response_ms]
    own[bucket] = own[bucket] + 1
end

local function milliseconds(text)
    local seconds = tonumber(text)
    return seconds and floor(seconds * 1000 + 0.5)
end

-- Every attempt counts for its server, as in the newest source of vts; bytes and request time only for the last one.
local function count_every(group, servers, count, times, final)
    local statuses = split(variable(nil, "upstream_status"))
    for index = 1, count do
        local cell = group.cells[servers[index]]
        local last = index == count
        local status = last and final or tonumber(statuses[index]) or 502
        if not last then
            count_class(group.extra.own, status)
        end
        if cell then
            count_attempt(cell.own, status, status == CLIENT_GONE and 0 or milliseconds(times[index]) or 0)
            if last then
                count_request(cell.own)
            end
        end
    end
end

-- The request counts for the server of the last attempt, with the time of all attempts, as in all releases of vts.
local function count_final(group, servers, count, times, final)
    local cell, response_ms = group.cells[servers[count]], 0
    for index = 1, final == CLIENT_GONE and count - 1 or count do
        response_ms = response_ms + (milliseconds(times[index]) or 0)
    end
    if cell then
        count_attempt(cell.own, final, response_ms)
        count_request(cell.own)
    end
end

-- Counts a request that was retried or reached no server; returns the time of its last attempt and of all in ms.
local function count_attempts(group, record, addresses, final)
    local servers, count = split(addresses)
    if record and record.attempts > 0 and not record.choice then
        count = max(count, 1)
        servers[count] = group.name   -- NGINX names the server before again when the balancer found no other
    end
    local times = split(variable(nil, "upstream_response_time"))
    local count_them = only_final and count_final or count_every
    count_them(group, servers, count, times, final)
    local total_ms = 0
    for index = 1, count do
        total_ms = total_ms + (milliseconds(times[index]) or 0)
    end
    return milliseconds(times[count]) or 0, total_ms
end

-- The server of a request that was not retried: the balancer's choice, or the one of the only address.
local function only_cell(group, record)
    if record and record.choice then
        return record.attempts == 1 and record.choice
    end
    return group.cells[variable(nil, "upstream_addr")]
end

-- Counts a request of a group; returns its last and its whole upstream time in ms, nil when it reached no server.
local function count(group, record, status)
    local cell, response_ms = only_cell(group, record), milliseconds(variable(nil, "upstream_response_time"))
    if cell and response_ms then
        local own = cell.own
        count_attempt(own, status, status == CLIENT_GONE and 0 or response_ms)
        count_request(own)
        return response_ms, response_ms
    end
    local addresses = variable(nil, "upstream_addr") or record and record.attempts > 0 and ""
    if addresses then
        return count_attempts(group, record, addresses, status)
    end
end

local function count_other(status)
    if not ngx.is_subrequest then
        count_request(other.own)
        count_class(other.own, status)
    end
end

-- The status of the server that has sent the page for a refused request, which has not failed; else the one shown.
local function status_of_page(record, shown)
    if shown < 500 then
        counters.masked.own[0] = counters.masked.own[0] + 1
    end
    return tonumber((variable(nil, "upstream_status") or ""):match("(%d+)$")) or shown
end

-- The status by which the server of a balanced request is judged: that of its last attempt, which error_page and stale
-- answers of a cache hide.
local function status_of_server(record, status)
    local hidden = record.attempts > 0 and not record.refused and status ~= CLIENT_GONE
        and tonumber(variable(nil, "upstream_status")) ~= status
    return hidden and records.answer(record, 0) or status
end

local function log(group, record)
    local shown, response_ms, total_ms = property(ngx, "status"), nil, nil
    local status = record and record.refused and status_of_page(record, shown) or shown
    if group then
        response_ms, total_ms = count(group, record, status)
    end
    if not response_ms then
        count_other(shown)
    elseif status ~= shown then
        count_class(group.extra.own, status)   -- the server's answer is not what the client saw
        count_class(other.own, shown)
    end
    if record then
        owner.finish(record, status_of_server(record, status), response_ms or 0, total_ms)
    end
end

-- log_by_lua of the location of a group.
function M.log(group_name)
    log(groups[group_name], owner.take())
end

-- log_by_lua of a configuration that includes our snippet: the balancer knows the group.
function M.log_any()
    local record = owner.take()
    log(record and record.attempts > 0 and groups[record.group], record)
end

-- log_by_lua of our endpoints in such a configuration.
function M.log_nothing()
end

-- log_by_lua of all other requests.
function M.log_other()
    log(nil, owner.take())
end

-- content_by_lua of the status location.
function M.serve()
    ngx.header["Content-Type"] = "application/json"
    ngx.header["Cache-Control"] = "no-store"
    ngx.print(document.render(M.balancer))
end

return M
