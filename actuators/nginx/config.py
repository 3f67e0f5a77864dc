"""The text of the configuration of an NGINX that we run, from options and a topology, and parts for other NGINX.

Two files: the main one, and `upstreams.conf`, which alone changes when weights or methods change. Pure functions.
"""

from __future__ import annotations

import os
import pwd
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from actuators.contract.control import BalancingMethod, Weights
from actuators.contract.topology import Topology, check_plain
from actuators.contract.window import DEFAULT_BOUNDS_MS
from actuators.errors import ActuationError, ConfigError
from actuators.nginx.detect import NginxBuild, need_lua
from actuators.options import Only, Options

LUA_DIRECTORY = Path(__file__).with_name("lua")
_PATH = re.compile(r"^/[\w./~%-]*\Z")
_IN_MEMORY = ("round_robin", "least_conn", "expected_delay", "late_binding")
_SLOTS = "lua_need_request_body on; lua_check_client_abort on; body_filter_by_lua_block { BALANCER.answered() }"
"""A slow body takes no slot; a client that goes away while its request is held ends it, which is seen only when the
body was read before the Lua of the access phase; the last byte of an answer frees the slot."""
_NATIVE = {"round_robin": "", "least_conn": "  least_conn;\n", "random_two": "  random two least_conn;\n"}


class NginxOptions(Options):
    """How the NGINX of a testbed runs."""

    binary: str = "nginx"
    """Program, by name or path."""
    method: BalancingMethod = "least_conn"
    """Balancing method after the start."""
    statistics: Literal["auto", "vts", "lua"] = "auto"
    """Source of the statistics: nginx-module-vts, our status.lua, or vts where it is installed."""
    attempts: Annotated[Literal["all", "final"], Only(statistics=("auto", "lua"))] = "all"
    """What status.lua counts of a request that was retried: all attempts, as the newest source of vts, or the final
    one, as its releases."""
    actuation: Literal["auto", "memory", "reload"] = "auto"
    """How controls are applied: in memory (Lua, no reload), by reload, or in memory where the method allows it."""
    worker_processes: int = Field(default=1, ge=1, le=64)
    """NGINX worker processes."""
    worker_connections: int = Field(default=4096, ge=64)
    """Connections per worker, clients and servers together."""
    upstream_keepalive: int = Field(default=64, ge=1)
    """Idle connections that a worker keeps to the servers of a group."""
    max_fails: int = Field(default=1, ge=0)
    """Failed attempts after which a server gets no requests for `fail_timeout_s`; 0 turns that off."""
    fail_timeout_s: int = Field(default=10, ge=1)
    """Seconds without requests after `max_fails`."""
    connect_timeout_s: float = Field(default=2.0, gt=0)
    """Seconds to connect to a server."""
    read_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds between two reads from (and writes to) a server."""
    shutdown_timeout_s: float = Field(default=10.0, gt=0)
    """Seconds that a worker of an old configuration has to finish its requests."""
    max_body_bytes: int = Field(default=2**20, ge=1024)
    """Largest request body, in bytes; it is buffered in memory."""
    workers_per_server: Annotated[float, Only(actuation=("auto", "memory"))] = Field(default=1.0, ge=0.25)
    """Requests that a server serves at once, for `expected_delay` without service times; too few are safer."""
    load_balancers: Annotated[int, Only(actuation=("auto", "memory"))] = Field(default=1, ge=1)
    """NGINX instances that share the traffic equally; `expected_delay` multiplies its own requests by it."""
    admission: bool = False
    """Whether requests pass admission control, which refuses none until a rule is set (docs/admission.md)."""
    late_binding: Annotated[bool, Only(actuation=("auto", "memory"))] = False
    """Whether locations ask for a slot of a server, so that `late_binding` can be set without a reload; under other
    methods none is asked for (docs/late-binding.md)."""
    start_timeout_s: float = Field(default=10.0, gt=0)
    """Seconds within which NGINX must respond after a start."""


@dataclass(frozen=True)
class NginxSite:
    """Directory and addresses of one NGINX: a private prefix, the public listener, the port of its statistics."""

    prefix: Path
    host: str
    port: int
    status_port: int

    @property
    def upstreams(self) -> Path:
        return self.prefix / "upstreams.conf"

    @property
    def main(self) -> Path:
        return self.prefix / "nginx.conf"

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def render_main(
    site: NginxSite,
    topology: Topology,
    options: NginxOptions,
    build: NginxBuild,
    *,
    upstreams: Path,
    token: str,
    memory: bool,
    method: BalancingMethod,
) -> str:
    """The whole configuration; it includes `upstreams`.

    Args:
        method: in force after a start; without the option the locations ask for a slot only under `late_binding`.
        upstreams: the file in force, or a candidate for `nginx -t`.
        token: that a change of the control in memory needs.
        memory: requests are balanced in memory.
    """
    vts = uses_vts(options, build)
    holds = memory and (options.late_binding or method == "late_binding")
    balancer = f'method = "{method}", methods = {{}}, zones = {{}}, shared_health = true' if memory else ""
    cells = cell_count(topology)
    lua = "" if vts else lua_block(cells, upstreams, options, token=token, balancer=balancer, holds=holds)
    return f"""# Written by deepsched; changes are lost.
{_load_modules(build, vts=vts)}{_user()}daemon off;
pid {_quoted(site.prefix / "nginx.pid")};
error_log {_quoted(site.prefix / "error.log")} error;
worker_processes {options.worker_processes};
worker_shutdown_timeout {_ms(options.shutdown_timeout_s)};
events {{ worker_connections {options.worker_connections}; }}
http {{
  access_log off;
  server_tokens off;
  keepalive_timeout 600s;
  keepalive_requests 1000000000;
  tcp_nodelay on;
{temp_paths(site.prefix)}
  client_max_body_size {options.max_body_bytes};
  client_body_buffer_size {options.max_body_bytes};
  proxy_http_version 1.1;
  proxy_set_header Connection "";
  proxy_set_header Host $host;
  proxy_max_temp_file_size 0;
  proxy_connect_timeout {_ms(options.connect_timeout_s)};
  proxy_read_timeout {_ms(options.read_timeout_s)};
  proxy_send_timeout {_ms(options.read_timeout_s)};
{_vts(topology) if vts else lua}
  include {_quoted(upstreams)};
  server {{
    listen {site.address} default_server backlog=4096;
    server_name localhost;
{"" if vts else "    log_by_lua_block { STATUS.log_other() }"}
{_locations(topology, vts=vts, admission=options.admission, holds=holds)}    location / {{ return 404; }}
  }}
  server {{
    listen 127.0.0.1:{site.status_port};
    server_name localhost;
{status_locations(vts=vts, memory=memory, admission=options.admission)}  }}
}}
"""


def render_upstreams(weights: Weights, method: BalancingMethod, options: NginxOptions, *, memory: bool) -> str:
    """The upstream blocks of all groups. In memory, the weights in them are only the initial ones."""
    topology = weights.topology
    blocks = []
    for g, group in enumerate(topology.groups):
        zone = "" if memory else f"  zone {group.name} {64 + 4 * len(group.servers)}k;\n{_NATIVE[method]}"
        servers = "".join(_server_line(weights, g, server, options) for server in group.servers)
        balancer = f'  balancer_by_lua_block {{ BALANCER.pick("{group.name}") }}\n' if memory else ""
        keepalive = f"  keepalive {options.upstream_keepalive};\n  keepalive_requests 1000000000;\n"
        blocks.append(f"upstream {group.name} {{\n{zone}{servers}{balancer}{keepalive}}}\n")
    return "".join(blocks)


def status_path(*, vts: bool) -> str:
    """URL path of the statistics."""
    return "/status/format/json" if vts else "/status"


def check_topology(topology: Topology) -> None:
    """Raises ConfigError for a topology that one NGINX cannot serve."""
    paths = [group.path for group in topology.groups]
    for group in topology.groups:
        if not _PATH.match(group.path):
            raise ConfigError(f"'{group.path}' is not a URL path", where=f"group {group.name}", remedy="begin with '/'")
        if paths.count(group.path) > 1:
            raise ConfigError(f"two groups serve {group.path}", where="topology", remedy="give each its own path")
    check_servers(topology)


def check_servers(topology: Topology) -> None:
    """Raises ConfigError for host names, as the statistics show servers by address, and for names we cannot write."""
    check_plain(topology)
    for server in topology.servers:
        if not re.match(r"^(unix:|\[|\d+\.\d+\.\d+\.\d+)", server):
            remedy = "give its numeric address: the statistics show servers by address"
            raise ConfigError(f"server '{server}' is a host name", where="topology", remedy=remedy)


def in_memory(method: BalancingMethod, options: NginxOptions, build: NginxBuild) -> bool:
    """True when the method's controls are applied in memory.

    Raises ActuationError when the options allow neither way, MissingToolError when memory needs Lua.
    """
    if options.actuation == "memory":
        need_lua(build)
    possible = options.actuation != "reload" and build.has_lua
    if possible and method in _IN_MEMORY:
        return True
    if options.actuation == "memory" or method not in _NATIVE:
        remedy = f"in memory there are: {', '.join(_IN_MEMORY)}; by reload: {', '.join(_NATIVE)}"
        raise ActuationError(f"'{method}' is not possible with actuation={options.actuation}", remedy=remedy)
    return False


def uses_vts(options: NginxOptions, build: NginxBuild) -> bool:
    """True when nginx-module-vts counts: where it is installed, unless weights are in memory, where it cannot see them.

    Raises MissingToolError or ConfigError when the chosen source is not possible.
    """
    memory = build.has_lua and options.actuation != "reload"
    if options.statistics == "vts" and (memory or not build.has_vts):
        problem = (
            "vts shows the weights of the files, not those in memory" if build.has_vts else "NGINX has no vts module"
        )
        raise ConfigError(problem, where="statistics=vts", remedy="use statistics=auto, or actuation=reload")
    if options.admission and options.statistics == "vts":
        remedy = "use statistics=auto"
        raise ConfigError("vts does not count what admission control refuses", where="admission", remedy=remedy)
    if options.statistics == "lua" or options.admission or options.late_binding or memory or not build.has_vts:
        need_lua(build)
        return False
    return True


def lua_block(
    cells: int,
    upstreams: Path,
    options: NginxOptions,
    *,
    token: str,
    balancer: str,
    holds: bool,
    kept: Path | None = None,
    kept_holding: Path | None = None,
) -> str:
    """Shared memory, Lua modules and their settings for the http block.

    Args:
        cells: number of (group, server) pairs.
        upstreams: the file with the upstream blocks, as `render_upstreams` writes them.
        balancer: settings of lua/balancer.lua; empty when NGINX itself balances.
        holds: locations ask for a slot, so that requests can be held.
        kept, kept_holding: the files whose rule of admission, and whose late binding, NGINX begins with.
    """
    bounds = ", ".join(map(str, DEFAULT_BOUNDS_MS))
    first_rule = f"kept = {_quoted(kept)}, snippet = {_quoted(upstreams)}" if kept is not None else ""
    first_holding = ""
    if holds and kept_holding is not None:
        first_holding = f", kept = {_quoted(kept_holding)}, snippet = {_quoted(upstreams)}"
    memory = f"""
    BALANCER = require "balancer"
    COLD(BALANCER.init, {{
      groups = STATUS.groups, token = TOKEN, workers = {options.workers_per_server},
      balancers = {options.load_balancers}, {balancer}, holds = {str(holds).lower()}{first_holding},
    }})
    STATUS.use(BALANCER)"""
    return f"""  lua_package_path "{LUA_DIRECTORY}/?.lua;/usr/share/lua/5.1/?.lua;;";
  lua_shared_dict deepsched_status {2 + cells // 1024}m;
  lua_shared_dict deepsched_balancer {2 + cells // 512}m;
  log_subrequest on;
  # Two maps: one that Lua can set, one that has its own place in a request.
  map $request_method $deepsched_subrequests {{ default ""; }}
  map $deepsched_subrequests $deepsched_subrequests_kept {{ default ""; }}
  init_by_lua_block {{
    COLD = require "cold"
    STATUS, ADMISSION = require "status", require "admission"
    local TOKEN = "{token}"
    COLD(STATUS.init, {{
      upstreams = {_quoted(upstreams)}, server_name = "localhost", bounds_ms = {{ {bounds} }},
      attempts = "{options.attempts}", token = TOKEN,
      admission = {f"{{ {first_rule} }}" if options.admission else "nil"},
    }})\
{memory if balancer else ""}
  }}
  init_worker_by_lua_block {{ STATUS.init_worker() }}"""


def cell_count(topology: Topology) -> int:
    """Number of (group, server) pairs."""
    return sum(len(group.servers) for group in topology.groups)


def status_locations(*, vts: bool, memory: bool, admission: bool = False) -> str:
    """Locations of the statistics, of the control when requests are balanced in memory, and of admission control."""
    only_get = "limit_except GET { deny all; }"
    if vts:
        return (
            "    location /status { vhost_traffic_status_display; vhost_traffic_status_display_format json;"
            f" vhost_traffic_status_bypass_stats on; {only_get} }}\n"
            "    location /status/control { return 403; }\n"
        )
    control = "    location = /control { content_by_lua_block { BALANCER.serve() } }\n" if memory else ""
    control += "    location = /admission { content_by_lua_block { ADMISSION.serve() } }\n" if admission else ""
    return (
        f"{control}    location = /status {{ {only_get} content_by_lua_block {{ STATUS.serve() }} }}\n"
        "    location = /stub_status { internal; stub_status; }\n"
    )


def _server_line(weights: Weights, g: int, server: str, options: NginxOptions) -> str:
    s = weights.topology.server_index(server)
    down = " down" if weights.down[g, s] else ""
    return (
        f"  server {server} weight={weights.values[g, s]} max_fails={options.max_fails}"
        f" fail_timeout={options.fail_timeout_s}s{down};\n"
    )


def _load_modules(build: NginxBuild, *, vts: bool) -> str:
    lua = () if vts else need_lua(build)
    modules = [*lua, build.vts] if vts else [*lua]
    return "".join(f"load_module {_quoted(path)};\n" for path in modules if path not in (None, Path()))


def _user() -> str:
    """The user of the workers, which never run as root; needed when the master is root."""
    if os.geteuid() != 0:
        return ""
    names = {entry.pw_name for entry in pwd.getpwall()}
    return f"user {'www-data' if 'www-data' in names else 'nobody'};\n"


def _quoted(path: Path) -> str:
    """The path in double quotes, escaped: one word for NGINX, a string in Lua."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _ms(seconds: float) -> str:
    return f"{max(round(seconds * 1000), 1)}ms"


def temp_paths(prefix: Path) -> str:
    """The lines that keep all temporary files of an NGINX below its prefix."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return "\n".join(f"  {kind}_temp_path {_quoted(prefix / f'temp_{kind}')};" for kind in kinds)


def _vts(topology: Topology) -> str:
    bounds = " ".join(f"{bound / 1000:g}" for bound in DEFAULT_BOUNDS_MS)
    return (
        f"  vhost_traffic_status_zone shared:vhost_traffic_status:{max(4, cell_count(topology) // 128)}m;\n"
        f"  vhost_traffic_status_histogram_buckets {bounds};"
    )


def entry(group: str, *, admission: bool, holds: bool) -> str:
    """Directives of a location of a group: who may enter, and who waits for a slot; empty for neither."""
    asks = [f'ADMISSION.enter("{group}")'] * admission + [f'BALANCER.enter("{group}")'] * holds
    access = f"access_by_lua_block {{ {' '.join(asks)} }}" if asks else ""
    return f"{access} {_SLOTS}" if holds else access


def _locations(topology: Topology, *, vts: bool, admission: bool, holds: bool) -> str:
    lines = []
    for group in topology.groups:
        enter = entry(group.name, admission=admission, holds=holds)
        log = "" if vts else f'log_by_lua_block {{ STATUS.log("{group.name}") }}'
        words = " ".join(filter(None, (f"proxy_pass http://{group.name};", enter, log)))
        lines.append(f"    location = {group.path} {{ {words} }}\n")
    return "".join(lines)
