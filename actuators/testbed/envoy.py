"""The configuration of an Envoy that limits the requests in flight by itself: its filter adaptive_concurrency.

https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/adaptive_concurrency_filter
"""

from __future__ import annotations

import json
from typing import Any

from actuators.contract.topology import Group, Topology

_TYPE = "type.googleapis.com/envoy.extensions"
_MANY = 1_000_000
"""For limits of Envoy that stand in no other balancer's way."""
_UPDATE_S, _MIN_RTT_S, _MIN_RTT_REQUESTS = 0.1, 60, 50
_PERCENTILE, _JITTER = 90, 10
"""As in the example of that page."""


def render_envoy(topology: Topology, address: str) -> str:
    """A bootstrap configuration: a route and a cluster per group, least request, one limit for all groups.

    Every number of the limit is that of the documented example or a default.
    """
    host, _, port = address.rpartition(":")
    manager = {
        "@type": f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "front",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": _routes(topology)}]},
        "http_filters": [_adaptive_concurrency(), _filter("router", {})],
    }
    listener = {
        "name": "front",
        "address": _address(host, port),
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
    clusters = [_cluster(group) for group in topology.groups]
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


def _routes(topology: Topology) -> list[dict[str, Any]]:
    return [
        {"match": {"path": group.path}, "route": {"cluster": group.name, "timeout": "30s"}} for group in topology.groups
    ]


def _cluster(group: Group) -> dict[str, Any]:
    endpoints = [
        {"endpoint": {"address": _address(*server.rsplit(":", 1))}} for server in group.servers
    ]  # fmt: skip
    most = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), _MANY)
    return {
        "name": group.name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": {"thresholds": [most]},
        "load_assignment": {"cluster_name": group.name, "endpoints": [{"lb_endpoints": endpoints}]},
    }


def _address(host: str, port: str) -> dict[str, Any]:
    return {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}
