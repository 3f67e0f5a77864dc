"""A file that brings balancing in memory and its statistics to an NGINX that is not ours."""

from __future__ import annotations

from pathlib import Path

from actuators.control import Weights
from actuators.nginx_config import check_servers, in_memory, render_upstreams
from actuators.nginx_detect import NginxBuild, need_lua
from actuators.nginx_lua import lua_block, status_locations
from actuators.nginx_options import NginxOptions
from actuators.topology import Topology


def render_snippet(
    path: Path, topology: Topology, options: NginxOptions, build: NginxBuild, *, port: int, token: str
) -> str:
    """One file for the `http` block of a foreign configuration: its upstreams, balanced in memory by us.

    It takes the place of the upstream blocks of these groups; statistics and control are on 127.0.0.1:`port`.
    The configuration must load the Lua module and must not use log_by_lua in the locations of these groups.
    """
    need_lua(build)
    # Not their paths: which location leads to which group is in the foreign configuration.
    check_servers(topology)
    memory = options.model_copy(update={"actuation": "memory"})
    in_memory(memory.method, memory, build)
    return f"""# Written by deepsched for: include {path};   (in the http block, in place of these upstreams)
{lua_block(topology, path, memory, token=token, memory=True)}
  log_by_lua_block {{ STATUS.log_any() }}
{render_upstreams(Weights.equal(topology), memory.method, memory, memory=True)}server {{
  listen 127.0.0.1:{port};
  server_name localhost;
  access_log off;
  log_by_lua_block {{ STATUS.log_nothing() }}
  client_body_buffer_size {memory.max_body_bytes};
{status_locations(vts=False, memory=True)}}}
"""
