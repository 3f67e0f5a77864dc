"""The configuration of an Envoy, which may limit the requests in flight by itself: its filter adaptive_concurrency.

https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/adaptive_concurrency_filter
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actuators.contract.topology import Topology

_TYPE = "type.googleapis.com/envoy.extensions"
_MANY = 1_000_000
"""For limits of Envoy that stand in no other balancer's way."""
_UPDATE_S, _MIN_RTT_S, _MIN_RTT_REQUESTS = 0.1, 60, 50
_PERCENTILE, _JITTER = 90, 10
"""As in the example of that page."""


_OUTLIERS = {"consecutive_5xx": 5, "interval": "1s", "base_ejection_time": "5s", "max_ejection_percent": 50}
"""https://www.envoyproxy.io/docs/envoy/latest/api-v3/config/cluster/v3/outlier_detection.proto; its defaults for times
and percentage are 10 s, 30 s and 10 %."""
ENDPOINT = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"


def render_envoy(
    topology: Topology,
    address: str,
    *,
    limits: bool,
    shared: bool,
    endpoints: Path | None = None,
    admin: str = "",
    policy: str = "LEAST_REQUEST",
) -> str:
    """A bootstrap configuration with a cluster per group or one for all.

    With `limits` there is one limit for all groups; every number of it is that of the documented example or a default.

    Args:
        endpoints: the file of `render_endpoints`, whose replacement by a move changes the servers and weights of a
            shared cluster (EDS); None for servers that stand in the configuration.
        admin: HOST:PORT of its admin endpoint; none when empty.
        policy: `lb_policy` of the clusters.
    """
    names = ["servers" if shared else group.name for group in topology.groups]
    pools = [topology.servers if shared else group.servers for group in topology.groups]
    host, _, port = address.rpartition(":")
    manager = {
        "@type": f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "front",
        "route_config": {
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": _routes(topology, names, shared=shared)}]
        },
        "http_filters": [*([_adaptive_concurrency()] if limits else []), _filter("router", {})],
    }
    listener = {
        "name": "front",
        "address": _address(host, port),
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
    clusters = [
        _cluster(name, servers, endpoints, policy, shared=shared)
        for name, servers in dict(zip(names, pools, strict=True)).items()
    ]
    node = {"id": "deepsched", "cluster": "deepsched"}
    content: dict[str, Any] = {"node": node, "static_resources": {"listeners": [listener], "clusters": clusters}}
    if admin:
        content["admin"] = {"address": _address(*admin.rsplit(":", 1))}
    return json.dumps(content, indent=1)


def render_endpoints(topology: Topology, weights: Sequence[int] = ()) -> str:
    """The servers of the shared cluster as a file for EDS, with their weights; without weights when there are none.

    https://www.envoyproxy.io/docs/envoy/latest/start/quick-start/configuration-dynamic-filesystem
    """
    assignment = _assignment("servers", topology.servers, weights)
    return json.dumps({"resources": [{"@type": ENDPOINT, **assignment}]}, indent=1)


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


def _routes(topology: Topology, clusters: Sequence[str], *, shared: bool) -> list[dict[str, Any]]:
    if shared:  # requests of all types, whose paths a pool does not know
        return [{"match": {"prefix": "/"}, "route": {"cluster": clusters[0], "timeout": "30s"}}]
    return [
        {"match": {"path": group.path}, "route": {"cluster": cluster, "timeout": "30s"}}
        for group, cluster in zip(topology.groups, clusters, strict=True)
    ]


def _cluster(name: str, servers: Sequence[str], endpoints: Path | None, policy: str, *, shared: bool) -> dict[str, Any]:
    most = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), _MANY)
    if endpoints is None:
        members: dict[str, Any] = {"type": "STATIC", "load_assignment": _assignment(name, servers)}
    else:
        source = {"path_config_source": {"path": str(endpoints)}, "resource_api_version": "V3"}
        members = {"type": "EDS", "eds_cluster_config": {"eds_config": source}}
    return {
        "name": name,
        "connect_timeout": "2s",
        "lb_policy": policy,
        "circuit_breakers": {"thresholds": [most]},
        **({"outlier_detection": _OUTLIERS} if shared else {}),
        **members,
    }


def _assignment(name: str, servers: Sequence[str], weights: Sequence[int] = ()) -> dict[str, Any]:
    endpoints: list[dict[str, Any]] = [{"endpoint": {"address": _address(*each.rsplit(":", 1))}} for each in servers]
    if weights:
        pairs = zip(endpoints, weights, strict=True)
        endpoints = [{**endpoint, "load_balancing_weight": weight} for endpoint, weight in pairs]
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}


def _address(host: str, port: str) -> dict[str, Any]:
    return {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}
