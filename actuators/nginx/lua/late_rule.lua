-- The dispatch step of late binding (docs/studies.md#dispatch-step), as envs/simulator/binding.py computes it: which held
-- request goes next, and to which server. It changes nothing but what is planned within one look.
-- A held request is a table with group (its name), arrival_s and cost (what it takes in relation to others of its group);
-- the line has them in the order of arrival.
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

-- The larger, the earlier the request is considered. `hold`: of control.lua; worth: the importance of its group.
local function priority(hold, age_s, service_s, deadline_s, worth)
    local order = hold.order
    if order == "fifo" then
        return age_s
    end
    local late = age_s + service_s > deadline_s
    if order == "shortest" then
        return -service_s / worth * (late and hold.late_weight or 1 - hold.waiting_weight * age_s / deadline_s)
    end
    if late then
        return LATE - service_s / worth
    end
    return order == "response_ratio" and age_s / service_s * worth or (age_s - deadline_s) / worth
end
M.priority = priority

local in_flight, count, work = {}, {}, {} -- of each server: now, and with what is planned

-- Begins a look at what is in flight at every server.
function M.begin(current)
    local group = current.groups[1]
    for server = 1, #current.hold.slots do
        local own, seconds = inflight.load(group.choices_of[server], group.tau_of[server])
        in_flight[server], count[server], work[server] = own, own, seconds
    end
end

-- Whether one of these servers has a free slot.
function M.has_room(current, servers)
    local slots = current.hold.slots
    for index = 1, #servers do
        if in_flight[servers[index]] < slots[servers[index]] then
            return true
        end
    end
    return false
end

local function rank_of(current, entry, now)
    local group = current.by_name[entry.group]
    return priority(
        current.hold, now - entry.arrival_s, group.mean_tau_s * entry.cost, group.deadline_s, group.worth
    )
end
M.rank = rank_of

-- The place in the line of the request that comes first, which has one, and its priority.
function M.first(current, line, held, now)
    local best, highest = 1, rank_of(current, line[1], now)
    for place = 2, held do
        local rank = rank_of(current, line[place], now)
        if rank > highest then
            best, highest = place, rank
        end
    end
    return best, highest
end

-- Fills `places` and `ranks` with those that come first, at most `most`, as calls of `first` would find them without
-- the ones before; how many.
function M.order(current, line, held, now, most, places, ranks)
    local number = 0
    for place = 1, held do
        local rank = rank_of(current, line[place], now)
        if number < most or rank > ranks[number] then
            local at = number < most and number + 1 or number
            number = at
            while at > 1 and ranks[at - 1] < rank do
                places[at], ranks[at], at = places[at - 1], ranks[at - 1], at - 1
            end
            places[at], ranks[at] = place, rank
        end
    end
    return number
end

-- Of these servers the one with the least expected delay, where the wait at one without a free slot counts theta times,
-- and whether it has a free slot.
function M.best(current, group, candidates, now, troubled, cost)
    local slots, theta, balancers = current.hold.slots, current.hold.theta, group.balancers
    local best, lowest, ties = nil, huge, 1
    for index = 1, #candidates do
        local server = candidates[index]
        local requests, seconds, workers = count[server] * balancers, work[server] * balancers, group.workers[server]
        local wait = wait_of(requests, seconds, workers)
        if in_flight[server] >= slots[server] then
            wait = theta * max(wait, seconds / max(requests * workers, LEAST))
        end
        local score = wait + BETA * group.tau_s[server] * cost
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

-- Whether a request that would best go to the server is expected to be answered later than refuse_factor times its deadline,
-- with what is planned there. ahead_s: what else it waits for.
function M.hopeless(current, group, entry, server, ahead_s, now)
    local factor = current.hold.refuse_factor
    if not factor or group.never then
        return false
    end
    local wait = wait_of(count[server] * group.balancers, work[server] * group.balancers, group.workers[server])
    return now - entry.arrival_s + ahead_s + wait + BETA * group.tau_s[server] * entry.cost > factor * group.deadline_s
end

-- Seconds of work, shared by the workers of all servers.
function M.shared_s(current, seconds)
    local of_servers, workers = current.groups[1].workers, 0
    for server = 1, #of_servers do
        workers = workers + of_servers[server]
    end
    return seconds / workers
end

-- Seconds that all servers together need for the held requests of the line that come before this one, which comes now.
function M.ahead_s(current, line, held, entry, now)
    local own, seconds = rank_of(current, entry, now), 0
    for place = 1, held do
        if rank_of(current, line[place], now) >= own then
            seconds = seconds + current.by_name[line[place].group].mean_tau_s * line[place].cost
        end
    end
    return M.shared_s(current, seconds)
end

-- A request of the group waits for the server; those after it in this look reckon with that.
function M.plan(group, server, cost)
    count[server], work[server] = count[server] + 1, work[server] + group.tau_s[server] * cost
end

return M
