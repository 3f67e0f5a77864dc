-- Passive health of servers, shared by all workers: max_fails and fail_timeout of each server line as in NGINX (out of
-- rotation for a while, then one request tries), and an error score that expected_delay adds to its estimate.
-- NGINX tries when the server's turn comes; here the first request after the pause does, so that a server with a small
-- share is not forgotten. No pause is longer than LONGEST_PAUSE_S.
local M = {}

local rows = require "rows"
local abs, exp, min, now_s = math.abs, math.exp, math.min, ngx.now
local SCORE_GAIN, SCORE_DECAY_S, SCORE_LASTS_S = 0.1, 5, 60
local LONGEST_PAUSE_S = 30
local OUT_UNTIL, SCORE, SCORE_AT = 0, 1, 2   -- columns of a cell's row 0, which all workers may write (rows.lua)

local dict
local states = {}     -- states[n]: shared (row 0 of a cell), fails (a key), max_fails, window_s, pause_s
local scores = {}     -- server -> row 0 of a cell
local trouble_until   -- trouble_until[0]: seconds; 0 until the first failure

local function new_state(choice, name, alone)
    local window_s = choice.fail_timeout
    local state = {
        shared = choice.base, fails = "fails " .. name, window_s = window_s, pause_s = min(window_s, LONGEST_PAUSE_S),
        -- As in NGINX, the only server of a group never goes out.
        max_fails = (alone or window_s == 0) and 0 or choice.max_fails,
    }
    states[#states + 1] = state
    return state
end

-- layout: of control.lua. With options.shared_health a failure in one group counts in all groups of the server, which
-- then have the same parameters; otherwise each group notes its own, as in NGINX.
function M.init(shared_dict, layout, options)
    dict, trouble_until = shared_dict, rows.numbers("trouble until")
    for server, name in ipairs(layout.names) do
        local choices, common = layout.choices_of[server], nil
        scores[server] = choices[1].base
        for _, choice in ipairs(choices) do
            local own = options.shared_health and name or choice.group.name .. " " .. name
            choice.health = options.shared_health and common or new_state(choice, own, #choice.group.servers == 1)
            common = choice.health
        end
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

-- Out of rotation. An end that is later than any pause allows is from before the clock was set back.
function M.is_out(choice, now)
    local left_s = choice.health.shared[OUT_UNTIL] - now
    return left_s > 0 and left_s <= LONGEST_PAUSE_S
end

-- Its pause is over, and no request has tried it since.
function M.is_due(choice, now)
    local out_until = choice.health.shared[OUT_UNTIL]
    return out_until > 0 and not M.is_out(choice, now)
end

-- The server was chosen; whether that is a trial. When its pause has just ended, this request tries it and the others wait
-- for the outcome.
function M.picked(choice, now)
    local state = choice.health
    if state.shared[OUT_UNTIL] > 0 then
        state.shared[OUT_UNTIL] = now + state.pause_s
        lengthen_trouble(now, 2 * state.pause_s)
        return true
    end
    return false
end

-- No connection, no response in time, or a response that proxy_next_upstream retries.
function M.failed(choice, now)
    local state = choice.health
    M.scored(choice.index, now, 1)
    if state.max_fails == 0 then
        return
    end
    local fails = dict:incr(state.fails, 1, 0, state.window_s)
    if fails and fails >= state.max_fails then
        state.shared[OUT_UNTIL] = now + state.pause_s
        -- The end of a pause must be noticed, however late the next request comes.
        lengthen_trouble(now, 1e9)
    end
end

local function any_out()
    for index = 1, #states do
        if states[index].shared[OUT_UNTIL] > 0 then
            return true
        end
    end
    return false
end

-- A response; is_error is 1 from status 500 on. With that of a trial the server is back in rotation, as in NGINX, and has
-- its whole share at once when it is a good one. Answers to requests from before its failure say nothing.
function M.answered(choice, now, is_error, is_trial)
    local state = choice.health
    M.scored(choice.index, now, is_error)
    if is_trial and state.shared[OUT_UNTIL] > 0 then
        state.shared[OUT_UNTIL] = 0
        dict:delete(state.fails)
        if is_error == 0 then
            scores[choice.index][SCORE] = 0
        end
        if not any_out() then
            trouble_until[0] = now + SCORE_LASTS_S
        end
    end
end

-- Moves the error score by one response: is_error is 1 or 0.
function M.scored(server, now, is_error)
    local score, shared = M.score(server, now), scores[server]
    if score > 0 or is_error > 0 then
        shared[SCORE], shared[SCORE_AT] = score + SCORE_GAIN * (is_error - score), now
        if is_error > 0 then
            lengthen_trouble(now, SCORE_LASTS_S)
        end
    end
end

-- Forgets all failures, as a start does: servers that begin anew must not be avoided for earlier failures.
function M.forget()
    for index = 1, #states do
        states[index].shared[OUT_UNTIL] = 0
        dict:delete(states[index].fails)
    end
    for server = 1, #scores do
        scores[server][SCORE] = 0
    end
    trouble_until[0] = 0
end

-- Recent share of errors, 0 … 1; it decays within seconds, and counts as little when the clock was set back since.
function M.score(server, now)
    local shared = scores[server]
    local score = shared[SCORE]
    return score > 0 and score * exp(-abs(now - shared[SCORE_AT]) / SCORE_DECAY_S) or 0
end

return M
