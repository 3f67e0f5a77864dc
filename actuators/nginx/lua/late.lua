-- Late binding: holds requests in the access phase until a server has a free slot, and sends them in an order of their own
-- (docs/late-binding.md). Slots are requests in flight, which all workers count together (inflight.lua); each worker has a
-- line for its requests. A slot is free again when the last byte of the answer has come, or when the request ends.
-- When the control is stale or this code fails, nothing is held any more, and what is held leaves within a second.
-- Beside another method it only counts what it would hold (`watch` of control.lua).
local M = {}

local control = require "control"
local costs = require "cost"
local counters = require "counters"
local health = require "health"
local inflight = require "inflight"
local records = require "records"
local methods = require "methods"
local rows = require "rows"
local rule = require "late_rule"
local semaphore = require "ngx.semaphore"

local ngx, now_s = ngx, ngx.now
local format, concat, min, max, floor = string.format, table.concat, math.min, math.max, math.floor
local pcall, random, tostring = pcall, math.random, tostring
local REFUSED_STATUS, CLIENT_GONE = 503, 499
local NONE_TRIED = {}         -- so that nobody waits for a slot of the one server whose pause is over
local REST_S = 1              -- longest sleep of a held request: then it looks whether requests are still held
local LEAST_SLEEP_S = 0.001
local LOOK_S, LOOK_ALONE_S = 0.001, 0.1   -- sleep of the request that was held first, with and without other workers
local COURTESY_S = 0.003      -- for so long a worker leaves a slot to a request of another one that comes first
local HEAD_LASTS_S = 0.05     -- what another worker said of its first request is old after that
local SEARCH_S = 0.005        -- so often the whole line is searched for what this worker says
local PAUSE_S = 10            -- for so long nothing is held after this code has failed

-- Columns of a group's block; IN_LINE ends with its worker.
local IN_LINE, HELD, HELD_S, FULL, EXPIRED, GONE, PASSED, ANSWERED, LATE = 0, 1, 2, 3, 4, 5, 6, 7, 8
local ASKED, WOULD, ANSWERED_S, HOPELESS = 9, 10, 11, 12
local HELD_BUCKETS, ANSWER_BUCKETS = 12, nil   -- each histogram begins at the column after
-- Columns of the block of a worker's first request that could not be sent. FAILED_AT: in row 0.
local SAID_AT, ARRIVAL, GROUP, FAILED_AT, COST, HEADS = 0, 1, 2, 3, 4, 5

local dict, heads, all          -- all: IN_LINE of all groups together
local asks                      -- whether locations ask for a slot at all
local blocks, names, index_of = {}, {}, {}   -- by group, by index, and index by group
local line, held = {}, 0        -- requests of this worker in the order of arrival
local places, ranks = {}, {}    -- of the requests that one look considers
local polite_since              -- since when a slot is left to another worker
local foremost, searched_at_s   -- the request that comes first, and when the line was last searched for it

-- groups: of counters.lua; holds: locations ask for a slot. Before the workers start.
function M.init(shared_dict, groups, holds)
    dict, heads, all = shared_dict, rows.add({}, "late heads", HEADS), rows.add({}, "late", 1)
    asks, ANSWER_BUCKETS = holds, HELD_BUCKETS + #counters.bounds + 1
    for index = 1, #groups do
        local name = groups[index].name
        names[index], index_of[name] = name, index
        blocks[name] = rows.add({}, "late " .. name, ANSWER_BUCKETS + #counters.bounds + 2)
    end
end

-- Whether there are or were other workers: with a reload an old one may still serve.
local function several()
    return rows.count() > 2
end

local function add(entry, column, change)
    local own = entry.block.own
    own[column] = own[column] + (change or 1)
end

local function count_line(entry, change)
    add(entry, IN_LINE, change)
    all.own[IN_LINE] = all.own[IN_LINE] + change
end

local function has_failed(now)
    local since_s = now - heads.base[FAILED_AT]
    return since_s >= 0 and since_s < PAUSE_S   -- below 0 when the clock has been set back
end

-- Whether requests are held; else the reason: off (another method), watching (the same, and what would be held is counted),
-- unset (no slots yet), stale or failing.
local function state_of(current, now)
    if current.method ~= "late_binding" then
        return current.watch and "watching" or "off"
    elseif not (current.learned and current.hold) then
        return "unset"
    elseif now - control.set_at() > current.hold.valid_s then
        return "stale"
    end
    return has_failed(now) and "failing" or "holding"
end

-- Whether the balancer has to do without service times, as least_conn.
function M.fails_open(current)
    local state = state_of(current, now_s())
    return state == "stale" or state == "failing"
end

local function failed(what)
    heads.base[FAILED_AT] = now_s()
    ngx.log(ngx.ERR, "late binding failed, requests are not held for ", PAUSE_S, " s: ", tostring(what))
end

local function count_time(entry, sum, buckets, seconds)
    add(entry, sum, seconds)
    add(entry, buckets + counters.bucket_of[max(0, floor(seconds * 1000 + 0.5))])
end

local function note_hold(entry, now)
    local held_s = max(0, now - entry.arrival_s)   -- below 0 when the clock has been set back
    entry.record.held_s = held_s
    add(entry, HELD)
    count_time(entry, HELD_S, HELD_BUCKETS, held_s)
end

-- drains: the line is ending. The next request is not woken: each one checks by itself, so that not all leave at once.
local function leave_line(entry, place, drains)
    if not place then
        place = 1
        while place <= held and line[place] ~= entry do
            place = place + 1
        end
    end
    entry.waits = false
    if place > held then
        return   -- a failure has taken it out
    end
    count_line(entry, -1)
    held = held - 1
    for behind = place, held + 1 do   -- LuaJIT does not compile table.remove here
        line[behind] = line[behind + 1]
    end
    if place == 1 and held > 0 and line[1].semaphore and not drains then
        line[1].semaphore:post(1)   -- it looks from time to time from now on
    end
end

-- Takes a slot. Two workers may add one at the same moment: each then sees the other's, because taking the lock of a
-- shared dict orders memory, and at most one of them keeps its own.
local function takes_slot(current, choice, server)
    inflight.add(choice, 1)
    if several() then
        dict:get("version")
        if inflight.of_server(current.groups[1].choices_of[server]) > current.hold.slots[server] then
            inflight.add(choice, -1)
            return false
        end
    end
    return true
end

local function bind(entry, choice, wait_s, service_s, idle)
    local record = entry.record
    record.bound, record.wait_s, record.service_s, record.idle = choice, wait_s, service_s, idle
    entry.waits = false
end

-- While nothing is held, the rule chooses the server that expected_delay chooses, if that server has a free slot: slots
-- only raise the scores of other servers. Returns it when the request has its slot.
function M.send_at_once(current, entry, now)
    local troubled = health.trouble()
    local group = current.by_name[entry.group]
    local open = M.open_servers(group, troubled and NONE_TRIED or nil, now, troubled)
    if #open == 0 then
        return nil
    end
    local server, wait_s, service_s = methods.expected_delay(group, open, now, troubled, entry.cost)
    local choice, in_flight = group.choices[server], inflight.of_server(group.choices_of[server])
    if in_flight >= current.hold.slots[server] or not takes_slot(current, choice, server) then
        return nil
    end
    bind(entry, choice, wait_s, service_s, in_flight < group.workers[server])
    entry.record.is_trial = troubled and health.picked(choice, now)
    return server
end

-- The request at a place of the line goes to a server; false when another worker took the last slot at the same moment.
function M.send(current, group, entry, place, server, now, troubled)
    local choice = group.choices[server]
    local wait_s = rule.wait_s(group, server)
    local idle = inflight.of_server(group.choices_of[server]) < group.workers[server]
    if not takes_slot(current, choice, server) then
        return false
    end
    bind(entry, choice, wait_s, group.tau_s[server], idle)
    polite_since = nil
    entry.record.is_trial = troubled and health.picked(choice, now)
    leave_line(entry, place)
    if entry.semaphore then
        note_hold(entry, now)
        entry.semaphore:post(1)
    end
    return true
end

-- Whether another worker's first request comes before one of that rank; it has had its chance after COURTESY_S.
local function others_first(current, rank, now)
    local hold, base, first = current.hold, heads.base, false
    for row = 1, rows.count() - 1 do
        local head = base + row * HEADS
        local arrival_s, group = head[ARRIVAL], current.groups[head[GROUP]]
        -- Its worker may be writing, or be an old one that knows other groups.
        if head ~= heads.own and arrival_s > 0 and group and now - head[SAID_AT] < HEAD_LASTS_S then
            local service_s = group.mean_tau_s * head[COST]
            local theirs = rule.priority(hold, now - arrival_s, service_s, group.deadline_s, group.worth)
            first = first or theirs > rank
        end
    end
    if not first then
        polite_since = nil
        return false
    end
    polite_since = min(polite_since or now, now)
    return now - polite_since < COURTESY_S
end

-- The request of this worker that comes first. A search of a long line costs more than all else of a look, so that in
-- between only the last one that joined is compared: ages change the order slowly.
local function find_foremost(current, now)
    local last = line[held]
    if not (foremost and foremost.waits) or now - searched_at_s >= SEARCH_S or now < searched_at_s then
        foremost, searched_at_s = line[rule.first(current, line, held, now)], now
    elseif last ~= foremost and rule.rank(current, last, now) > rule.rank(current, foremost, now) then
        foremost = last
    end
    return foremost
end

local function say(entry, now)
    local own = heads.own
    if not entry then
        own[ARRIVAL] = 0
        return
    end
    own[GROUP], own[COST] = index_of[entry.group], entry.cost
    own[ARRIVAL], own[SAID_AT] = entry.arrival_s, now
end

-- Whether a server that a held request may go to has a free slot, after `rule.begin`. `M.open_servers` is the balancer's.
local function has_room(current, now, troubled)
    for index = 1, #names do
        if blocks[names[index]].own[IN_LINE] > 0 then
            local group = current.by_name[names[index]]
            if rule.has_room(current, M.open_servers(group, troubled and NONE_TRIED or nil, now, troubled)) then
                return true
            end
        end
    end
    return false
end

-- Sends the first request whose best server has a free slot; false when there is none. Requests before it keep waiting for
-- a busy server.
local function send_one(current, now, troubled)
    local place, rank = rule.first(current, line, held, now)
    local number = min(held, current.hold.look_ahead)
    for turn = 1, number do
        if turn == 2 then
            rule.order(current, line, held, now, number, places, ranks)
        end
        if turn > 1 then
            place, rank = places[turn], ranks[turn]
        end
        local entry = line[place]
        local group = current.by_name[entry.group]
        local open = M.open_servers(group, troubled and NONE_TRIED or nil, now, troubled)
        local server, is_free = rule.best(current, group, open, now, troubled, entry.cost)
        -- Without one, `max_conns` of all its servers is reached.
        if server then
            if rule.hopeless(current, group, entry, server, 0, now) then
                M.give_up(entry, place, now)
                return true
            end
            if is_free then
                if several() and others_first(current, rank, now) then
                    return false
                end
                return M.send(current, group, entry, place, server, now, troubled)
            end
            rule.plan(group, server, entry.cost)
        end
    end
    return false
end

-- Whether a request that comes is expected to be too late for all that is in flight and held before it. What other workers
-- hold counts as if it were like this one's, or like this request where it holds none.
function M.turns_away(current, entry, now)
    local group, troubled = current.by_name[entry.group], health.trouble()
    local open = M.open_servers(group, troubled and NONE_TRIED or nil, now, troubled)
    rule.begin(current)
    local server = rule.best(current, group, open, now, troubled, entry.cost)
    if not server then
        return false
    end
    local ahead_s, others = held > 0 and rule.ahead_s(current, line, held, entry, now) or 0, rows.total(all, IN_LINE)
    if held > 0 then
        ahead_s = ahead_s * max(others, held) / held
    else
        ahead_s = rule.shared_s(current, others * group.mean_tau_s)
    end
    return rule.hopeless(current, group, entry, server, ahead_s, now)
end

-- A held request will be too late: it is refused by its own coroutine.
function M.give_up(entry, place, now)
    entry.hopeless = true
    leave_line(entry, place)
    if entry.semaphore then
        note_hold(entry, now)
        entry.semaphore:post(1)
    end
end

-- The request goes on without a slot.
local function pass(entry)
    add(entry, PASSED)
    leave_line(entry, nil, true)
end

-- Sends what can be sent.
function M.step(now)
    local current = control.current()
    if state_of(current, now) ~= "holding" then
        return
    end
    local troubled, free = health.trouble(), false
    repeat
        free = false
        if held > 0 then
            rule.begin(current)
            free = has_room(current, now, troubled)
        end
    until not (free and send_one(current, now, troubled))
    if not free then
        polite_since = nil
    end
    if several() then
        say(held > 0 and not free and find_foremost(current, now) or nil, now)
    end
end

local function step()
    local ok, what = pcall(M.step, now_s())
    if not ok then
        failed(what)
    end
end

-- A slot has become free.
function M.freed()
    if held > 0 then
        step()
    end
end

local function refuse(entry, column, reason)
    add(entry, column)
    entry.record.refused = true
    ngx.header["Retry-After"] = random(1, 2)
    ngx.header["X-Refused"] = reason
    return ngx.exit(REFUSED_STATUS)
end

-- Sleeps until the request has a slot or need not wait for one; false when it was held for too long.
local function wait(entry, longest_s)
    local until_s = entry.arrival_s + longest_s
    while entry.waits do
        local now = now_s()
        if now < entry.arrival_s then   -- the clock was set back
            entry.arrival_s, until_s = now, now + longest_s
        end
        if now >= until_s then
            note_hold(entry, now)
            leave_line(entry)
            return false
        elseif state_of(control.current(), now) ~= "holding" then
            note_hold(entry, now)
            pass(entry)
            return true
        end
        local first = line[1] == entry
        local rest = first and (several() and LOOK_S or LOOK_ALONE_S) or REST_S
        -- NGINX does not sleep for less than a millisecond, and its clock stands still until it sleeps.
        entry.semaphore:wait(max(min(rest, until_s - now), LEAST_SLEEP_S))
        if first and entry.waits then
            step()
        end
    end
    return true
end

-- The request is the last one of the line.
function M.join(entry)
    held = held + 1
    line[held] = entry
    count_line(entry, 1)
end

local function new_entry(record, group_name, waits, deadline_s)
    return { record = record, group = group_name, block = blocks[group_name], arrival_s = now_s(), waits = waits,
        watched = not waits, hopeless = false, deadline_s = deadline_s, semaphore = nil, cost = 1 }
end

-- Counts a request that is not held, and whether it would be: when no server that it may go to has a free slot.
local function note_watched(current, group_name, now)
    local record, watch, group = records.get(true), current.watch, current.by_name[group_name]
    if record.attempts > 0 or record.refused or record.entry or records.upgrades() then
        return
    end
    local entry = new_entry(record, group_name, false, watch.deadline_s[group_name])
    record.entry = entry
    add(entry, ASKED)
    local troubled = health.trouble()
    local open = M.open_servers(group, troubled and NONE_TRIED or nil, now, troubled)
    for index = 1, #open do
        local server = open[index]
        if inflight.of_server(group.choices_of[server]) < watch.slots[server] then
            return
        end
    end
    add(entry, WOULD, #open > 0 and 1 or 0)
end

-- Access phase of a location of the group, after admission; its body has been read (lua_need_request_body). A request that
-- comes again, as by error_page, waits once only; one that asks for another protocol may last for hours and takes no slot.
function M.enter(group_name)
    local current, now = control.current(), now_s()
    local state = state_of(current, now)
    if state == "watching" and not has_failed(now) then
        local ok, what = pcall(note_watched, current, group_name, now)
        if not ok then
            failed(what)
        end
    end
    if state ~= "holding" then
        return
    end
    local record = records.get(true)
    if record.attempts > 0 or record.refused or record.entry then
        return
    elseif records.upgrades() then
        record.uncounted = true
        return
    end
    local entry, hold = new_entry(record, group_name, true, current.by_name[group_name].deadline_s), current.hold
    add(entry, ASKED)
    local model = current.by_name[group_name].cost
    if model then
        local ok, what = pcall(costs.of, model)
        if ok then
            entry.cost = what
        else
            failed(what)
        end
    end
    local others = rows.total(all, IN_LINE)
    if others >= hold.most_held then
        return refuse(entry, FULL, "queue full")
    end
    if hold.refuse_factor and not current.by_name[group_name].never then
        local ok, what = pcall(M.turns_away, current, entry, entry.arrival_s)
        if ok and what then
            return refuse(entry, HOPELESS, "too late")
        elseif not ok then
            failed(what)
        end
    end
    record.entry = entry
    if others == 0 then
        local ok, what = pcall(M.send_at_once, current, entry, entry.arrival_s)
        if ok and what then
            return
        elseif not ok then
            failed(what)
        end
    end
    M.join(entry)
    step()
    local in_time = true
    if entry.waits then
        entry.semaphore = semaphore.new(0)
        in_time = wait(entry, hold.longest_hold_s)
    end
    if entry.hopeless then
        return refuse(entry, HOPELESS, "too late")
    elseif not in_time then
        return refuse(entry, EXPIRED, "held too long")
    end
end

-- The server that the request waited for, once; nil without one. A location may pass to another group than it says.
function M.take_bound(record, group_name)
    local choice, entry = record.bound, record.entry
    if entry and entry.watched then
        entry.arrival_s, entry.watched = now_s(), false   -- its body has been read, as for those that are held
    end
    record.bound = nil
    if choice and choice.group.name ~= group_name then
        inflight.add(choice, -1)
        M.freed()
        return nil
    end
    return choice
end

-- The last byte of an answer has come, or the request has ended: counts lateness, from arrival on.
local function note_answer(record)
    local entry = record.entry
    if entry and not record.refused then   -- its error page may come from a server
        local answered_s = now_s() - entry.arrival_s
        add(entry, ANSWERED)
        count_time(entry, ANSWERED_S, ANSWER_BUCKETS, max(0, answered_s))
        if answered_s > entry.deadline_s then
            add(entry, LATE)
        end
    end
end

-- body_filter_by_lua of a location of a group: a slow client keeps no slot.
function M.answered()
    if not ngx.arg[2] then
        return
    end
    local record = records.find()
    if record and record.bound then   -- a cache has answered
        inflight.add(record.bound, -1)
        record.bound = nil
        M.freed()
    end
    if record and record.choice and not record.released then
        record.released = true
        if not record.uncounted then
            inflight.add(record.choice, -1)
        end
        note_answer(record)
        M.freed()
    end
end

-- Log phase: what the request still has goes back.
function M.leave(record, status)
    local entry = record.entry
    if entry and entry.waits then
        note_hold(entry, now_s())
        add(entry, GONE)
        leave_line(entry)
    end
    if record.bound then
        inflight.add(record.bound, -1)
        record.bound = nil
    end
    if entry and record.choice and not record.released and status ~= CLIENT_GONE then
        note_answer(record)
    end
    M.freed()
end

-- Cumulative, as vts writes histograms.
local function histogram_json(block, buckets)
    local counts, sum = {}, 0
    for index = 1, #counters.bounds do
        sum = sum + rows.total(block, buckets + index)
        counts[index] = sum
    end
    return format('{"msecs":[%s],"counters":[%s]}', concat(counters.bounds, ","), concat(counts, ","))
end

local function group_json(name)
    local block, total = blocks[name], rows.total
    return format(
        '{"group":"%s","inLine":%d,"asked":%.0f,"would":%.0f,"held":%.0f,"heldS":%.17g,"full":%.0f,"expired":%.0f,'
        .. '"hopeless":%.0f,"gone":%.0f,"passed":%.0f,"answered":%.0f,"late":%.0f,"answeredS":%.17g,"heldBuckets":%s,"answerBuckets":%s}',
        name, total(block, IN_LINE), total(block, ASKED), total(block, WOULD), total(block, HELD), total(block, HELD_S),
        total(block, FULL), total(block, EXPIRED), total(block, HOPELESS), total(block, GONE), total(block, PASSED), total(block, ANSWERED),
        total(block, LATE), total(block, ANSWERED_S), histogram_json(block, HELD_BUCKETS),
        histogram_json(block, ANSWER_BUCKETS)
    )
end

-- The `holding` block of the statistics; the state is `absent` where no location asks for a slot.
function M.json()
    local parts = {}
    for index = 1, #names do
        parts[index] = group_json(names[index])
    end
    local state = asks and state_of(control.current(), now_s()) or "absent"
    return format('{"state":"%s","kept":"%s","groups":[%s]}', state, control.kept(), concat(parts, ","))
end

return M
