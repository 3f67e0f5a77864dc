-- Runs a function that requests do not wait for without compiling it.
-- LuaJIT 2.1-20230119 (Debian 12) now and then ends a generic `for` early when its loop becomes a trace: in 1 of
-- 100 starts a table of keys was left half built (`ipairs` over a constant list, calls into shared dicts inside).
-- So: start-up, controls and statistics run interpreted; code on a request's path uses numeric loops.
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
