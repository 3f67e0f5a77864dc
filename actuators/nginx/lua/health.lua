-- Passive health of servers, shared by all groups and workers: max_fails and fail_timeout as in NGINX (out of rotation
-- for a while, then one request tries), and an error score that expected_delay adds to its estimate.
local M = {}

local rows = require "rows"
local exp, now_s = math.exp, ngx.now
local SCORE_GAIN, SCORE_DECAY_S, SCORE_LASTS_S = 0.1, 5, 60

local dict, max_fails, fail_timeout_s
local keys = {}       -- per server: fails, out_until, score, score_at
local trouble_until   -- trouble_until[0]: seconds; 0 until the first failure

function M.init(shared_dict, names, options)
    dict, max_fails, fail_timeout_s = shared_dict, options.max_fails, options.fail_timeout_s
    trouble_until = rows.numbers("trouble until")
    for server, name in ipairs(names) do
        keys[server] = {
            fails = "fails " .. name, out_until = "out_until " .. name, score = "score " .. name, score_at = "score_at " .. name,
        }
    end
end

-- True while any server is out of rotation or has an error score; the other functions need not be called otherwise.
function M.trouble()
    return trouble_until[0] > 0 and now_s() < trouble_until[0]
end

local function lengthen_trouble(now, seconds)
    if trouble_until[0] < now + seconds then
        trouble_until[0] = now + seconds
    end
end

-- Out of rotation. After fail_timeout one request may try (see `picked`).
function M.is_out(server, now)
    return (dict:get(keys[server].out_until) or 0) > now
end

-- The server was chosen. When its pause has just ended, this request tries it and the others wait for the outcome.
function M.picked(server, now)
    local out_until = dict:get(keys[server].out_until)
    if out_until and out_until > 0 then
        dict:set(keys[server].out_until, now + fail_timeout_s)
        lengthen_trouble(now, 2 * fail_timeout_s)
    end
end

-- No connection, no response in time, or a response that proxy_next_upstream retries.
function M.failed(server, now)
    M.scored(server, now, 1)
    if max_fails == 0 then
        return
    end
    local fails = dict:incr(keys[server].fails, 1, 0, fail_timeout_s)
    if fails and fails >= max_fails then
        dict:set(keys[server].out_until, now + fail_timeout_s)
        -- The end of a pause must be noticed, however late the next request comes.
        lengthen_trouble(now, 1e9)
    end
end

local function any_out()
    for server = 1, #keys do
        if (dict:get(keys[server].out_until) or 0) > 0 then
            return true
        end
    end
    return false
end

-- A response; is_error is 1 from status 500 on. A server on trial is back in rotation, as in NGINX.
function M.answered(server, now, is_error)
    M.scored(server, now, is_error)
    if (dict:get(keys[server].out_until) or 0) > 0 then
        dict:set(keys[server].out_until, 0)
        dict:delete(keys[server].fails)
        if not any_out() then
            trouble_until[0] = now + SCORE_LASTS_S
        end
    end
end

-- Moves the error score by one response: is_error is 1 or 0.
function M.scored(server, now, is_error)
    local score = M.score(server, now)
    if score > 0 or is_error > 0 then
        dict:set(keys[server].score, score + SCORE_GAIN * (is_error - score))
        dict:set(keys[server].score_at, now)
        if is_error > 0 then
            lengthen_trouble(now, SCORE_LASTS_S)
        end
    end
end

-- Forgets all failures, as a start does: servers that begin anew must not be avoided for earlier failures.
function M.forget()
    for server = 1, #keys do
        for _, key in pairs(keys[server]) do
            dict:delete(key)
        end
    end
    trouble_until[0] = 0
end

-- Recent share of errors, 0 … 1; it decays within seconds.
function M.score(server, now)
    local score = dict:get(keys[server].score)
    if not score then
        return 0
    end
    return score * exp((dict:get(keys[server].score_at) - now) / SCORE_DECAY_S)
end

return M
