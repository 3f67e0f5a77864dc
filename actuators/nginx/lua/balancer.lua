-- Chooses a server for each request from shared memory: no reload, no lost state. Called by balancer_by_lua (pick) and,
-- through status.lua, by the log phase (take, finish).
-- Own code: lua-resty-balancer has round robin and hashing per worker, without least_conn, expected_delay, passive
-- health, and counts over all workers.
local M = {}

local admission = require "admission"
local cold = require "cold"
local counters = require "counters"
local inflight = require "inflight"
local health = require "health"
local control = require "control"
local late = require "late"
local methods = require "methods"
local records = require "records"
local rows = require "rows"
local samples = require "samples"
local peer = require "ngx.balancer"

local ngx, now_s = ngx, ngx.now
local format, concat, tostring = string.format, table.concat, tostring
local CLIENT_GONE = 499
local NO_LIVE_SERVER = -3   -- NGX_BUSY: NGINX answers 502
local IN_FLIGHT, ANSWERS, IDLE, IDLE_MS = counters.IN_FLIGHT, counters.ANSWERS, counters.IDLE, counters.IDLE_MS
local WAIT, SERVICE = counters.WAIT, counters.SERVICE

local layout, zones
local index_of         -- address -> server
local addresses = {}   -- server -> { host, port }

-- The cells of counters.lua are the choices; each gets its group and server. A server has one index in all groups.
local function read_layout(groups)
    layout, index_of = { names = {}, choices_of = {}, groups = {}, by_name = {} }, {}
    for index, group in ipairs(groups) do
        local own = { name = group.name, servers = {}, choices = {} }
        layout.groups[index], layout.by_name[group.name] = own, own
        for _, choice in ipairs(group.order) do
            local server = index_of[choice.server]
            if not server then
                server = #layout.names + 1
                layout.names[server], layout.choices_of[server], index_of[choice.server] = choice.server, {}, server
            end
            choice.group, choice.index = own, server
            table.insert(own.servers, server)
            table.insert(layout.choices_of[server], choice)
            own.choices[server] = choice
        end
    end
end

local function read_addresses()
    for server, name in ipairs(layout.names) do
        local host, port = name:match("^(.*):(%d+)$")
        if name:find("^unix:") or not host then
            host, port = name, name:find("^unix:") and 0 or 80
        end
        addresses[server] = { host = host, port = tonumber(port) }
    end
end

-- options: groups (of counters.lua), token, method, methods (group -> method of `configured`), zones (group -> whether
-- max_conns counts the requests of all workers, not only of this one), workers, balancers, shared_health (health.lua).
function M.init(options)
    local dict = ngx.shared.deepsched_balancer
    read_layout(options.groups)
    read_addresses()
    zones = options.zones
    health.init(dict, layout, options)
    late.init(dict, options.groups, options.holds)
    methods.init(dict)
    samples.init(dict)
    control.init(dict, layout, options)
end

function M.init_worker()
    math.randomseed(ngx.worker.pid() + ngx.now())
    control.seed(ngx.worker.id() * 7919)
end

M.serve, M.enter, M.answered = control.serve, late.enter, late.answered

local function has_room(group, choice)
    local most = choice.max_conns
    if most == 0 then
        return true
    end
    return (zones[group.name] and inflight.of_group(choice) or choice.own[IN_FLIGHT]) < most
end

-- Of these servers those that may be used: not tried by the request and not full. First the ones in rotation, second
-- all of them, third one whose pause is over.
local function usable(group, servers, tried, now, troubled)
    local healthy, others, due = {}, {}, nil
    for index = 1, #servers do
        local server = servers[index]
        local choice = group.choices[server]
        if not (tried and tried[server]) and has_room(group, choice) then
            others[#others + 1] = server
            if not troubled or not health.is_out(choice, now) then
                healthy[#healthy + 1] = server
                if troubled and not due and health.is_due(choice, now) then
                    due = server
                end
            end
        end
    end
    return healthy, others, due
end

-- Servers for the request: its first attempt tries a server whose pause is over; else those in rotation, `backup` ones
-- when there are no others; those out of rotation when there is none.
local function candidates(group, tried, now, troubled)
    local healthy, others, due = usable(group, group.up, tried, now, troubled)
    if #healthy > 0 and #healthy == #group.up and not due then
        return group.up
    end
    if #healthy == 0 and #group.backup > 0 then
        local spare, spare_others, spare_due = usable(group, group.backup, tried, now, troubled)
        healthy, due = spare, spare_due
        others = #others > 0 and others or spare_others
    end
    if due and not tried then
        return { due }
    end
    return #healthy > 0 and healthy or others
end

-- What an attempt says of its server: `silent` when no byte came. It was a trial of the server if the record says so.
local function judge(record, choice, status, silent)
    if silent then
        health.failed(choice, now_s())
    elseif status >= 500 or health.trouble() then
        health.answered(choice, now_s(), status >= 500 and 1 or 0, record.is_trial)
    end
end

-- Accounts for the server that this request used before: a retry, or an error_page that is balanced too.
local function settle_previous(record)
    local choice, kind = record.choice, peer.get_last_failure()
    if choice then
        local status, silent = nil, nil
        if not kind then
            status, silent = records.answer(record, 1)   -- the present attempt has its entry already
        end
        if status then
            judge(record, choice, status, silent)
        end
        if not (record.uncounted or record.released) then
            inflight.add(choice, -1)
        end
        record.choice = nil
        late.freed()
    end
    if not kind then
        record.tried = nil
    elseif choice then
        -- As NGINX does, the only server of a group is asked again: it may just have closed a kept connection.
        if #choice.group.servers > 1 then
            record.tried = record.tried or {}
            record.tried[choice.index] = true
        end
        if kind ~= "next" then
            health.failed(choice, now_s())
        end
    end
end

-- The servers that a request may go to; none when all are down or full.
local function open_servers(group, tried, now, troubled)
    if troubled or tried or group.limited or #group.up == 0 then
        return candidates(group, tried, now, troubled)
    end
    return group.up
end
late.open_servers = open_servers

-- The new control or its base: one of them for all attempts of a request.
local function arm_of(current, record)
    if record.is_new == nil then
        record.is_new = control.draws_new(current)
    end
    return record.is_new and current or current.base
end

-- Chooses a server now; nil when none may be used.
local function choose(current, group, record)
    local troubled = health.trouble()
    local now = troubled and now_s() or 0
    local open = open_servers(group, record.tried, now, troubled)
    if #open == 0 then
        return nil
    end
    local method = late.fails_open(current) and "least_conn" or group.rule
    local server, wait_s, service_s = methods[method](group, open, now, troubled)
    local choice = group.choices[server]
    record.wait_s, record.service_s = wait_s, service_s
    record.idle = inflight.of_server(group.choices_of[server]) < group.workers[server]
    if not record.uncounted then
        inflight.add(choice, 1)
    end
    record.is_trial = troubled and health.picked(choice, now)
    return choice
end

-- balancer_by_lua of a group.
function M.pick(group_name)
    local current, record = control.current(), records.get()
    if current.base then
        current = arm_of(current, record)
    end
    local group = current.by_name[group_name]
    if record.attempts > 0 then
        settle_previous(record)
    elseif not record.block then
        admission.count(record, group_name)
    end
    local choice = late.take_bound(record, group_name) or choose(current, group, record)
    record.attempts, record.group = record.attempts + 1, group_name
    if not choice then
        return ngx.exit(NO_LIVE_SERVER)
    end
    record.choice, record.released = choice, false
    local address = addresses[choice.index]
    local ok, problem = peer.set_current_peer(address.host, address.port)
    if not ok then
        ngx.log(ngx.ERR, "cannot use server ", address.host, ": ", problem)
        return ngx.exit(500)
    end
end

-- Log phase: the record of the request, nil when no server was chosen for it.
function M.take()
    local cut_off = records.take_cut_off()
    while cut_off do
        M.finish(cut_off, CLIENT_GONE, 0, 0)
        cut_off = records.take_cut_off()
    end
    return records.take()
end

-- Log phase of every request and subrequest with a record: status of the server's answer in the last attempt (499 when the
-- client has gone), upstream time of the last attempt and of all attempts in ms.
function M.finish(record, status, response_ms, total_ms)
    admission.leave(record, status, total_ms)
    local choice = record.choice
    if choice then
        local own = choice.own
        if not (record.released or record.uncounted) then
            own[IN_FLIGHT] = own[IN_FLIGHT] - 1
        end
        if status >= 500 then
            local _, silent = records.answer(record, 0)
            judge(record, choice, status, silent)
        elseif status ~= CLIENT_GONE then
            own[ANSWERS] = own[ANSWERS] + 1
            if record.idle then
                own[IDLE], own[IDLE_MS] = own[IDLE] + 1, own[IDLE_MS] + response_ms
                local rate = control.current().samples
                if rate and record.service_s and record.attempts == 1 then
                    samples.note(rate, choice.group.name, response_ms, record.service_s)
                end
            end
            if record.wait_s then
                own[WAIT], own[SERVICE] = own[WAIT] + record.wait_s, own[SERVICE] + record.service_s
            end
            judge(record, choice, status, false)
        end
    end
    late.leave(record, status)
    records.give_back(record)
end

-- Weight and down in force; a service time tau is shown as a weight in proportion to 1/tau.
function M.weight(group_name, server_name)
    local current = control.current()
    local group, members = current.by_name[group_name], layout.by_name[group_name].servers
    local server, least = index_of[server_name], math.huge
    if not current.learned then
        return group.weight[server], group.down[server] == true
    end
    for index = 1, #members do
        least = math.min(least, group.tau_s[members[index]])
    end
    return math.max(1, math.floor(100 * least / group.tau_s[server] + 0.5)), group.down[server] == true
end

local function entry_json(group, server, current)
    local choice, total = group.choices[server], rows.total
    return format(
        '{"group":"%s","server":"%s","requests":%.0f,"idleRequests":%.0f,"idleResponseMsec":%.0f,"predictedWaitS":%.17g,'
        .. '"predictedServiceS":%.17g,"inFlight":%d,"tauS":%.17g,"workers":%.17g,"out":%s}',
        group.name, layout.names[server], total(choice, ANSWERS), total(choice, IDLE), total(choice, IDLE_MS),
        total(choice, WAIT), total(choice, SERVICE), total(choice, IN_FLIGHT), group.tau_s[server] or 0,
        current.workers[server], tostring(health.trouble() and health.is_out(choice, now_s()))
    )
end

-- The members of the `deepsched` block of the statistics.
function M.json()
    local current, parts = control.current(), {}
    for index = 1, #current.groups do
        local group = current.groups[index]
        local members = layout.groups[index].servers
        for position = 1, #members do
            parts[#parts + 1] = entry_json(group, members[position], current)
        end
    end
    return format(
        '"method":"%s","version":%d,"servers":[%s],"holding":%s', current.method, control.version(), concat(parts, ","),
        late.json()
    )
end

return M
