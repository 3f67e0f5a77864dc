-- Numbers in memory that all workers share. A block has a row per worker: a worker writes only its own row, and readers
-- add up all rows. So no locks are needed and no update is lost. Blocks survive reloads, rows survive their workers.
-- Column 0 of a block ends with its worker (requests in flight); the other columns are kept. Row 0 has no worker: any
-- worker may write it, and it is in no sum.
local M = {}

local cold = require "cold"
local ffi = require "ffi"
ffi.cdef [[
    void *mmap(void *address, size_t length, int protection, int flags, int file, long offset);
    int kill(int pid, int sig);
]]

local READ_WRITE, SHARED_ANONYMOUS_NORESERVE = 0x3, 0x4021   -- of Linux
local ROWS, NO_SUCH_PROCESS = 512, 3
local SWEEP_S = 1           -- seconds between two searches for dead workers that no new one has replaced
local NUMBERS = ffi.typeof("double *")
local BYTES = ffi.sizeof("double")

local dict            -- addresses of the blocks, process ids of the rows
local blocks = {}     -- blocks of this configuration
local used            -- used[0]: how many rows were ever taken
local mapped          -- number of blocks in memory that the workers of this configuration inherit
local mine            -- row of this worker

local function at(address)
    return ffi.cast(NUMBERS, ffi.cast("uintptr_t", address))
end

local function map(length)
    local memory = ffi.C.mmap(nil, length, READ_WRITE, SHARED_ANONYMOUS_NORESERVE, -1, 0)
    local address = tonumber(ffi.cast("intptr_t", memory))
    if address == -1 then
        error("rows.lua: no memory for " .. length .. " bytes (errno " .. ffi.errno() .. ")")
    end
    return address
end

local function remember(key, value)
    local ok, problem = dict:safe_set(key, value)
    if not ok then
        error("rows.lua: the shared dict is too small: " .. tostring(problem))
    end
end

-- The address of `count` numbers under that name, initially 0. Only in the master, from which workers inherit memory.
local function find_or_map(name, count)
    local key = "block " .. count .. " " .. name
    local address = dict:get(key)
    if not address then
        address = map(count * ROWS * BYTES)
        remember(key, address)
        local index = (dict:get("blocks") or 0) + 1
        remember("address " .. index, address)
        remember("size " .. index, count)
        remember("blocks", index)
    end
    mapped = dict:get("blocks")
    return address
end

-- init: before all else.
function M.init(shared_dict)
    dict = shared_dict
    used = M.numbers("rows")
end

-- init: a few numbers that any worker may write, not in rows.
function M.numbers(name)
    return at(find_or_map(name, 1))
end

-- init: adds to `block` its name's numbers: size (columns), base (all rows, from row 0 on), own (this worker's row, see init_worker).
function M.add(block, name, columns)
    block.size, block.base = columns, at(find_or_map(name, columns))
    blocks[#blocks + 1] = block
    return block
end

local function is_dead(row, pid)
    return row ~= mine and (pid == ngx.worker.pid() or (ffi.C.kill(pid, 0) ~= 0 and ffi.errno() == NO_SUCH_PROCESS))
end

-- Clears what ended with the worker of the row, in the blocks of all configurations.
local function clear(row)
    for index = 1, dict:get("blocks") do
        at(dict:get("address " .. index))[row * dict:get("size " .. index)] = 0
    end
end

-- Several workers may do so at once: only one of them clears the row of a dead worker, and only while it is that one's.
local function free_dead_rows()
    for row = 1, used[0] - 1 do
        local pid = dict:get("row " .. row)
        if pid and is_dead(row, pid) and dict:add("settling " .. row, true, 1) then
            if dict:get("row " .. row) == pid then
                clear(row)
                dict:delete("row " .. row)
            end
            dict:delete("settling " .. row)
        end
    end
end

-- A worker that is killed while it ends, after a reload, is not replaced. Workers of an older configuration leave this to
-- those of the newest: they have no memory for its blocks.
local function sweep(ending)
    if not ending and dict:get("blocks") == mapped then
        cold(free_dead_rows)
    end
end

local function take_row()
    for row = 1, ROWS - 1 do
        if dict:add("row " .. row, ngx.worker.pid()) then
            return row
        end
    end
    error("rows.lua: more than " .. ROWS - 1 .. " workers")
end

-- init_worker: clears the rows of dead workers, now and from time to time, and takes a row.
function M.init_worker()
    free_dead_rows()
    local row = take_row()
    mine = row
    if dict:add("taken " .. row, true) then
        dict:incr("taken", 1, 1)   -- after row 0
    end
    -- Another worker may write an older number at the same moment: the last one to write has read the newest.
    repeat used[0] = dict:get("taken") until used[0] >= dict:get("taken")
    for index = 1, #blocks do
        local block = blocks[index]
        block.own = block.base + row * block.size
    end
    ngx.timer.every(SWEEP_S, sweep)
end

-- How many rows there are, row 0 included: at least one for each worker that lives, and at most for those that ever did.
function M.count()
    return used[0]
end

-- Sum of a column over all rows.
function M.total(block, column)
    local base, size = block.base, block.size
    local sum = base[size + column]
    for row = 2, used[0] - 1 do   -- skipped for a single worker: a loop costs another trace of LuaJIT
        sum = sum + base[row * size + column]
    end
    return sum
end

return M
