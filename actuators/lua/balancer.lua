-- Chooses a server per request from shared memory: no reload, no lost state. Called by balancer_by_lua (pick)
-- and, through status.lua, by the log phase (finish).
local M = {}

local cold = require "cold"
local inflight = require "inflight"
local health = require "health"
local control = require "control"
local methods = require "methods"
local peer = require "ngx.balancer"

local ngx, var = ngx, ngx.var
local format, concat, tostring = string.format, table.concat, tostring
local CLIENT_GONE = 499
local NO_LIVE_SERVER = -3   -- NGX_BUSY: NGINX answers 502

local dict, layout
local index_of         -- address -> server
local members_of       -- group name -> its servers
local addresses = {}   -- server -> { host, port }
local choices = {}     -- "GROUP SERVER" (indices) -> choice
local sums = {}        -- choice id -> keys of its sums

-- The groups and servers of a rendered upstreams file, each server once.
local function read_layout(groups)
    layout, index_of, members_of = { names = {}, groups = {} }, {}, {}
    for index, group in ipairs(groups) do
        layout.groups[index] = { name = group.name, servers = {} }
        for _, name in ipairs(group.servers) do
            if not index_of[name] then
                layout.names[#layout.names + 1] = name
                index_of[name] = #layout.names
            end
            table.insert(layout.groups[index].servers, index_of[name])
        end
        members_of[group.name] = layout.groups[index].servers
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

local function create_sums()
    for index, group in ipairs(layout.groups) do
        for _, server in ipairs(group.servers) do
            local choice = inflight.choice(index, server)
            choice.id = index .. " " .. server
            choices[choice.id] = choice
            local prefix, keys = group.name .. "@" .. layout.names[server] .. " ", {}
            for _, name in ipairs { "requests", "idle", "idle_ms", "wait", "service" } do
                keys[name] = prefix .. name
                dict:safe_add(keys[name], 0)
            end
            sums[choice.id] = keys
        end
    end
end

-- options: groups ({ { name, servers = { address } } }), token, method, workers, max_fails, fail_timeout_s.
function M.init(options)
    dict = ngx.shared.deepsched_balancer
    read_layout(options.groups)
    read_addresses()
    create_sums()
    inflight.init(dict, layout.names, #layout.groups)
    health.init(dict, layout.names, options)
    methods.init(dict)
    control.init(dict, layout, options)
end

function M.init_worker()
    if ngx.worker.id() then
        math.randomseed(ngx.worker.pid() + ngx.now())
        cold(inflight.init_worker)
    end
end

M.serve = control.serve

-- Servers that may take the request: up, not tried by it, not out; when that leaves none, the best that is left.
local function candidates(group, tried, now, troubled)
    if not troubled and not tried then
        return group.up
    end
    local healthy, left = {}, {}
    for index = 1, #group.up do
        local server = group.up[index]
        if not (tried and tried[server]) then
            left[#left + 1] = server
            if not health.is_out(server, now) then
                healthy[#healthy + 1] = server
            end
        end
    end
    return #healthy > 0 and healthy or left
end

-- The server that this request used before: a retry, or an error_page that came through here and wiped ngx.ctx.
local function settle_previous(ctx, now)
    local choice = ctx.choice
    if choice then
        ctx.tried = ctx.tried or {}
        ctx.tried[choice.server] = true
        local kind = peer.get_last_failure()
        if kind ~= "next" then
            health.failed(choice.server, now)
        end
    else
        choice = choices[var.deepsched_choice or ""]
    end
    if choice then
        inflight.release(choice)
    end
end

-- balancer_by_lua of a group.
function M.pick(group_name)
    local now, ctx, current = ngx.now(), ngx.ctx, control.current()
    local group = current.by_name[group_name]
    settle_previous(ctx, now)
    local troubled = health.trouble(now)
    local open = candidates(group, ctx.tried, now, troubled)
    if #open == 0 then
        ctx.choice, var.deepsched_choice = nil, ""
        return ngx.exit(NO_LIVE_SERVER)
    end
    local server, wait_s, service_s = methods[current.rule](group, open, now, troubled)
    local choice, address = group.choices[server], addresses[server]
    ctx.choice, ctx.wait_s, ctx.service_s = choice, wait_s, service_s
    var.deepsched_choice = choice.id
    ctx.idle = inflight.add(choice) < group.workers[server]
    if troubled then
        health.picked(server, now)
    end
    local ok, problem = peer.set_current_peer(address.host, address.port)
    if not ok then
        ngx.log(ngx.ERR, "cannot use server ", address.host, ": ", problem)
        return ngx.exit(500)
    end
end

local function no_answer(status)
    return (status == 502 or status == 504) and (var.upstream_bytes_received or "0"):match("[^%s,]+$") == "0"
end

local function note_health(server, status)
    local now = ngx.now()
    if status >= 500 then
        if no_answer(status) then
            health.failed(server, now)
        else
            health.scored(server, now, 1)
        end
    elseif health.trouble(now) and status ~= CLIENT_GONE then
        health.answered(server, now)
    end
end

local function add_sums(ctx, choice, response_ms)
    local keys = sums[choice.id]
    dict:incr(keys.requests, 1)
    if ctx.idle then
        dict:incr(keys.idle, 1)
        dict:incr(keys.idle_ms, response_ms)
    end
    if ctx.wait_s then
        dict:incr(keys.wait, ctx.wait_s)
        dict:incr(keys.service, ctx.service_s)
    end
end

-- Group of the request's last choice; nil when it never came here.
function M.group_name()
    local choice = ngx.ctx.choice or choices[var.deepsched_choice or ""]
    return choice and layout.groups[choice.group].name
end

-- Log phase of every request and subrequest: status of the answer, upstream time of the last attempt in ms.
function M.finish(status, response_ms)
    local ctx = ngx.ctx
    local choice = ctx.choice or choices[var.deepsched_choice or ""]
    if not choice then
        return
    end
    inflight.release(choice)
    if ngx.is_subrequest then
        var.deepsched_choice = "" -- the main request shares the variable
    end
    note_health(choice.server, status)
    if ctx.choice and status < 500 and status ~= CLIENT_GONE then
        add_sums(ctx, choice, response_ms)
    end
end

-- Weight and down in force; a service time is shown as the weight that stands for it, 1/tau.
function M.weight(group_name, server_name)
    local current = control.current()
    local group, members = current.by_name[group_name], members_of[group_name]
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
    local keys, now = sums[group.choices[server].id], ngx.now()
    return format(
        '{"group":"%s","server":"%s","requests":%.0f,"idleRequests":%.0f,"idleResponseMsec":%.0f,"predictedWaitS":%.17g,'
        .. '"predictedServiceS":%.17g,"inFlight":%d,"tauS":%.17g,"workers":%.17g,"out":%s}',
        group.name, layout.names[server], dict:get(keys.requests), dict:get(keys.idle), dict:get(keys.idle_ms),
        dict:get(keys.wait), dict:get(keys.service), inflight.of_group(group.choices[server]), group.tau_s[server] or 0,
        current.workers[server], tostring(health.trouble(now) and health.is_out(server, now))
    )
end

-- The `deepsched` block of the statistics.
function M.json(start_ms)
    local current, parts = control.current(), {}
    for index = 1, #current.groups do
        local group = current.groups[index]
        local members = members_of[group.name]
        for position = 1, #members do
            parts[#parts + 1] = entry_json(group, members[position], current)
        end
    end
    return format('{"startMsec":%.0f,"method":"%s","version":%d,"servers":[%s]}',
        start_ms, current.method, control.version(), concat(parts, ","))
end

return M
