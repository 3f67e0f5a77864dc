-- The control in force: method, weights, service times. A text in shared memory, read again when its version changes.
-- Lines: `method M`, `weight GROUP SERVER N`, `down GROUP SERVER`, `tau GROUP SERVER SECONDS`,
-- `workers SERVER N`, `balancers N`, and of late binding `order O`, `number NAME VALUE`, `slots SERVER N`,
-- `deadline GROUP SECONDS`, and where wanted `importance GROUP NUMBER`, and `never GROUP` for a group of which nothing is refused
-- for being late, and `cost GROUP FEATURE WEIGHT` for what its requests take (cost.lua). A text is put in force completely or not at all.
-- With `canary PERCENT` that share of the requests is balanced by the lines above the line `base`, the rest by those
-- below it. The method `configured` balances each group as its upstream block did.
-- After all that a line `watch` with `slots` and `deadline` lines beneath: what late binding would hold is counted.
local M = {}

local cold = require "cold"
local cost = require "cost"
local decimal = require "decimal"
local health = require "health"
local kept_rule = require "kept_rule"
local samples = require "samples"
local rows = require "rows"
local format, concat = string.format, table.concat

local LARGEST_WEIGHT = 2147483647
local METHODS = { round_robin = true, least_conn = true, random_two = true, expected_delay = true, configured = true }
local BY_TIMES = { expected_delay = true, late_binding = true }
local ORDERS = { response_ratio = true, earliest_deadline = true, fifo = true, shortest = true }
local NUMBERS = {   -- with the least of each
    theta = 1, look_ahead = 1, longest_hold_s = 3, most_held = 1, valid_s = 1, waiting_weight = 0, late_weight = 1,
}
local OPTIONAL = { refuse_factor = 0.1 }

local holds           -- whether locations ask for a slot, so that requests can be held
local dict, layout, token, default_workers, default_balancers, configured_methods
local version, control = -1, nil
local set_at          -- set_at[0]: when a control was set last, seconds since the epoch
local newest          -- newest[0]: the version in the dict, which costs less to read here
local kept            -- file of the control to begin with, nil for none

-- The control of a configuration in which nothing was set yet: the weights and `down` of its server lines.
local function initial_text(method)
    local lines = { "method " .. method }
    for _, group in ipairs(layout.groups) do
        for _, server in ipairs(group.servers) do
            local choice, name = group.choices[server], group.name .. " " .. layout.names[server]
            lines[#lines + 1] = format("weight %s %d", name, choice.weight)
            lines[#lines + 1] = choice.down and "down " .. name or nil
        end
    end
    return concat(lines, "\n") .. "\n"
end

-- The kept control of a start, nil without one. An invalid one gives one line in the error log.
local function kept_text(snippet)
    local text, problem = kept_rule.read(kept, snippet)
    if text then
        local parsed, wrong = M.parse(text)
        problem = not parsed and "refused: " .. wrong or parsed and parsed.method ~= "late_binding" and "it holds nothing" or nil
    end
    if problem then
        ngx.log(ngx.ERR, "nothing is held: ", kept, ": ", problem)
    end
    return text and not problem and text or nil
end

local function index_of(list, name, field)
    for index, value in ipairs(list) do
        if (field and value[field] or value) == name then
            return index
        end
    end
end

local OF_CELL = { weight = true, down = true, tau = true }
local OF_SERVER = { workers = true, slots = true }
local OF_GROUP = { deadline = true, importance = true, never = true, cost = true }

local function is_known(line)
    local word, first, second = line:match("^(%S+) ?(%S*) ?(%S*)")
    if OF_SERVER[word] then
        return index_of(layout.names, first) ~= nil
    elseif OF_GROUP[word] then
        return index_of(layout.groups, first, "name") ~= nil
    elseif OF_CELL[word] then
        local group, server = index_of(layout.groups, first, "name"), index_of(layout.names, second)
        return group and server and layout.groups[group].choices[server] ~= nil
    end
    return true
end

-- What of a text fits the servers of this configuration, which has lost some; else its initial control, without the servers
-- that were out of rotation. The error log names what is gone.
local function fitting(text, initial)
    local kept, gone, down = {}, {}, {}
    for line in text:gmatch("[^\n]+") do
        local known = is_known(line)
        kept[#kept + 1] = known and line or nil
        gone[#gone + 1] = not known and line or nil
        down[#down + 1] = known and line:match("^down .*") or nil
    end
    local rest = concat(kept, "\n") .. "\n"
    if M.parse(rest, true) then
        ngx.log(ngx.ERR, "of the control in force these servers or groups are gone: ", concat(gone, "; "))
        return rest
    end
    ngx.log(ngx.ERR, "the control in force does not fit the servers of this configuration, which begins with its own")
    rest = initial .. concat(down, "\n") .. "\n"
    return M.parse(rest, true) and rest or initial
end

-- `configured` is another word for the one method of a configuration whose groups have the same: its name says more.
local function named(text, method)
    if text and (method == "round_robin" or method == "least_conn" or method == "random_two") then
        return (text:gsub("^method configured\n", "method " .. method .. "\n"))
    end
    return text
end

-- layout: { names = { all servers }, choices_of = { [server] = { choice, … } }, groups = { {
-- name = …, servers = { global indices }, choices = { [server] = choice } }, … } }
function M.init(shared_dict, new_layout, options)
    dict, layout, token = shared_dict, new_layout, options.token
    default_workers, default_balancers, configured_methods = options.workers, options.balancers, options.methods
    newest, set_at = rows.numbers("version"), rows.numbers("control set at")
    holds, METHODS.late_binding = options.holds, options.holds
    dict:safe_add("version", 0)
    local initial = initial_text(options.method)
    kept = options.kept
    local starts = dict:safe_add("control", initial)
    local begun = starts and kept and kept_text(options.snippet)
    if begun then
        dict:set("control", begun)
        dict:incr("version", 1)
        set_at[0] = ngx.now()
    end
    local present = dict:get("control")
    local fits = named(present, options.method)
    if not fits or not M.parse(fits, true) then
        fits = fits and fitting(fits, initial) or initial
    end
    if fits ~= present then
        dict:set("control", fits)
        dict:incr("version", 1)
    end
    newest[0] = dict:get("version")
end

local readers = {}

function readers.method(parsed, name)
    parsed.method = METHODS[name] and name
    return parsed.method ~= nil and parsed.method ~= false
end

local function cell(parsed, group_name, server_name)
    local group = index_of(layout.groups, group_name, "name")
    local server = index_of(layout.names, server_name)
    return group and server and parsed.groups[group].choices[server] and parsed.groups[group], server
end

function readers.weight(parsed, group_name, server_name, value)
    local group, server = cell(parsed, group_name, server_name)
    value = decimal(value)
    if not group or not value or value < 1 or value > LARGEST_WEIGHT or value % 1 ~= 0 then
        return false
    end
    group.weight[server] = value
    return true
end

function readers.down(parsed, group_name, server_name)
    local group, server = cell(parsed, group_name, server_name)
    if group then
        group.down[server] = true
    end
    return group
end

function readers.tau(parsed, group_name, server_name, value)
    local group, server = cell(parsed, group_name, server_name)
    value = decimal(value)
    if not group or not value or not (value > 0 and value < 1e6) then
        return false
    end
    group.tau_s[server] = value
    return true
end

function readers.workers(parsed, server_name, value)
    local server = index_of(layout.names, server_name)
    value = decimal(value)
    if not server or not value or not (value >= 0.25 and value < 1e6) then
        return false
    end
    parsed.workers[server] = value
    return true
end

function readers.balancers(parsed, value)
    value = decimal(value)
    if not value or not (value >= 1 and value < 1e4) then
        return false
    end
    parsed.balancers = value
    return true
end

function readers.order(parsed, name)
    parsed.hold.order = ORDERS[name] and name
    return parsed.hold.order
end

function readers.number(parsed, name, value)
    local least = NUMBERS[name] or OPTIONAL[name]
    value = decimal(value)
    if not least or not value or not (value >= least and value < 1e9) then
        return false
    end
    parsed.hold[name] = value
    return true
end

function readers.slots(parsed, server_name, value)
    local server = index_of(layout.names, server_name)
    value = decimal(value)
    if not server or not value or not (value >= 1 and value < 1e9) then
        return false
    end
    parsed.hold.slots[server] = value
    return true
end

function readers.deadline(parsed, group_name, value)
    local group = index_of(layout.groups, group_name, "name")
    value = decimal(value)
    if not group or not value or not (value > 0 and value < 1e9) then
        return false
    end
    parsed.groups[group].deadline_s = value
    return true
end

function readers.importance(parsed, group_name, value)
    local group = index_of(layout.groups, group_name, "name")
    value = decimal(value)
    if not group or not value or not (value > 0 and value < 1e9) then
        return false
    end
    parsed.groups[group].worth = value
    return true
end

function readers.never(parsed, group_name)
    local group = index_of(layout.groups, group_name, "name")
    if group then
        parsed.groups[group].never = true
    end
    return group
end

function readers.cost(parsed, group_name, feature, value)
    local group = index_of(layout.groups, group_name, "name")
    if not group then
        return false
    end
    local own = parsed.groups[group]
    own.cost = own.cost or {}
    parsed.costs = true
    return cost.add(own.cost, feature, decimal(value))
end

-- So many samples a second are kept of what requests cost (samples.lua).
function readers.samples(parsed, value)
    value = decimal(value)
    if not value or not (value > 0 and value <= 1000) then
        return false
    end
    parsed.samples = value
    return true
end

function readers.canary(parsed, value)
    value = decimal(value)
    if not value or not (value > 0 and value < 100) then
        return false
    end
    parsed.percent = value
    return true
end

local function empty(arm)
    local parsed = { groups = {}, workers = {}, balancers = default_balancers, hold = { slots = {} } }
    for index, group in ipairs(layout.groups) do
        local own = {
            index = index, name = group.name, weight = {}, down = {}, tau_s = {}, choices = group.choices, up = {},
            backup = {}, limited = false, choices_of = layout.choices_of, current = {}, workers = parsed.workers,
            position_key = "position " .. arm .. group.name, worth = 1, never = false, cost = nil,
        }
        for _, server in ipairs(group.servers) do
            own.weight[server] = 1
        end
        parsed.groups[index] = own
    end
    for server = 1, #layout.names do
        parsed.workers[server] = default_workers
    end
    return parsed
end

-- Without service times the rule is worse than least_conn, so it works as least_conn until it has them.
local function rule_of(parsed, group)
    if parsed.method == "configured" then
        return configured_methods[group.name]
    end
    if BY_TIMES[parsed.method] then
        return parsed.learned and "expected_delay" or "least_conn"
    end
    return parsed.method
end

-- Whether what late binding needs is there completely or not at all; then `parsed.hold` is nil.
local function complete_hold(parsed)
    local hold, given, missing = parsed.hold, next(parsed.hold.slots) or parsed.hold.order, not parsed.hold.order
    for server = 1, #layout.names do
        missing = missing or not hold.slots[server]
    end
    for _, group in ipairs(parsed.groups) do
        given, missing = given or group.deadline_s, missing or not group.deadline_s
    end
    for name in pairs(NUMBERS) do
        given, missing = given or hold[name], missing or not hold[name]
    end
    parsed.hold = not missing and hold or nil
    given = given or parsed.costs
    return not given or not missing and parsed.method == "late_binding"
end

-- Fills group.up and group.backup, the servers that are not down; false when there are none.
local function divide(group, servers)
    for _, server in ipairs(servers) do
        local choice = group.choices[server]
        if not group.down[server] then
            local members = choice.backup and group.backup or group.up
            members[#members + 1] = server
        end
        group.limited = group.limited or choice.max_conns > 0
    end
    return #group.up + #group.backup > 0
end

-- Adds what the methods need; false when a group has no server or the text has no method.
local function complete(parsed)
    parsed.learned, parsed.by_name = BY_TIMES[parsed.method] == true, {}
    local tau_of = {}
    for server = 1, #layout.names do
        tau_of[server] = {}
    end
    for index, group in ipairs(parsed.groups) do
        local servers = layout.groups[index].servers
        parsed.by_name[group.name], group.balancers, group.tau_of = group, parsed.balancers, tau_of
        local sum_s = 0
        for _, server in ipairs(servers) do
            sum_s = sum_s + (group.tau_s[server] or 0)
            -- In the order of layout.choices_of.
            table.insert(tau_of[server], group.tau_s[server] or 0)
            parsed.learned = parsed.learned and group.tau_s[server] ~= nil
        end
        group.mean_tau_s = sum_s / #servers
        if not divide(group, servers) then
            return false
        end
    end
    if not complete_hold(parsed) then
        return false
    end
    for _, group in ipairs(parsed.groups) do
        group.rule = rule_of(parsed, group)
        if not group.rule then
            return false   -- `configured` where no upstream block says how
        end
    end
    return parsed.method
end

local function parse_arm(text, arm)
    local parsed = empty(arm)
    for line in text:gmatch("[^\n]+") do
        local word, rest = line:match("^(%S+) (.+)$")
        local arguments = {}
        for argument in (rest or ""):gmatch("%S+") do
            arguments[#arguments + 1] = argument
        end
        if not readers[word] or not readers[word](parsed, unpack(arguments)) then
            return nil, line
        end
    end
    if not complete(parsed) then
        return nil, "no method, a group without a usable server, or not all of late binding"
    end
    return parsed
end

-- Slots of every server and deadlines of every group; nil when the lines are not these.
local function parse_watch(text)
    local parsed, watch = empty("watch "), { slots = {}, deadline_s = {} }
    for line in text:gmatch("[^\n]+") do
        local word, name, value = line:match("^(%S+) (%S+) (%S+)$")
        if not (word == "slots" or word == "deadline") or not readers[word](parsed, name, value) then
            return nil
        end
    end
    for server = 1, #layout.names do
        watch.slots[server] = parsed.hold.slots[server]
    end
    for _, group in ipairs(parsed.groups) do
        watch.deadline_s[group.name] = group.deadline_s
        if not group.deadline_s then
            return nil
        end
    end
    return #watch.slots == #layout.names and watch or nil
end

-- The control of a text, whose `base` is another control under `canary`; nil and the wrong line when it is invalid.
-- lenient: a watch that does not fit is left out.
function M.parse(text, lenient)
    local rest, watch_text = text:match("^(.-\n)watch\n(.*)$")
    text = rest or text
    local new, base_text = text:match("^(.-\n)base\n(.*)$")
    local parsed, problem = parse_arm(new or text, "")
    if not parsed then
        return nil, problem
    end
    if watch_text then
        parsed.watch = holds and parsed.method ~= "late_binding" and parse_watch(watch_text) or nil
        if not (parsed.watch or lenient) then
            return nil, "watch: not all slots and deadlines, beside late_binding, or no location asks for a slot"
        end
    end
    if base_text then
        parsed.base, problem = parse_arm(base_text, "base ")
        if not parsed.base then
            return nil, problem
        end
    end
    if (parsed.percent ~= nil) ~= (parsed.base ~= nil) or parsed.base and parsed.base.percent then
        return nil, "canary and base need each other"
    elseif parsed.base and (parsed.method == "late_binding" or parsed.base.method == "late_binding") then
        return nil, "late_binding beside another method"
    end
    return parsed
end

-- The file of the control that NGINX begins with; "" for none.
function M.kept()
    return kept or ""
end

-- The control in force; cheap when nothing has changed.
function M.current()
    local now = newest[0]
    if now ~= version then
        control = cold(M.parse, dict:get("control"), true) or control
        version = now
    end
    return control
end

-- Whether the next request goes by the new control, which has a base: true in `percent` of 100 calls. MINSTD, so that
-- the worker's math.random, which others use too, changes nothing here.
local draw = 1
function M.draws_new(current)
    draw = draw * 48271 % 2147483647
    return draw * 100 < current.percent * 2147483647
end

-- init_worker: each worker has a sequence of its own. The first numbers of small seeds are small, so they are passed over.
function M.seed(number)
    draw = number % 2147483646 + 1
    for _ = 1, 8 do
        draw = draw * 48271 % 2147483647
    end
end

-- When the control was set last, in seconds since the epoch.
function M.set_at()
    return set_at[0]
end

function M.version()
    return dict:get("version")
end

local function hold_text(current)
    local lines = { "order " .. current.hold.order }
    for name in pairs(NUMBERS) do
        lines[#lines + 1] = format("number %s %.17g", name, current.hold[name])
    end
    for server, slots in ipairs(current.hold.slots) do
        lines[#lines + 1] = format("slots %s %.17g", layout.names[server], slots)
    end
    for name in pairs(OPTIONAL) do
        lines[#lines + 1] = current.hold[name] and format("number %s %.17g", name, current.hold[name]) or nil
    end
    for _, group in ipairs(current.groups) do
        lines[#lines + 1] = format("deadline %s %.17g", group.name, group.deadline_s)
        lines[#lines + 1] = group.worth ~= 1 and format("importance %s %.17g", group.name, group.worth) or nil
        lines[#lines + 1] = group.never and "never " .. group.name or nil
        cost.lines(group.name, group.cost, lines)
    end
    return concat(lines, "\n") .. "\n"
end

local function arm_text(current)
    local lines = { "method " .. current.method, "balancers " .. current.balancers }
    lines[3] = current.samples and format("samples %.17g", current.samples) or nil
    for index, group in ipairs(current.groups) do
        for _, server in ipairs(layout.groups[index].servers) do
            local name = group.name .. " " .. layout.names[server]
            lines[#lines + 1] = format("weight %s %d", name, group.weight[server])
            if group.down[server] then
                lines[#lines + 1] = "down " .. name
            end
            if group.tau_s[server] then
                lines[#lines + 1] = format("tau %s %.17g", name, group.tau_s[server])
            end
        end
    end
    for server, workers in ipairs(current.workers) do
        lines[#lines + 1] = format("workers %s %.17g", layout.names[server], workers)
    end
    return concat(lines, "\n") .. "\n" .. (current.hold and hold_text(current) or "")
end

local function watch_text(watch)
    local lines = { "watch" }
    for server, slots in ipairs(watch.slots) do
        lines[#lines + 1] = format("slots %s %.17g", layout.names[server], slots)
    end
    for name, deadline_s in pairs(watch.deadline_s) do
        lines[#lines + 1] = format("deadline %s %.17g", name, deadline_s)
    end
    return concat(lines, "\n") .. "\n"
end

-- The control that this worker uses, as a text, from its tables.
function M.text()
    local current = M.current()
    local text = arm_text(current)
    if current.base then
        text = format("%scanary %.17g\nbase\n%s", text, current.percent, arm_text(current.base))
    end
    return current.watch and text .. watch_text(current.watch) or text
end

local function refuse(status, reason)
    ngx.status = status
    ngx.say(reason)
end

-- content_by_lua of the control location: GET reads, POST replaces, DELETE forgets which servers failed. POST and DELETE
-- need the token.
function M.serve()
    ngx.header["Content-Type"] = "text/plain"
    local verb = ngx.req.get_method()
    local changes = verb == "POST" or verb == "DELETE"
    if changes and ngx.req.get_headers()["X-Deepsched-Token"] ~= token then
        return refuse(403, "wrong token")
    end
    if verb == "GET" and ngx.var.args == "samples" then
        -- They tell what clients have asked for.
        if ngx.req.get_headers()["X-Deepsched-Token"] ~= token then
            return refuse(403, "wrong token")
        end
        return ngx.print(cold(samples.text))
    end
    if verb == "DELETE" then
        cold(health.forget)
    elseif verb == "POST" then
        ngx.req.read_body()
        local text = ngx.req.get_body_data() or ""
        local parsed, problem = cold(M.parse, text)
        if not parsed then
            return refuse(400, "refused: " .. problem)
        end
        dict:set("control", text)
        newest[0], set_at[0] = dict:incr("version", 1), ngx.now()
    end
    ngx.print(cold(M.text))
end

return M
