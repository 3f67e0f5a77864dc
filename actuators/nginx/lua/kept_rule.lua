-- The rule of admission, or the late binding, that a restarted NGINX begins with: a file that `deepsched admission set
-- --keep` or `holding set --keep` has written. It is read in the master, before workers drop their rights; nothing about it keeps NGINX from starting.
local M = {}

local ffi = require "ffi"
local bit = require "bit"
ffi.cdef [[
    struct deepsched_statx {
        uint32_t mask, block_size; uint64_t attributes; uint32_t links, user, group; uint16_t mode, padding;
        uint64_t inode, size; uint8_t rest[208];
    };
    int open(const char *path, int flags, ...);
    int close(int file);
    ssize_t read(int file, void *buffer, size_t length);
    int statx(int folder, const char *path, int flags, unsigned int mask, struct deepsched_statx *found);
]]

-- Of Linux.
local READ_NONBLOCK_CLOEXEC, NO_SUCH_FILE = 0x80800, 2
local AT_THE_FILE, HERE, BASIC = 0x1000, -100, 0x7ff
local KIND, REGULAR, WRITE_BY_OTHERS = 0xf000, 0x8000, 0x12
local MOST_BYTES = 2 ^ 20
local LAST_LINE = "end\n"   -- without it the text is torn

local function status(folder, path, flags)
    local found = ffi.new("struct deepsched_statx")
    return ffi.C.statx(folder, path, flags, BASIC, found) == 0 and found or nil
end

-- What is wrong with an open file; nil when it may be trusted as much as the snippet.
local function distrust(file, snippet)
    local found, beside = status(file, "", AT_THE_FILE), status(HERE, snippet, 0)
    if not found or not beside then
        return "it cannot be examined"
    end
    if bit.band(found.mode, KIND) ~= REGULAR then
        return "it is not a regular file"
    end
    if found.user ~= 0 and found.user ~= beside.user then
        return "it belongs to user " .. found.user .. ", neither root nor the owner of " .. snippet
    end
    if bit.band(found.mode, WRITE_BY_OTHERS) ~= 0 then
        return "others may write it: chmod 600"
    end
    return found.size > MOST_BYTES and "it is too large" or nil
end

local function content(file)
    local parts, buffer = {}, ffi.new("uint8_t[4096]")
    repeat
        local count = tonumber(ffi.C.read(file, buffer, 4096))
        parts[#parts + 1] = ffi.string(buffer, math.max(count, 0))
    until count <= 0 or #parts * 4096 > MOST_BYTES
    return table.concat(parts)
end

local function read(path, snippet)
    local file = ffi.C.open(path, READ_NONBLOCK_CLOEXEC)
    if file < 0 then
        local number = ffi.errno()
        return nil, number ~= NO_SUCH_FILE and "it cannot be read (errno " .. number .. ")" or nil
    end
    local problem = distrust(file, snippet)
    local text = problem and "" or content(file)
    ffi.C.close(file)
    if not problem and text:sub(-#LAST_LINE) ~= LAST_LINE then
        problem = "it is torn: its last line is not 'end'"
    end
    return not problem and text:sub(1, -#LAST_LINE - 1) or nil, problem
end

-- The text of the rule at `path`, which may be trusted as much as the file `snippet`; nil without such a file, and nil
-- and a reason for one that is not to be trusted.
function M.read(path, snippet)
    local ok, text, problem = pcall(read, path, snippet)
    if not ok then
        return nil, tostring(text)   -- a C library without statx
    end
    return text, problem
end

return M
