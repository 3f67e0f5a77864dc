-- Requests in flight per group and server, over all workers, exact even when a worker is killed.
-- The counts of three groups share one number (17 bits each): one read gives them all.
-- Each worker keeps a second ledger; the worker that replaces a dead one gives its counts back.
local M = {}

local ffi = require "ffi"
ffi.cdef "int kill(int pid, int sig);"

local PER_KEY, RADIX, SLOTS, NO_SUCH_PROCESS = 3, 2 ^ 17, 512, 3
local floor, ceil = math.floor, math.ceil

local dict, keys, chunks, server_count
local ledger          -- keys of this worker's own counts, like `keys`

-- Sizes are fixed for a configuration: `names` of all servers, number of groups.
function M.init(shared_dict, names, groups)
    dict, server_count, chunks = shared_dict, #names, ceil(groups / PER_KEY)
    keys = {}
    for server = 1, server_count do
        keys[server] = {}
        for chunk = 1, chunks do
            keys[server][chunk] = "in_flight " .. names[server] .. " " .. chunk
            dict:safe_add(keys[server][chunk], 0)
        end
    end
end

local function slot_keys(slot)
    local own = {}
    for server = 1, server_count do
        own[server] = {}
        for chunk = 1, chunks do
            own[server][chunk] = "slot " .. slot .. " " .. keys[server][chunk]
        end
    end
    return own
end

local function is_dead(pid)
    return pid == ngx.worker.pid() or (ffi.C.kill(pid, 0) ~= 0 and ffi.errno() == NO_SUCH_PROCESS)
end

local function give_back(slot)
    -- Two workers may start at once: only one of them settles a dead worker's ledger.
    if not dict:add("settling " .. slot, true, 1) then
        return
    end
    local own = slot_keys(slot)
    for server = 1, server_count do
        for chunk = 1, chunks do
            local count = dict:get(own[server][chunk]) or 0
            if count ~= 0 then
                dict:incr(keys[server][chunk], -count)
                dict:set(own[server][chunk], 0)
            end
        end
    end
    dict:delete("slot " .. slot)
    dict:delete("settling " .. slot)
end

-- init_worker: settles what dead workers left, takes a ledger of its own.
function M.init_worker()
    for slot = 1, SLOTS do
        local pid = dict:get("slot " .. slot)
        if pid and is_dead(pid) then
            give_back(slot)
        end
    end
    for slot = 1, SLOTS do
        if dict:add("slot " .. slot, ngx.worker.pid()) then
            ledger = slot_keys(slot)
            for server = 1, server_count do
                for chunk = 1, chunks do
                    dict:set(ledger[server][chunk], 0)
                end
            end
            return
        end
    end
    error("inflight.lua: more than " .. SLOTS .. " workers")
end

-- What one (group, server) choice adds and takes away; built once.
function M.choice(group, server)
    local chunk = ceil(group / PER_KEY)
    return { group = group, server = server, chunk = chunk, unit = RADIX ^ ((group - 1) % PER_KEY) }
end

local function total_of(packed)
    local high = floor(packed / RADIX)
    return packed % RADIX + high % RADIX + floor(high / RADIX)
end

-- Counts one request; returns how many were in flight on the server before it, over all groups.
function M.add(choice)
    local server, chunk = choice.server, choice.chunk
    local packed = dict:incr(keys[server][chunk], choice.unit) or choice.unit
    dict:incr(ledger[server][chunk], choice.unit)
    local total = total_of(packed) - 1
    for other = 1, chunks do
        if other ~= chunk then
            total = total + total_of(dict:get(keys[server][other]) or 0)
        end
    end
    return total
end

function M.release(choice)
    dict:incr(keys[choice.server][choice.chunk], -choice.unit)
    dict:incr(ledger[choice.server][choice.chunk], -choice.unit)
end

-- In flight on a server for one group.
function M.of_group(choice)
    return floor((dict:get(keys[choice.server][choice.chunk]) or 0) / choice.unit) % RADIX
end

-- In flight on a server over all groups, and the work in them: the sum of tau_s[group] (seconds).
function M.load(server, tau_s)
    local count, work = 0, 0
    for chunk = 1, chunks do
        local packed = dict:get(keys[server][chunk]) or 0
        local group = (chunk - 1) * PER_KEY + 1
        while packed > 0 do
            local own = packed % RADIX
            count, work = count + own, work + own * (tau_s[group] or 0)
            packed, group = (packed - own) / RADIX, group + 1
        end
    end
    return count, work
end

return M
