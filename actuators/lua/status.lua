-- vts-shaped statistics for an NGINX without nginx-module-vts: counts in the log phase, serves the JSON that
-- actuators/vts.py reads.
local M = {}

local counters = require "counters"
local document = require "status_json"

local ngx, var = ngx, ngx.var
local floor, tonumber = math.floor, tonumber
local gmatch, min, max = string.gmatch, math.min, math.max
local start_time, now = ngx.req.start_time, ngx.now

local CLIENT_GONE = 499

local dict, bounds, groups, other

-- See counters.lua. Leaves `M.groups` for the balancer, which sets `M.balancer` when requests are balanced in memory.
function M.init(options)
    counters.init(options)
    document.init(counters)
    dict, bounds, groups, other = counters.dict, counters.bounds, counters.groups, counters.other
    M.groups = counters.order
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

-- content_by_lua of the status location.
function M.serve()
    ngx.header["Content-Type"] = "application/json"
    ngx.header["Cache-Control"] = "no-store"
    ngx.print(document.render(M.balancer))
end

return M
