"""Configurations of other load balancers, as their users write them: one pool of servers, idle connections are reused.

Each counts answers of 500 and above as failures, the way its documentation gives. NGINX has an upstream per request
type, or one for all. That of Envoy is in `actuators.testbed.envoy`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from actuators.contract.stock import StockPlan
from actuators.contract.topology import Topology
from actuators.errors import ConfigError
from actuators.nginx.config import temp_paths

IDLE_CONNECTIONS = 512
"""That a proxy keeps open to each server."""
_OBSERVED = "check inter 1s observe layer7 error-limit 10 on-error mark-down"
_FAIL_S = 10
"""A server that failed gets nothing for that long, as is NGINX's default."""
READY_PATH = "/ready-check"
"""Answered by Traefik itself with 418, once it knows the servers."""


def render_haproxy(topology: Topology, address: str, balance: str, socket: Path | None = None) -> str:
    """The configuration of HAProxy: one backend with all servers; idle connections are reused.

    A server with ten failures in a row is down until two checks, a second apart, can connect to it
    (https://docs.haproxy.org/2.8/configuration.html#5.2-observe).

    Args:
        socket: Unix socket of its runtime API, for its owner only; None for none.
    """
    # It draws from a ring with 16 places per unit of weight: at the default of 1 equal servers get 0.8 to 1.2 of fair.
    weight = "weight 100 " if balance.startswith("random") else ""
    servers = "".join(
        f"  server s{number} {server} {weight}{_OBSERVED}\n" for number, server in enumerate(topology.servers, 1)
    )
    control = "" if socket is None else f"  stats socket {socket} mode 600 level admin\n"
    return f"""global
  maxconn 8192
{control}defaults
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


def render_nginx(
    topology: Topology,
    address: str,
    prefix: Path,
    *,
    shared: bool = False,
    method: str = "least_conn",
    fair_module: str = "",
    weights: Sequence[int] = (),
    plan: StockPlan | None = None,
) -> str:
    """The configuration of an NGINX without Lua; with its module the method is `fair`.

    https://nginx.org/en/docs/http/ngx_http_proxy_module.html#proxy_next_upstream says what counts as a failure.

    Args:
        weights: of the topology's servers; all 1 when empty.
        plan: weights and `max_conns` in place of `weights`; one upstream for all when it says so.
    """
    method = "fair" if fair_module else method
    names = ["all_types"] if shared else [group.name for group in topology.groups]
    members = [topology.servers] if shared else [group.servers for group in topology.groups]
    upstreams = ""
    for g, (name, servers) in enumerate(zip(names, members, strict=True)):
        extra = dict(zip(topology.servers, _extra(topology, g, weights, plan), strict=True))
        upstreams += (
            f"  upstream {name} {{\n    {'' if fair_module else f'zone {name} 256k;'}\n    {method};\n"
            + _server_lines(servers, extra)
            + "    keepalive 64;\n    keepalive_requests 1000000000;\n  }\n"
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
  proxy_max_temp_file_size 0;
  proxy_http_version 1.1;
  proxy_set_header Connection "";
  proxy_connect_timeout 2s;
  proxy_read_timeout 30s;
  proxy_next_upstream error timeout http_500 http_502 http_503 http_504;
{temp_paths(prefix)}
{upstreams}  server {{
    listen {address} backlog=4096;
{locations}    location / {{ return 404; }}
  }}
}}
"""


def fill_in(path: Path, topology: Topology | None, address: str, prefix: Path) -> str:
    """A user's configuration with its placeholders replaced. Raises ConfigError when it is unreadable or lacks one."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("cannot read the NGINX config", where=str(path), remedy="give nginx:PATH") from error
    missing = [name for name in ("{listen}", "{servers}") if name not in text]
    if missing:
        raise ConfigError(
            f"the config has no {' and no '.join(missing)}",
            where=str(path),
            remedy="add `listen {listen};` and `{servers}`; `{prefix}` is its private folder",
        )
    servers = _server_lines(topology.servers) if topology else ""
    return text.replace("{listen}", address).replace("{servers}", servers).replace("{prefix}", str(prefix))


def render_traefik(topology: Topology, strategy: str, weights: Sequence[int] = (), generation: int = 0) -> str:
    """Traefik's dynamic configuration (JSON is YAML): one service with all servers by `wrr`, `p2c` or `leasttime`.

    https://doc.traefik.io/traefik/v3.7/reference/routing-configuration/http/load-balancing/service has its passive
    health check.

    Args:
        weights: of the topology's servers; all 1 when empty.
        generation: counts changes, so that Traefik takes up one that changes nothing else.
    """
    routers = {
        "all": {"rule": "PathPrefix(`/`)", "service": "servers", "priority": 1},
        "ready": {"rule": f"Path(`{READY_PATH}`)", "service": "noop@internal", "priority": 2 + generation},
    }
    servers: list[dict[str, str | int]] = [{"url": f"http://{server}"} for server in topology.servers]
    if weights:
        servers = [{**server, "weight": weight} for server, weight in zip(servers, weights, strict=True)]
    health = {"failureWindow": f"{_FAIL_S}s", "maxFailedAttempts": 1}
    service = {
        "strategy": strategy, "serversTransport": "pool", "passiveHealthCheck": health, "servers": servers,
    }  # fmt: skip
    http = {
        "routers": routers,
        "services": {"servers": {"loadBalancer": service}},
        "serversTransports": {"pool": {"maxIdleConnsPerHost": IDLE_CONNECTIONS}},
    }
    return json.dumps({"http": http}, indent=1)


def render_caddy(topology: Topology, address: str, policy: str, socket: Path | None = None) -> str:
    """Caddy's JSON configuration: one reverse proxy to all servers by `least_conn` or `random_choose` (of two).

    https://caddyserver.com/docs/json/apps/http/servers/routes/handle/reverse_proxy/health_checks/passive

    Args:
        socket: Unix socket of its admin endpoint, for its owner only; None for none.
    """
    proxy = {
        "handler": "reverse_proxy",
        "upstreams": [{"dial": server} for server in topology.servers],
        "load_balancing": {"selection_policy": {"policy": policy}, "retries": 1},
        "health_checks": {"passive": {"fail_duration": f"{_FAIL_S}s", "max_fails": 1, "unhealthy_status": [5]}},
        "transport": {"protocol": "http", "keep_alive": {"max_idle_conns_per_host": IDLE_CONNECTIONS}},
    }
    server = {
        "listen": [address], "protocols": ["h1"], "automatic_https": {"disable": True}, "routes": [{"handle": [proxy]}],
    }  # fmt: skip
    admin = {"disabled": True} if socket is None else {"listen": f"unix/{socket}|0600"}
    content = {
        "admin": {**admin, "config": {"persist": False}},
        "logging": {"logs": {"default": {"level": "ERROR"}}},
        "apps": {"http": {"servers": {"front": server}}},
    }
    return json.dumps(content, indent=1)


def _extra(topology: Topology, group: int, weights: Sequence[int], plan: StockPlan | None) -> list[str]:
    """Weight and `max_conns` of every server in a group, as directives write them; `down` for a weight of 0."""
    if plan is not None:
        most = plan.max_conns or [0] * len(topology.servers)
        row = zip(plan.weights[group], most, strict=True)
        limits = ((weight, f" max_conns={limit}" if limit else "") for weight, limit in row)
        return [f" weight={weight}{limit}" if weight else " down" for weight, limit in limits]
    return [f" weight={weight}" for weight in weights] or [""] * len(topology.servers)


def _server_lines(servers: tuple[str, ...], extra: Mapping[str, str] | None = None) -> str:
    more = extra or {}
    return "".join(
        f"    server {server}{more.get(server, '')} max_fails=1 fail_timeout={_FAIL_S}s;\n" for server in servers
    )
