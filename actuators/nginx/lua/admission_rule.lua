-- The rules of admission as pure functions: what was counted since the last step in, the limits until the next one out.
-- Defined in docs/admission.md#the-tick; envs/admission has the same rules in Python.
local M = {}

local max, min, sqrt, exp, huge = math.max, math.min, math.sqrt, math.exp, math.huge
local HELD_S = 30           -- time constant of the highest in-flight count
local BUFFER = 1.25         -- of `gradient`: idle latency may grow by so much
local BY_DENSITY = { thresh = true, aimd_thresh = true }

-- What follows from a plan alone: nominal (requests in flight at one machine at nominal rates) and, for each entry,
-- weight (importance of its late answers) and share (of the whole limit).
function M.prepare(plan)
    local highest, most, nominal, numbers = 0, 0, 0, plan.numbers
    for index = 1, #plan.entries do
        local entry = plan.entries[index]
        nominal = nominal + entry.rate_rps * entry.idle_s
        if entry.importance < huge then
            entry.value = entry.importance ^ numbers.importance_power / entry.idle_s ^ numbers.gamma
            highest, most = max(highest, entry.value), max(most, entry.importance)
        end
    end
    plan.nominal = nominal / plan.machines
    for index = 1, #plan.entries do
        local entry = plan.entries[index]
        entry.weight, entry.share = entry.importance, 1
        if entry.importance == huge then
            entry.weight, entry.share = most > 0 and most or 1, huge
        elseif BY_DENSITY[plan.rule] then
            entry.share = entry.value / highest
        end
    end
    return plan
end

-- The state before the first step.
function M.begin(plan)
    local follows = plan.rule ~= "fixed" and plan.rule ~= "thresh"
    return { multiple = follows and plan.numbers.start or plan.numbers.multiple, held = 0, late_share = 0 }
end

local function is_silent(entry, tick)
    return tick.silent_s > 0 and tick.silent_s >= entry.deadline_s
end

-- Whether the limits move: enough requests finished since the last step, or an entry is silent. ticks[index]: finished,
-- late, seconds, over (beyond the limit), silent_s of the entry.
function M.is_due(plan, ticks)
    local finished = 0
    for index = 1, #plan.entries do
        finished = finished + ticks[index].finished
        if is_silent(plan.entries[index], ticks[index]) then
            return true
        end
    end
    return finished >= plan.numbers.least_answers
end

local function late_share(plan, ticks)
    local late, all, at_risk = 0, 0, false
    for index = 1, #plan.entries do
        local entry, tick = plan.entries[index], ticks[index]
        local own = tick.finished > 0 and tick.late / tick.finished or is_silent(entry, tick) and 1 or 0
        local weight = entry.weight * entry.rate_rps
        late, all = late + weight * own, all + weight
        at_risk = at_risk or entry.importance == huge and own > plan.numbers.late_share / 3
    end
    return late / all, at_risk
end

local follow = {}

function follow.fixed(plan)
    return plan.numbers.multiple
end

follow.thresh = follow.fixed

function follow.aimd_thresh(plan, state, in_time)
    local n = plan.numbers
    return in_time and min(n.most, state.multiple + n.rise) or max(n.least, n.cut * state.multiple)
end

follow.aimd = follow.aimd_thresh

function follow.gradient(plan, state, _, ticks)
    local n, idle_s, seen_s = plan.numbers, 0, 0
    for index = 1, #plan.entries do
        idle_s = idle_s + ticks[index].finished * plan.entries[index].idle_s
        seen_s = seen_s + ticks[index].seconds
    end
    if seen_s <= 0 then
        return state.multiple
    end
    local limit = max(0.5, min(2, BUFFER * idle_s / seen_s)) * state.multiple * plan.nominal
    return max(n.least, min(n.most, (limit + sqrt(limit)) / plan.nominal))
end

-- Moves the state by a step of `elapsed_s` seconds with `peak` as its highest in-flight count.
function M.step(plan, state, ticks, peak, elapsed_s)
    local n, over = plan.numbers, 0
    for index = 1, #ticks do
        over = over + ticks[index].over
    end
    local at_risk  -- a group that is never refused suffers from the others
    state.late_share, at_risk = late_share(plan, ticks)
    local in_time = state.late_share <= n.late_share and not at_risk
    local highest = plan.rule ~= "fixed" and plan.rule ~= "thresh" and state.multiple >= n.most
    state.held = state.held * exp(-elapsed_s / HELD_S)
    if in_time and (over == 0 or highest) then
        state.held = max(state.held, peak)
    end
    state.multiple = follow[plan.rule](plan, state, in_time, ticks)
    return state
end

-- The limit of an entry on the requests in flight of all entries, at least 1.
function M.limit(plan, entry, state)
    if entry.share == huge then
        return huge
    end
    local present = max(plan.nominal, plan.numbers.headroom * state.held / plan.numbers.most)
    return max(1, state.multiple * present * entry.share * entry.factor)
end

return M
