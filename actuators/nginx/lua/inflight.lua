-- Requests in flight over all workers, exact even when a worker is killed: each worker counts in its own row, and the
-- count of a row ends with its worker (rows.lua). A choice is a cell of counters.lua.
local M = {}

local rows = require "rows"
local IN_FLIGHT = require("counters").IN_FLIGHT
local total = rows.total

-- change: 1 for a request that begins, -1 for one that ends.
function M.add(choice, change)
    local own = choice.own
    own[IN_FLIGHT] = own[IN_FLIGHT] + change
end

-- Requests in flight on a server for one group.
function M.of_group(choice)
    return total(choice, IN_FLIGHT)
end

-- Requests in flight on a server over all groups; `choices` has one choice per group.
function M.of_server(choices)
    local count = 0
    for index = 1, #choices do
        count = count + total(choices[index], IN_FLIGHT)
    end
    return count
end

-- The same, and their work in seconds: each request counts with the service time `tau_s` of its group.
function M.load(choices, tau_s)
    local count, work = 0, 0
    for index = 1, #choices do
        local own = total(choices[index], IN_FLIGHT)
        count, work = count + own, work + own * tau_s[index]
    end
    return count, work
end

return M
