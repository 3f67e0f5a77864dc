-- What the balancer knows of each request from the choice of a server to the log phase. The key is the address of the
-- request, which an error_page or a retry does not change (they clear ngx.ctx). Records are reused.
-- A record: attempts (servers chosen so far), choice (the last one), group (of the last attempt), tried, wait_s, service_s, idle, is_new (whether the
-- new control balances it; nil outside of a canary), of admission.lua block, entered_s, refused, and of late.lua entry,
-- bound (a server that it has a slot of), released (its slot is free again), uncounted (it takes none), held_s;
-- is_trial (it tries a server whose pause is over).
local M = {}

local ffi = require "ffi"
local get_request = require("resty.core.base").get_request
local ngx, cast, tonumber, format, gmatch = ngx, ffi.cast, tonumber, string.format, string.gmatch
local ADDRESS = ffi.typeof("intptr_t")
local variable = getmetatable(ngx.var).__index   -- LuaJIT does not compile calls through the metatable

local open, spare, spares = {}, {}, 0
local subrequests = 0   -- number of open records that belong to subrequests

-- A subrequest shares its variables with the main request, which can so find it when it never reaches its log phase.
local function note_subrequest(key)
    ngx.var.deepsched_subrequests = (ngx.var.deepsched_subrequests or "") .. format("%.0f ", key)
    subrequests = subrequests + 1
end

-- The record of the current request, nil without one.
function M.find()
    return open[tonumber(cast(ADDRESS, get_request()))]
end

-- The record of the current request; a new one has no attempts. is_main: the caller knows that it is a main request.
function M.get(is_main)
    local key = tonumber(cast(ADDRESS, get_request()))
    local record = open[key]
    if not record then
        if spares > 0 then
            record, spares = spare[spares], spares - 1
        else
            record = { attempts = 0, choice = nil, group = nil, tried = nil, wait_s = nil, service_s = nil, idle = false, is_sub = false,
                is_new = nil, block = nil, entered_s = 0, refused = false, entry = nil, bound = nil, released = false,
                uncounted = false, held_s = nil, is_trial = false }
        end
        open[key], record.is_sub = record, not is_main and ngx.is_subrequest
        if record.is_sub then
            note_subrequest(key)
        end
    end
    return record
end

-- $upstream_addr and similar variables are lists, "A, B : C", when a request was retried or redirected.
function M.split(text)
    local parts, count = {}, 0
    for part in gmatch(text or "", "[^%s,]+") do
        if part ~= ":" then
            count = count + 1
            parts[count] = part
        end
    end
    return parts, count
end

-- The place of the record's last attempt in such lists, whose last `others` entries are not its; nil when it is not known.
-- NGINX may have asked servers of other upstreams before, between and after.
local function place(record, others)
    local _, count = M.split(variable(nil, "upstream_status"))
    if count - others == record.attempts then
        return record.attempts
    end
    local servers, last = M.split(variable(nil, "upstream_addr"))
    for index = last, 1, -1 do
        if record.choice and servers[index] == record.choice.server then
            return index
        end
    end
end

-- What the server of the last attempt has answered, and whether no byte came; nil when it is not known.
function M.answer(record, others)
    local index = record.attempts > 0 and place(record, others)
    local status = index and tonumber((M.split(variable(nil, "upstream_status")))[index])
    if not status then
        return nil
    end
    local silent = (status == 502 or status == 504)
        and (M.split(variable(nil, "upstream_bytes_received")))[index] == "0"
    return status, silent
end

-- Whether the current request asks for another protocol. NGINX never upgrades to HTTP/2, for which some clients ask every
-- time.
function M.upgrades()
    local asked = variable(nil, "http_upgrade")
    return asked and asked ~= "" and asked:lower() ~= "h2c"
end

local function take(key)
    local record = open[key]
    if record then
        open[key] = nil
        if record.is_sub then
            subrequests = subrequests - 1
        end
    end
    return record
end

-- Closes the record of the current request and returns it; nil when the request was not balanced.
function M.take()
    return take(tonumber(cast(ADDRESS, get_request())))
end

-- The same for a subrequest of the current main request that was aborted with it; nil when there is none.
function M.take_cut_off()
    if subrequests > 0 and not ngx.is_subrequest then
        for key in gmatch(ngx.var.deepsched_subrequests or "", "%d+") do
            local record = take(tonumber(key))
            if record then
                return record
            end
        end
    end
end

function M.give_back(record)
    record.attempts, record.choice, record.group, record.tried, record.is_new = 0, nil, nil, nil, nil
    record.block, record.refused = nil, false
    record.entry, record.bound, record.released, record.uncounted, record.held_s = nil, nil, false, false, nil
    record.is_trial = false
    spares = spares + 1
    spare[spares] = record
end

return M
