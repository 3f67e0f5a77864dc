-- The balancing methods: round_robin (smooth weighted), least_conn, random, random_two, expected_delay.
-- Each takes (group, candidates, now, troubled) and returns a server; expected_delay also returns the predicted wait and
-- service time in seconds. `group` comes from control.lua.
local M = {}

local cold = require "cold"
local inflight = require "inflight"
local health = require "health"

local random, huge = math.random, math.huge

local BETA = 0.7           -- share of the service time that is added to the wait (docs/studies.md#the-rule)
local ERROR_COST_S = 1     -- cost of an error, in seconds
local LONGEST_WORK = 2e5   -- steps times servers of a period that is computed at once, which stops a worker for some ms

local dict
function M.init(shared_dict)
    dict = shared_dict
end

local function gcd(a, b)
    while b > 0 do
        a, b = b, a % b
    end
    return a
end

-- One period of NGINX's smooth weighted round robin; false when it is so long that each worker counts for itself.
local function sequence(group, candidates)
    local total, divisor, current, order = 0, 0, {}, {}
    for index, server in ipairs(candidates) do
        total, divisor, current[index] = total + group.weight[server], gcd(divisor, group.weight[server]), 0
    end
    if total / divisor * #candidates > LONGEST_WORK then
        return false
    end
    for step = 1, total / divisor do
        local best = 1
        for index, server in ipairs(candidates) do
            current[index] = current[index] + group.weight[server]
            if current[index] > current[best] then
                best = index
            end
        end
        current[best] = current[best] - total
        order[step] = candidates[best]
    end
    return order
end

-- One step of smooth weighted round robin, by the numbers of this worker.
local function smooth(group, candidates)
    local weight, current, total, chosen = group.weight, group.current, 0, candidates[1]
    for index = 1, #candidates do
        local server = candidates[index]
        current[server] = (current[server] or 0) + weight[server]
        total = total + weight[server]
        if current[server] > current[chosen] then
            chosen = server
        end
    end
    current[chosen] = current[chosen] - total
    return chosen
end

-- The position in the period is shared, so that the shares are exact over all workers together.
function M.round_robin(group, candidates)
    if candidates ~= group.up then
        return smooth(group, candidates)
    end
    if group.order == nil then
        group.order = cold(sequence, group, candidates)
    end
    local order = group.order
    if not order then
        return smooth(group, candidates)
    end
    local position = dict:incr(group.position_key, 1, 0)
    return order[(position - 1) % #order + 1]
end

-- A server at random in proportion to the weights, not `other`.
local function draw(group, candidates, other)
    local weight, total, last = group.weight, 0, nil
    for index = 1, #candidates do
        total = total + weight[candidates[index]]
    end
    local rest = random() * (total - (other and weight[other] or 0))
    for index = 1, #candidates do
        local server = candidates[index]
        if server ~= other then
            rest, last = rest - weight[server], server
            if rest < 0 then
                return server
            end
        end
    end
    return last
end

function M.random(group, candidates)
    return draw(group, candidates)
end

-- Of two servers drawn by weight, the one with less in_flight / weight; the second one when they are equal, as in NGINX.
function M.random_two(group, candidates)
    local first = draw(group, candidates)
    if #candidates == 1 then
        return first
    end
    local second, weight, choices = draw(group, candidates, first), group.weight, group.choices
    local busier = inflight.of_group(choices[second]) * weight[first] > inflight.of_group(choices[first]) * weight[second]
    return busier and first or second
end

-- Least in_flight / weight; ties by smooth weighted round robin, as in NGINX.
local loads = {}   -- in flight per candidate of the current choice; the table is reused
function M.least_conn(group, candidates)
    local weight, choices, current = group.weight, group.choices, group.current
    local best, best_load, best_weight, tied = nil, 0, 1, false
    for index = 1, #candidates do
        local server = candidates[index]
        local load = inflight.of_group(choices[server])
        loads[index] = load
        local difference = best and load * best_weight - best_load * weight[server] or -1
        if difference < 0 then
            best, best_load, best_weight, tied = server, load, weight[server], false
        elseif difference == 0 then
            tied = true
        end
    end
    if not tied then
        return best
    end
    local total, chosen = 0, best
    for index = 1, #candidates do
        local server = candidates[index]
        if loads[index] * best_weight == best_load * weight[server] then
            current[server] = (current[server] or 0) + weight[server]
            total = total + weight[server]
            if current[server] > current[chosen] then
                chosen = server
            end
        end
    end
    current[chosen] = current[chosen] - total
    return chosen
end

-- Rule B of docs/studies.md#the-rule: least wait + 0.7 service time + error score, ties at random. cost: what the request
-- takes in relation to others of its group; 1 when nil.
function M.expected_delay(group, candidates, now, troubled, cost)
    local beta = BETA * (cost or 1)
    local balancers, tau_s, workers = group.balancers, group.tau_s, group.workers
    local choices_of, tau_of = group.choices_of, group.tau_of
    local best, best_score, best_wait, ties = nil, huge, 0, 1
    for index = 1, #candidates do
        local server = candidates[index]
        local count, work = inflight.load(choices_of[server], tau_of[server])
        count, work = count * balancers, work * balancers
        local wait = 0
        if count >= workers[server] then
            wait = (work / count) * (count - workers[server] + 1) / workers[server]
        end
        local score = wait + beta * tau_s[server]
        if troubled then
            score = score + ERROR_COST_S * health.score(server, now)
        end
        if score < best_score then
            best, best_score, best_wait, ties = server, score, wait, 1
        elseif score == best_score then
            ties = ties + 1
            if random(ties) == 1 then
                best, best_wait = server, wait
            end
        end
    end
    return best, best_wait, tau_s[best]
end

return M
