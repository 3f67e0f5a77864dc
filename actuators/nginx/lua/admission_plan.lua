-- The plan of admission control, a text: `rule R`, `percent P` (of the requests that may be refused), `machines N`,
-- `number NAME VALUE`, `group NAME DEADLINE_S IMPORTANCE IDLE_S RATE_RPS FACTOR` for every group that is admitted;
-- IMPORTANCE is a number or `never`. A text is put in force completely or not at all. Source of the numbers' meaning:
-- actuators/contract/admission.py.
local M = {}

local decimal = require "decimal"
local rule = require "admission_rule"
local huge = math.huge

local RULES = { none = true, fixed = true, thresh = true, aimd_thresh = true, gradient = true, aimd = true }
-- name -> least, most
local NUMBERS = {
    tick_s = { 0.1, 5 }, multiple = { 1e-6, 100 }, gamma = { 0, 3 }, start = { 1e-6, 100 }, late_share = { 1e-6, 1 },
    cut = { 1e-6, 1 }, rise = { 1e-6, 10 }, least = { 1e-6, 100 }, most = { 1e-6, 1000 }, most_refused = { 1e-6, 1 },
    headroom = { 1, 10 }, least_answers = { 1, 1000 }, importance_power = { 0, 3 },
}

local known = {}

-- names: array of groups.
function M.init(names)
    for index = 1, #names do
        known[names[index]] = true
    end
end

local function between(text, least, most)
    local value = decimal(text)
    return value and value >= least and value <= most and value or nil
end

local readers = {}

function readers.rule(plan, name)
    plan.rule = RULES[name] and name
    return plan.rule
end

function readers.percent(plan, text)
    plan.percent = between(text, 0, 100)
    return plan.percent
end

function readers.machines(plan, text)
    plan.machines = between(text, 1, 1e4)
    return plan.machines
end

function readers.number(plan, name, text)
    local range = NUMBERS[name]
    plan.numbers[name or ""] = range and between(text, range[1], range[2])
    return plan.numbers[name or ""]
end

function readers.group(plan, name, deadline_s, importance, idle_s, rate_rps, factor)
    if not known[name] or plan.by_name[name] then
        return false
    end
    local entry = {
        name = name,
        deadline_s = between(deadline_s, 1e-6, 1e6),
        importance = importance == "never" and huge or between(importance, 1e-9, 1e9),
        idle_s = between(idle_s, 1e-9, 1e6),
        rate_rps = between(rate_rps, 1e-9, 1e9),
        factor = between(factor, 1e-9, 1e9),
    }
    plan.by_name[name], plan.entries[#plan.entries + 1] = entry, entry
    return entry.deadline_s and entry.importance and entry.idle_s and entry.rate_rps and entry.factor
end

local function complete(plan)
    if plan.rule == "none" then
        return true
    end
    for name in pairs(NUMBERS) do
        if not plan.numbers[name] then
            return nil, "number " .. name .. " is missing"
        end
    end
    return #plan.entries > 0 or nil, "no group"
end

-- The plan of a text; nil and what is wrong with it. An empty text is the rule `none`.
function M.parse(text)
    local plan = { rule = "none", percent = 100, machines = 1, numbers = {}, entries = {}, by_name = {} }
    for line in (text or ""):gmatch("[^\r\n]+") do
        local words = {}
        for word in line:gmatch("%S+") do
            words[#words + 1] = word
        end
        local read = readers[words[1]]
        if not read or not read(plan, unpack(words, 2)) then
            return nil, "line '" .. line:sub(1, 100) .. "'"
        end
    end
    local ok, problem = complete(plan)
    if not ok then
        return nil, problem
    end
    if plan.rule == "none" then
        plan.entries, plan.by_name = {}, {}
        return plan
    end
    return rule.prepare(plan)
end

-- The text without the lines of groups that are not known, and the names of these, with blanks between them.
function M.known_part(text)
    local lines, gone = {}, {}
    for line in text:gmatch("[^\r\n]+") do
        local name = line:match("^%s*group%s+(%S+)")
        if name and not known[name] then
            gone[#gone + 1] = name
        else
            lines[#lines + 1] = line .. "\n"
        end
    end
    return table.concat(lines), table.concat(gone, " ")
end

return M
