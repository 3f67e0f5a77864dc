-- Runs a function off the path of requests without compiling it.
-- LuaJIT 2.1-20230119 (Debian 12) sometimes ends a generic `for` early when its loop becomes a trace: in 1 of 100 starts
-- a table of keys was incomplete (`ipairs` over a constant list, calls into shared dicts inside). So start-up, controls
-- and statistics run interpreted, and code on the path of requests uses numeric loops.
local pcall, error, off, on = pcall, error, jit.off, jit.on

local function finish(ok, ...)
    on()
    if not ok then
        error((...), 0)
    end
    return ...
end

return function(run, ...)
    off()
    return finish(pcall(run, ...))
end
