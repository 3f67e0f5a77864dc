-- The dispatch step of late binding (docs/studies.md#dispatch-step), as envs/simulator/binding.py computes it: which held
-- request goes next, and to which server. It changes nothing but what is planned within one look.
-- A held request is a table with group (its name), arrival_s and look (the last look that has considered it).
local M = {}

local health = require "health"
local inflight = require "inflight"

local huge, max, random = math.huge, math.max, math.random
local BETA, ERROR_COST_S = 0.7, 1   -- of methods.lua
local LATE = -1e6                   -- of requests that will be late: all others come before them
local LEAST = 1e-9

local function wait_of(requests, seconds, workers)
    return requests >= workers and seconds / requests * (requests - workers + 1) / workers or 0
end

-- The larger, the earlier the request is considered. `order`: response_ratio, earliest_deadline or fifo.
function M.priority(order, age_s, service_s, deadline_s)
    if order == "fifo" then
        return age_s
    end
    if age_s + service_s > deadline_s then
        return LATE - service_s
    end
    return order == "response_ratio" and age_s / service_s or age_s - deadline_s
end

local look = 0                            -- number of this look
local in_flight, count, work = {}, {}, {} -- of each server: now, and with what is planned

-- Begins a look at what is in flight at every server; whether any has a free slot.
function M.begin(current)
    local slots, found, group = current.hold.slots, false, current.groups[1]
    look = look + 1
    for server = 1, #slots do
        local own, seconds = inflight.load(group.choices_of[server], group.tau_of[server])
        in_flight[server], count[server], work[server] = own, own, seconds
        found = found or own < slots[server]
    end
    return found
end

-- The place in the line of the request to consider next; nil when this look has considered all. The first come among
-- equals. Also its priority.
function M.first(current, line, held, now)
    local order, by_name = current.hold.order, current.by_name
    local best, highest = nil, 0
    for place = 1, held do
        local entry = line[place]
        if entry.look ~= look then
            local group = by_name[entry.group]
            local rank = M.priority(order, now - entry.arrival_s, group.mean_tau_s, group.deadline_s)
            if not best or rank > highest then
                best, highest = place, rank
            end
        end
    end
    return best, highest
end

-- Of these servers the one with the least expected delay, where the wait at one without a free slot counts theta times,
-- and whether it has a free slot.
function M.best(current, group, candidates, now, troubled)
    local slots, theta, balancers = current.hold.slots, current.hold.theta, group.balancers
    local best, lowest, ties = nil, huge, 1
    for index = 1, #candidates do
        local server = candidates[index]
        local requests, seconds, workers = count[server] * balancers, work[server] * balancers, group.workers[server]
        local wait = wait_of(requests, seconds, workers)
        if in_flight[server] >= slots[server] then
            wait = theta * max(wait, seconds / max(requests * workers, LEAST))
        end
        local score = wait + BETA * group.tau_s[server]
        if troubled then
            score = score + ERROR_COST_S * health.score(server, now)
        end
        if score < lowest then
            best, lowest, ties = server, score, 1
        elseif score == lowest then
            ties = ties + 1
            best = random(ties) == 1 and server or best
        end
    end
    return best, best and in_flight[best] < slots[best]
end

-- The predicted wait at a server in seconds, without what is planned.
function M.wait_s(group, server)
    local requests, seconds = inflight.load(group.choices_of[server], group.tau_of[server])
    return wait_of(requests * group.balancers, seconds * group.balancers, group.workers[server])
end

-- The request waits for the server; those after it in this look reckon with that.
function M.plan(group, entry, server)
    entry.look = look
    count[server], work[server] = count[server] + 1, work[server] + group.tau_s[server]
end

return M
