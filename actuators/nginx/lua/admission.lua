-- Admission control: counts the requests inside, refuses those beyond the limit of their group with 503, and moves the
-- limits by itself every tick, so that it protects when nobody steers. Stands before any way to balance.
local M = {}

local cold = require "cold"
local records = require "records"
local rows = require "rows"
local rule = require "admission_rule"
local plans = require "admission_plan"
local kept_rule = require "kept_rule"

local ngx, now_s, random = ngx, ngx.now, math.random
local max, exp, floor, huge, format, concat = math.max, math.exp, math.floor, math.huge, string.format, table.concat
local pcall, tostring = pcall, tostring
local CLIENT_GONE, REFUSED_STATUS = 499, 503
local MEMORY_S = 10         -- time constant of the counts from which the share of refused requests is known
local STALE_TICKS = 3       -- limits that were not moved for so many ticks are not in force

-- Columns of a block: of each group, and of all groups together. A worker writes its own row; IN_FLIGHT ends with it.
local IN_FLIGHT, OFFERED, REFUSED, SPARED, FINISHED, LATE, QUICK, SECONDS = 0, 1, 2, 3, 4, 5, 6, 7
local TOLD = {
    [OFFERED] = "offered", [REFUSED] = "refused", [SPARED] = "spared", [FINISHED] = "finished", [LATE] = "late",
    [QUICK] = "quick", [SECONDS] = "seconds",
}
-- The same columns of row 0 hold what had been counted at the last step; then follow what ticks computed.
local LIMIT, SILENT_S, RECENT_OFFERED, RECENT_REFUSED, ENDED, INSIDE, COLUMNS = 8, 9, 10, 11, 12, 13, 14
local MULTIPLE, HELD, LATE_SHARE, PEAK, TICKED, LAST_PEAK, STEPPED, PERIOD = 1, 2, 3, 4, 5, 6, 7, 8   -- row 0 of `all`

local dict, all, token, kept
local blocks = {}           -- group -> block
local names = {}            -- in the order of the configuration
local newest                -- newest[0]: version of the plan in the dict
local version, plan = -1, { rule = "none", entries = {}, by_name = {} }

-- What of a text can be in force with these groups; nil and a reason without anything. A configuration that has lost one of
-- its groups still protects the others; the error log names it.
local function usable_part(text)
    local part, gone = plans.known_part(text)
    local parsed, wrong = plans.parse(part)
    if parsed and gone ~= "" then
        ngx.log(ngx.ERR, "the rule of admission is in force without these groups, which are not balanced here: ", gone)
    end
    return parsed and part or nil, not parsed and "refused: " .. wrong or nil
end

-- The plan of a start: the kept one, or "" without one. An invalid kept text gives one line in the error log.
local function first_plan(options)
    local text, problem = nil, nil
    if kept then
        text, problem = kept_rule.read(kept, options.snippet)
    end
    if text then
        text, problem = usable_part(text)
    end
    if problem then
        ngx.log(ngx.ERR, "no rule of admission is in force: ", kept, ": ", problem)
    end
    return text or ""
end

-- groups: of counters.lua; token; kept: file of the rule to begin with, nil for none, trusted as much as the file
-- `snippet`. Before the workers start.
function M.init(options)
    dict, newest = ngx.shared.deepsched_balancer, rows.numbers("admission version")
    all = rows.add({}, "admission", COLUMNS)
    for index = 1, #options.groups do
        local name = options.groups[index].name
        names[index], blocks[name] = name, rows.add({ name = name }, "admission " .. name, COLUMNS)
    end
    plans.init(names)
    kept = options.kept
    dict:safe_add("admission version", newest[0])
    local present = dict:get("admission")
    if not present or not plans.parse(present) then
        -- A start, or the groups have changed with this configuration.
        dict:set("admission", present and usable_part(present) or first_plan(options))
        dict:incr("admission version", 1)
    end
    newest[0] = dict:get("admission version")
    token = options.token
end

-- The plan in force; without a rule nothing is counted.
local function current()
    if newest and version ~= newest[0] then
        version = newest[0]
        -- An old worker does not know the groups of a new configuration, and keeps the plan that it has.
        plan = cold(plans.parse, dict:get("admission")) or plan
    end
    return plan
end

-- Whether the limits were not moved lately: also those of a time before the clock was set back.
local function is_stale(now_plan)
    local since_s, tick_s = now_s() - all.base[TICKED], now_plan.numbers.tick_s
    return since_s > STALE_TICKS * tick_s or since_s < -tick_s
end

local function add(block, column, change)
    local own = block.own
    own[column] = own[column] + change
end

-- Whether so many of the group's last requests were refused that this one must enter.
local function too_many_refused(block, most)
    if most >= 1 then
        return false
    end
    local base = block.base
    local offered = base[RECENT_OFFERED] + rows.total(block, OFFERED) - base[OFFERED]
    local refused = base[RECENT_REFUSED] + rows.total(block, REFUSED) - base[REFUSED]
    return refused + 1 > most * offered
end

local function let_in(record, block, inside)
    add(block, IN_FLIGHT, 1)
    add(all, IN_FLIGHT, 1)
    local base = all.base
    if inside + 1 > base[PEAK] then
        base[PEAK] = inside + 1
    end
    record.block, record.entered_s = block, now_s()
end

local function refuse(record, block)
    add(block, REFUSED, 1)
    record.refused = true
    ngx.header["Retry-After"] = random(1, 2)
    ngx.header["X-Refused"] = "overload"
    return ngx.exit(REFUSED_STATUS)
end

-- Access phase of a location of the group. A request that comes again, as by error_page, is not asked twice. One that asks
-- for another protocol may be refused; once inside it may last for hours, which says nothing of load, and is not counted.
function M.enter(group)
    local now_plan = current()
    if not now_plan.by_name[group] then
        return
    end
    local record, block = records.get(true), blocks[group]   -- subrequests skip this phase
    if record.block or record.refused then
        return
    end
    add(block, OFFERED, 1)
    local inside = rows.total(all, IN_FLIGHT)
    if not is_stale(now_plan) and inside >= block.base[LIMIT] then
        local percent = now_plan.percent
        local meant = percent >= 100 or (percent > 0 and 100 * random() < percent)
        if meant and not too_many_refused(block, now_plan.numbers.most_refused) then
            return refuse(record, block)
        end
        add(block, SPARED, 1)
    end
    if not records.upgrades() then
        let_in(record, block, inside)
    end
end

-- A request of the group that did not pass the access phase there: a subrequest, or the page for a refused request, which
-- was offered already.
function M.count(record, group)
    if not record.block and current().by_name[group] and not records.upgrades() then
        add(blocks[group], OFFERED, record.refused and 0 or 1)
        let_in(record, blocks[group], rows.total(all, IN_FLIGHT))
    end
end

-- Log phase: status of the response, upstream time of all attempts in ms, nil when no server was asked. To it comes the
-- time for which late binding held the request.
function M.leave(record, status, response_ms)
    local block = record.block
    if not block then
        return
    end
    add(block, IN_FLIGHT, -1)
    add(all, IN_FLIGHT, -1)
    local entry = current().by_name[block.name]
    if not entry or record.refused then
        return
    end
    local gone, held_s = status == CLIENT_GONE, record.held_s
    local seconds = gone and now_s() - record.entered_s or (response_ms or 0) / 1000 + (held_s or 0)
    local is_late = seconds > entry.deadline_s
    -- These do not indicate overload: an immediate error, a client that leaves early, an answer of NGINX itself.
    if not (response_ms or held_s or gone) or gone and not is_late or status >= 500 and seconds < entry.idle_s then
        return add(block, QUICK, 1)
    end
    add(block, FINISHED, 1)
    add(block, SECONDS, seconds)
    if is_late or status >= 500 then
        add(block, LATE, 1)
    end
end

-- As balancer.take and balancer.finish, for an NGINX that balances itself.
M.take = records.take

function M.finish(record, status, _, total_ms)
    M.leave(record, status, total_ms)
    records.give_back(record)
end

-- What the group's block has counted since the last step, and for how long it has been silent.
local function counted(block, elapsed_s)
    local base, tick = block.base, {}
    for column, name in pairs(TOLD) do
        tick[name] = rows.total(block, column) - base[column]
    end
    local ended = tick.finished + tick.quick
    base[SILENT_S] = ended == base[ENDED] and base[INSIDE] > 0 and base[SILENT_S] + elapsed_s or 0
    base[ENDED], base[INSIDE] = ended, rows.total(block, IN_FLIGHT)
    tick.silent_s, tick.over = base[SILENT_S], tick.refused + tick.spared
    return tick
end

-- Row 0 takes what a step has used.
local function settle(block, tick, elapsed_s)
    local base, kept = block.base, exp(-elapsed_s / MEMORY_S)
    base[RECENT_OFFERED] = kept * (base[RECENT_OFFERED] + tick.offered)
    base[RECENT_REFUSED] = kept * (base[RECENT_REFUSED] + tick.refused)
    for column, name in pairs(TOLD) do
        base[column] = base[column] + tick[name]
    end
    base[ENDED] = 0
end

-- After a time without ticks nothing that was counted in it says anything.
local function restart(now, tick_s)
    for _, block in pairs(blocks) do
        local base = block.base
        for column in pairs(TOLD) do
            base[column] = rows.total(block, column)
        end
        base[SILENT_S], base[ENDED], base[INSIDE] = 0, 0, 0
        base[RECENT_OFFERED], base[RECENT_REFUSED] = 0, 0
    end
    local base = all.base
    base[STEPPED], base[TICKED], base[PEAK] = now - tick_s, now - tick_s, rows.total(all, IN_FLIGHT)
end

local function set_limits(now_plan, state)
    local base = all.base
    base[MULTIPLE], base[HELD], base[LATE_SHARE] = state.multiple, state.held, state.late_share
    for index = 1, #now_plan.entries do
        local entry = now_plan.entries[index]
        blocks[entry.name].base[LIMIT] = rule.limit(now_plan, entry, state)
    end
end

local function step(now_plan, ticks, now)
    local base = all.base
    local elapsed_s = now - base[STEPPED]
    local state = { multiple = base[MULTIPLE], held = base[HELD], late_share = base[LATE_SHARE] }
    set_limits(now_plan, rule.step(now_plan, state, ticks, base[PEAK], elapsed_s))
    for index = 1, #now_plan.entries do
        settle(blocks[now_plan.entries[index].name], ticks[index], elapsed_s)
    end
    base[LAST_PEAK], base[PEAK], base[STEPPED] = base[PEAK], rows.total(all, IN_FLIGHT), now
end

-- Moves the limits of all groups, unless too little was answered since they were moved last.
function M.tick(now)
    local now_plan, base, ticks = current(), all.base, {}
    local tick_s = now_plan.numbers.tick_s
    -- Below 0 when the clock has been set back.
    local since_s = now - base[TICKED]
    if since_s < 0 or since_s > STALE_TICKS * tick_s then
        restart(now, tick_s)
    end
    for index = 1, #now_plan.entries do
        ticks[index] = counted(blocks[now_plan.entries[index].name], now - base[TICKED])
    end
    if base[MULTIPLE] == 0 then
        set_limits(now_plan, rule.begin(now_plan))
    elseif rule.is_due(now_plan, ticks) then
        step(now_plan, ticks, now)
    end
    base[TICKED] = now
end

-- Whether this worker is the first one in this period; also after the clock was set back. The dict has one key for this and
-- not one per period: it frees what has expired only where no key that never expires is older.
local function is_first(period)
    local base = all.base
    local function is_new()
        return period > base[PERIOD] or period < base[PERIOD] - 1
    end
    if not is_new() or not dict:add("admission ticking", true, 1) then
        return false
    end
    local first = is_new()
    if first then
        base[PERIOD] = period
    end
    dict:delete("admission ticking")
    return first
end

local function schedule(delay_s)
    ngx.timer.at(delay_s, M.on_timer)
end

-- Every worker has a timer; the first one of each tick moves the limits, so that no worker is needed for it.
function M.on_timer(ending)
    if ending then
        return
    end
    local now_plan, tick_s, now = current(), 0.5, now_s()
    if now_plan.rule ~= "none" then
        tick_s = now_plan.numbers.tick_s
        if is_first(floor(now / tick_s)) then
            -- An error must not end the timer.
            local ok, problem = pcall(cold, M.tick, now)
            if not ok then
                ngx.log(ngx.ERR, "admission control has not moved its limits: ", tostring(problem))
            end
        end
    end
    schedule(tick_s)
end

function M.init_worker()
    if newest then
        schedule(0)
    end
end

-- Puts the plan of a text in force; nil and the reason when it is refused. Limits begin anew under another rule.
local function put(text)
    local parsed, problem = cold(plans.parse, text)
    if not parsed then
        return nil, problem
    end
    local base, before = all.base, current()
    dict:set("admission", text)
    if parsed.rule ~= before.rule then
        base[MULTIPLE], base[TICKED] = 0, 0
    else
        cold(set_limits, parsed, { multiple = base[MULTIPLE], held = base[HELD], late_share = base[LATE_SHARE] })
    end
    newest[0] = dict:incr("admission version", 1, newest[0])
    return true
end

-- content_by_lua of the admission location: GET reads the plan, POST replaces it, DELETE lets every request enter. POST
-- and DELETE need the token.
function M.serve()
    ngx.header["Content-Type"] = "text/plain"
    local verb = ngx.req.get_method()
    if verb == "POST" or verb == "DELETE" then
        if ngx.req.get_headers()["X-Deepsched-Token"] ~= token then
            ngx.status = 403
            return ngx.say("wrong token")
        end
        ngx.req.read_body()
        local text = verb == "DELETE" and "" or ngx.req.get_body_data()
        local done, problem = nil, "no rule in the body; DELETE lets every request enter"
        if verb == "DELETE" or text and text:find("%S") then
            done, problem = put(text)
        elseif ngx.req.get_body_file() then
            problem = "the body is in a file; this location needs `client_body_in_file_only off` and a larger client_body_buffer_size"
        end
        if not done then
            ngx.status = 400
            return ngx.say("refused: " .. problem)
        end
    end
    ngx.print(dict:get("admission") or "")
end

local function number_json(value)
    return value < huge and format("%.17g", value) or "null"
end

local function group_json(name, now_plan, stale)
    local block, total = blocks[name], rows.total
    local limit = now_plan.by_name[name] and not stale and block.base[LIMIT] or huge
    return format(
        '{"group":"%s","offered":%.0f,"refused":%.0f,"spared":%.0f,"finished":%.0f,"late":%.0f,"quick":%.0f,'
        .. '"inFlight":%d,"limit":%s}',
        name, total(block, OFFERED), total(block, REFUSED), total(block, SPARED), total(block, FINISHED),
        total(block, LATE), total(block, QUICK), total(block, IN_FLIGHT), number_json(limit)
    )
end

-- The `admission` block of the statistics; nil in a configuration without admission control.
function M.json()
    if not newest then
        return nil
    end
    local now_plan, base, parts = current(), all.base, {}
    local stale = now_plan.rule == "none" or is_stale(now_plan)
    for index = 1, #names do
        parts[index] = group_json(names[index], now_plan, stale)
    end
    return format(
        '{"rule":"%s","percent":%.17g,"version":%d,"multiple":%.17g,"lateShare":%.17g,"peak":%.0f,"kept":"%s",'
        .. '"groups":[%s]}',
        now_plan.rule, now_plan.percent, newest[0], base[MULTIPLE], base[LATE_SHARE], max(base[PEAK], base[LAST_PEAK]),
        kept or "", concat(parts, ",")
    )
end

return M
