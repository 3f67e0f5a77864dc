"""The parts of a configuration that bring lua/*.lua into NGINX: statistics, and balancing in memory."""

from __future__ import annotations

from pathlib import Path

from actuators.nginx_options import NginxOptions
from actuators.topology import Topology
from actuators.window import DEFAULT_BOUNDS_MS

LUA_DIRECTORY = Path(__file__).with_name("lua")


def lua_block(topology: Topology, upstreams: Path, options: NginxOptions, *, token: str, memory: bool) -> str:
    """Shared memory, Lua modules and their settings, for the http block."""
    bounds, cells = ", ".join(map(str, DEFAULT_BOUNDS_MS)), cell_count(topology)
    balancer = f"""
    BALANCER = require "balancer"
    COLD(BALANCER.init, {{
      groups = STATUS.groups, token = "{token}", method = "{options.method}", workers = {options.workers_per_server},
      balancers = {options.load_balancers},
      max_fails = {options.max_fails}, fail_timeout_s = {options.fail_timeout_s},
    }})
    STATUS.balancer = BALANCER"""
    return f"""  lua_package_path "{LUA_DIRECTORY}/?.lua;/usr/share/lua/5.1/?.lua;;";
  lua_shared_dict deepsched_status {2 + cells // 4096}m;
  lua_shared_dict deepsched_balancer {2 + cells // 64}m;
  log_subrequest on;
  # Two maps, so that Lua can set it and it has a place of its own in a request.
  map $request_method $deepsched_subrequests {{ default ""; }}
  map $deepsched_subrequests $deepsched_subrequests_kept {{ default ""; }}
  init_by_lua_block {{
    COLD = require "cold"
    STATUS = require "status"
    COLD(STATUS.init, {{ upstreams = "{upstreams}", server_name = "localhost", bounds_ms = {{ {bounds} }} }})\
{balancer if memory else ""}
  }}
  init_worker_by_lua_block {{ STATUS.init_worker() }}"""


def cell_count(topology: Topology) -> int:
    """How many counters there are: servers, once per group."""
    return sum(len(group.servers) for group in topology.groups)


def status_locations(*, vts: bool, memory: bool) -> str:
    """Statistics, and control when requests are balanced in memory, for a server on a loopback port."""
    only_get = "limit_except GET { deny all; }"
    if vts:
        return (
            "    location /status { vhost_traffic_status_display; vhost_traffic_status_display_format json;"
            f" vhost_traffic_status_bypass_stats on; {only_get} }}\n"
            "    location /status/control { return 403; }\n"
        )
    control = "    location = /control { content_by_lua_block { BALANCER.serve() } }\n" if memory else ""
    return (
        f"{control}    location = /status {{ {only_get} content_by_lua_block {{ STATUS.serve() }} }}\n"
        "    location = /stub_status { internal; stub_status; }\n"
    )
