"""The configuration of an Envoy, which may limit the requests in flight by itself: its filter adaptive_concurrency.

https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/adaptive_concurrency_filter
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from actuators.contract.topology import Topology

_TYPE = "type.googleapis.com/envoy.extensions"
_MANY = 1_000_000
"""For limits of Envoy that stand in no other balancer's way."""
_UPDATE_S, _MIN_RTT_S, _MIN_RTT_REQUESTS = 0.1, 60, 50
_PERCENTILE, _JITTER = 90, 10
"""As in the example of that page."""


def render_envoy(topology: Topology, address: str, *, limits: bool, shared: bool) -> str:
    """A bootstrap configuration with least request, a cluster per group or one for all.

    With `limits` there is one limit for all groups; every number of it is that of the documented example or a default.
    """
    names = ["servers" if shared else group.name for group in topology.groups]
    pools = [topology.servers if shared else group.servers for group in topology.groups]
    host, _, port = address.rpartition(":")
    manager = {
        "@type": f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "front",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": _routes(topology, names)}]},
        "http_filters": [*([_adaptive_concurrency()] if limits else []), _filter("router", {})],
    }
    listener = {
        "name": "front",
        "address": _address(host, port),
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
    clusters = [_cluster(name, servers) for name, servers in dict(zip(names, pools, strict=True)).items()]
    return json.dumps({"static_resources": {"listeners": [listener], "clusters": clusters}}, indent=1)


def _filter(name: str, content: dict[str, Any]) -> dict[str, Any]:
    kind = "".join(word.capitalize() for word in name.split("_"))
    typed = {"@type": f"{_TYPE}.filters.http.{name}.v3.{kind}", **content}
    return {"name": f"envoy.filters.http.{name}", "typed_config": typed}


def _adaptive_concurrency() -> dict[str, Any]:
    controller = {
        "sample_aggregate_percentile": {"value": _PERCENTILE},
        "concurrency_limit_params": {"concurrency_update_interval": f"{_UPDATE_S}s"},
        "min_rtt_calc_params": {
            "jitter": {"value": _JITTER}, "interval": f"{_MIN_RTT_S}s", "request_count": _MIN_RTT_REQUESTS,
        },
    }  # fmt: skip
    enabled = {"default_value": True, "runtime_key": "adaptive_concurrency.enabled"}
    return _filter("adaptive_concurrency", {"gradient_controller_config": controller, "enabled": enabled})


def _routes(topology: Topology, clusters: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"match": {"path": group.path}, "route": {"cluster": cluster, "timeout": "30s"}}
        for group, cluster in zip(topology.groups, clusters, strict=True)
    ]


def _cluster(name: str, servers: Sequence[str]) -> dict[str, Any]:
    endpoints = [{"endpoint": {"address": _address(*server.rsplit(":", 1))}} for server in servers]
    most = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), _MANY)
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": {"thresholds": [most]},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    }


def _address(host: str, port: str) -> dict[str, Any]:
    return {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}
