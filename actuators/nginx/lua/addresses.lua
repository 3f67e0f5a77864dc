-- The addresses of a `server` line under the names of NGINX: those of $upstream_addr and of the statistics. A host name
-- is resolved as NGINX does it: once, when the configuration is loaded, to all its addresses; each of them is a server.
local ffi = require "ffi"
-- Names of our own: other Lua code in this NGINX may declare the originals.
ffi.cdef [[
    struct deepsched_address {
        int flags, family, kind, protocol;
        unsigned int length;
        void *socket;
        char *name;
        struct deepsched_address *next;
    };
    int deepsched_getaddrinfo(const char *host, const char *port, const struct deepsched_address *hints,
        struct deepsched_address **found) __asm__("getaddrinfo");
    void deepsched_freeaddrinfo(struct deepsched_address *found) __asm__("freeaddrinfo");
    int deepsched_getnameinfo(const void *socket, unsigned int length, char *host, unsigned int host_size, char *port,
        unsigned int port_size, int flags) __asm__("getnameinfo");
    const char *deepsched_gai_strerror(int code) __asm__("gai_strerror");
]]

local STREAM, CONFIGURED_ONLY, NUMERIC, SIZE = 1, 0x20, 3, 64   -- of Linux
local DEFAULT_PORT = "80"

-- A numeric address is that of one server whatever addresses this machine has.
local function hints_for(host)
    local hints = ffi.new("struct deepsched_address")
    hints.kind = STREAM
    hints.flags = (host:find(":", 1, true) or host:find("^[%d.]+$")) and 0 or CONFIGURED_ONLY
    return hints
end

local function shown(address)
    local host, port = ffi.new("char[?]", SIZE), ffi.new("char[?]", SIZE)
    local problem = ffi.C.deepsched_getnameinfo(address.socket, address.length, host, SIZE, port, SIZE, NUMERIC)
    if problem ~= 0 then
        error(ffi.string(ffi.C.deepsched_gai_strerror(problem)))
    end
    local name = ffi.string(host)
    return (name:find(":", 1, true) and "[" .. name .. "]" or name) .. ":" .. ffi.string(port)
end

local function resolved(host, port)
    local found = ffi.new("struct deepsched_address *[1]")
    local problem = ffi.C.deepsched_getaddrinfo(host, port, hints_for(host), found)
    if problem ~= 0 then
        error("deepsched: host not found in upstream: " .. host .. ": "
            .. ffi.string(ffi.C.deepsched_gai_strerror(problem)))
    end
    local names, address = {}, found[0]
    while address ~= nil do
        names[#names + 1] = shown(address)
        address = address.next
    end
    ffi.C.deepsched_freeaddrinfo(found[0])
    return names
end

-- The names of a server line's address: `unix:/path`, `HOST`, `HOST:PORT`, `[v6]` or `[v6]:PORT`.
return function(server)
    if server:find("^unix:") then
        return { server }
    end
    local host, port = server:match("^(.*):(%d+)$")
    if not host or host:find("^%[") and not host:find("%]$") then
        host, port = server, DEFAULT_PORT
    end
    return resolved(host:match("^%[(.*)%]$") or host, port)
end
