"""Configs of the balancers that `actuators.peers` runs: as their users write them, before a testbed's servers."""

from __future__ import annotations

from pathlib import Path

from actuators.errors import ConfigError
from actuators.topology import Topology


def render_haproxy(topology: Topology, address: str, balance: str) -> str:
    """HAProxy before all servers: one backend, as its users write it; idle connections are reused."""
    servers = "".join(f"  server s{number} {server}\n" for number, server in enumerate(topology.servers, 1))
    return f"""global
  maxconn 8192
defaults
  mode http
  timeout connect 2s
  timeout client 600s
  timeout server 30s
  option http-keep-alive
  http-reuse always
  option redispatch
  retries 1
frontend front
  bind {address}
  default_backend servers
backend servers
  balance {balance}
{servers}"""


def render_nginx(topology: Topology, address: str, prefix: Path, *, shared: bool = False, fair_module: str = "") -> str:
    """An NGINX as shipped: least_conn or `fair`; one upstream per request type, or one `shared` by all."""
    method = "fair" if fair_module else "least_conn"
    names = ["all_types"] if shared else [group.name for group in topology.groups]
    members = [topology.servers] if shared else [group.servers for group in topology.groups]
    upstreams = "".join(
        f"  upstream {name} {{\n    {'' if fair_module else f'zone {name} 256k;'}\n    {method};\n"
        + _server_lines(servers)
        + "    keepalive 64;\n    keepalive_requests 1000000000;\n  }\n"
        for name, servers in zip(names, members, strict=True)
    )
    locations = "".join(
        f"    location = {group.path} {{ proxy_pass http://{'all_types' if shared else group.name}; }}\n"
        for group in topology.groups
    )
    load = f"load_module {fair_module};\n" if fair_module else ""
    return f"""{load}daemon off;
pid {prefix}/nginx.pid;
worker_processes 1;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_timeout 600s;
  keepalive_requests 1000000000;
  tcp_nodelay on;
  client_body_buffer_size 1m;
  proxy_http_version 1.1;
  proxy_set_header Connection "";
  proxy_connect_timeout 2s;
  proxy_read_timeout 30s;
{_temp_paths(prefix)}{upstreams}  server {{
    listen {address} backlog=4096;
{locations}    location / {{ return 404; }}
  }}
}}
"""


def fill_in(path: Path, topology: Topology | None, address: str, prefix: Path) -> str:
    """A user's config with its placeholders filled. Raises ConfigError when it is unreadable or lacks one."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("cannot read the NGINX config", where=str(path), remedy="give nginx:PATH") from error
    missing = [name for name in ("{listen}", "{servers}") if name not in text]
    if missing:
        raise ConfigError(
            f"the config has no {' and no '.join(missing)}",
            where=str(path),
            remedy="write `listen {listen};` and `{servers}` where they belong; `{prefix}` is a private folder",
        )
    servers = _server_lines(topology.servers) if topology else ""
    return text.replace("{listen}", address).replace("{servers}", servers).replace("{prefix}", str(prefix))


def _server_lines(servers: tuple[str, ...]) -> str:
    return "".join(f"    server {server} max_fails=1 fail_timeout=10s;\n" for server in servers)


def _temp_paths(prefix: Path) -> str:
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return "".join(f"  {kind}_temp_path {prefix}/temp_{kind};\n" for kind in kinds)
