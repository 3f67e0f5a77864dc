-- The balancing methods: round_robin (smooth weighted), least_conn, expected_delay.
-- Each takes (group, candidates, now, troubled) and returns a server; expected_delay also returns the predicted wait and
-- service time in seconds. `group` comes from control.lua.
local M = {}

local cold = require "cold"
local inflight = require "inflight"
local health = require "health"

local random, huge, concat = math.random, math.huge, table.concat

local BETA = 0.7           -- share of the service time that is added to the wait (docs/studies.md#the-rule)
local ERROR_COST_S = 1     -- cost of an error, in seconds

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

-- One period of NGINX's smooth weighted round robin.
local function sequence(group, candidates)
    local total, divisor, current, order = 0, 0, {}, {}
    for index, server in ipairs(candidates) do
        total, divisor, current[index] = total + group.weight[server], gcd(divisor, group.weight[server]), 0
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

-- The position in the period is shared, so that the shares are exact over all workers together.
function M.round_robin(group, candidates)
    local order
    if candidates == group.up then
        group.order = group.order or cold(sequence, group, candidates)
        order = group.order
    else
        local name = concat(candidates, " ")
        group.orders[name] = group.orders[name] or cold(sequence, group, candidates)
        order = group.orders[name]
    end
    local position = dict:incr(group.position_key, 1, 0)
    return order[(position - 1) % #order + 1]
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

-- Rule B of docs/studies.md#the-rule: least wait + 0.7 service time + error score, ties at random.
function M.expected_delay(group, candidates, now, troubled)
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
        local score = wait + BETA * tau_s[server]
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
