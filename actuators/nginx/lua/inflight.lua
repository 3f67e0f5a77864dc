-- Requests in flight, over all workers, exact even when a worker is killed: each counts in its own row, and a row's
-- count ends with its worker (rows.lua). A choice is a cell of counters.lua.
local M = {}

local rows = require "rows"
local IN_FLIGHT = require("counters").IN_FLIGHT
local total = rows.total

-- One request more (1) or less (-1).
function M.add(choice, change)
    local own = choice.own
    own[IN_FLIGHT] = own[IN_FLIGHT] + change
end

-- In flight on a server for one group.
function M.of_group(choice)
    return total(choice, IN_FLIGHT)
end

-- In flight on a server over all groups; `choices` are the server's, one per group.
function M.of_server(choices)
    local count = 0
    for index = 1, #choices do
        count = count + total(choices[index], IN_FLIGHT)
    end
    return count
end

-- The same, and the work in them in seconds: each counts the service time `tau_s` of its group.
function M.load(choices, tau_s)
    local count, work = 0, 0
    for index = 1, #choices do
        local own = total(choices[index], IN_FLIGHT)
        count, work = count + own, work + own * tau_s[index]
    end
    return count, work
end

return M
