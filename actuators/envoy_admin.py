"""Envoy's admin endpoint: its clusters with their servers, and where each takes them from; and how an option names it.

https://www.envoyproxy.io/docs/envoy/latest/operations/admin
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from actuators.closing import Closing
from actuators.credentials import without_credentials
from actuators.errors import ActuationError
from actuators.http_client import MAX_BODY_BYTES, KeptConnection, NoResponseError

SCHEME = "envoy:"
"""Before the URL of the admin endpoint where a URL of statistics or of a control is expected."""
OUT_BY_EDS = ("UNHEALTHY", "DRAINING", "TIMEOUT")
"""Health in its endpoints with which a server gets no requests."""

_CLUSTERS, _INFO = "/clusters?format=json", "/server_info"
_DUMPS = ("static_clusters", "dynamic_active_clusters")
_REMEDY = "give its admin address, as envoy:http://127.0.0.1:9901"


def admin_of(url: str) -> str | None:
    """The address in ``envoy:http://127.0.0.1:9901``; None for any other URL."""
    return url.removeprefix(SCHEME).rstrip("/") if url.startswith(SCHEME) else None


@dataclass(frozen=True)
class Host:
    """One server of a cluster.

    Attributes:
        server: HOST:PORT, or unix:PATH.
        weight: 1 or more.
        eds: its health as the endpoints say it, for example HEALTHY.
        failed: fails active checks, or is ejected by outlier detection.
        counts: its counters and gauges by name; those of 0 are missing.
    """

    server: str
    weight: int
    eds: str
    failed: bool
    counts: Mapping[str, int]

    @property
    def out(self) -> bool:
        """Whether its endpoints take it out of rotation."""
        return self.eds in OUT_BY_EDS


@dataclass(frozen=True)
class ClusterSource:
    """Where a cluster has its servers and its balancing from.

    Attributes:
        kind: STATIC, EDS, STRICT_DNS, ….
        file: of its endpoints; None when they do not come from a file.
        service: name of the cluster in that file.
        policy: the balancing policy in Envoy's words.
        panic_percent: with fewer healthy servers than this, Envoy sends requests to all of them.
    """

    name: str
    kind: str
    file: Path | None
    service: str
    policy: str
    panic_percent: float


class EnvoyAdmin(Closing):
    """Reads the admin endpoint of one Envoy over kept connections; a context manager, and not for threads.

    Args:
        url: ``http://HOST:PORT`` of the admin endpoint.

    Raises:
        ConfigError: `url` is not an HTTP address.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout_s: float = 1.0,
        read_timeout_s: float = 5.0,
        max_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self.url = without_credentials(url)
        self._open = partial(
            KeptConnection, connect_timeout_s=connect_timeout_s, read_timeout_s=read_timeout_s, max_bytes=max_bytes,
            where="the admin endpoint",
        )  # fmt: skip
        self._base = url
        self._connections: dict[str, KeptConnection] = {}
        self._connection(_CLUSTERS)

    def get(self, path: str) -> Any:
        """A JSON document. Raises ActuationError when there is none."""
        try:
            status, body = self._connection(path).request("GET")
        except NoResponseError as error:
            raise ActuationError(
                f"Envoy's admin endpoint does not answer: {error}", where=self.url, remedy=_REMEDY
            ) from error
        if status != 200:
            raise ActuationError(f"HTTP status {status} for {path}", where=self.url, remedy=_REMEDY)
        try:
            return msgspec.json.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ActuationError(f"{path} is not JSON", where=self.url, remedy=_REMEDY) from error

    def clusters(self) -> dict[str, tuple[Host, ...]]:
        """Every cluster that has servers, in Envoy's order. Raises ActuationError."""
        document = self.get(_CLUSTERS)
        try:
            found = {
                str(cluster["name"]): tuple(_host(host) for host in cluster.get("host_statuses", ()))
                for cluster in document.get("cluster_statuses", ())
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._other_format(_CLUSTERS, error) from error
        return {name: hosts for name, hosts in found.items() if hosts}

    def sources(self) -> dict[str, ClusterSource]:
        """Of every cluster in the configuration dump. Raises ActuationError."""
        found: dict[str, ClusterSource] = {}
        for part in _DUMPS:
            path = f"/config_dump?resource={part}"
            document = self.get(path)
            try:
                for entry in document.get("configs", ()):
                    source = _source(entry["cluster"])
                    found[source.name] = source
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise self._other_format(path, error) from error
        return found

    def uptime_s(self) -> float:
        """Since this process started, in whole seconds. Raises ActuationError."""
        document = self.get(_INFO)
        try:
            return float(str(document["uptime_current_epoch"]).removesuffix("s"))
        except (KeyError, TypeError, ValueError) as error:
            raise self._other_format(_INFO, error) from error

    def counters(self, pattern: str) -> dict[str, int]:
        """The counters and gauges whose whole names match a regular expression. Raises ActuationError."""
        path = f"/stats?format=json&filter={quote(pattern, safe='')}"
        document = self.get(path)
        try:
            return {str(each["name"]): int(each["value"]) for each in document["stats"] if "value" in each}
        except (KeyError, TypeError, ValueError) as error:
            raise self._other_format(path, error) from error

    def close(self) -> None:
        """Closes the connections; a later call opens new ones."""
        for connection in self._connections.values():
            connection.close()

    def _connection(self, path: str) -> KeptConnection:
        if path not in self._connections:
            self._connections[path] = self._open(self._base + path)
        return self._connections[path]

    def _other_format(self, path: str, error: Exception) -> ActuationError:
        return ActuationError(f"{path} is of another format: {error!r}"[:200], where=self.url, remedy=_REMEDY)


def address_of(address: Mapping[str, Any]) -> str:
    """HOST:PORT of Envoy's JSON of an address, or unix:PATH. Raises KeyError or TypeError for another one."""
    pipe = address.get("pipe")
    if pipe is not None:
        return f"unix:{pipe['path']}"
    place = address[spelt(address, "socket_address")]
    host, port = str(place["address"]), place[spelt(place, "port_value")]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def spelt(content: Mapping[str, Any], name: str) -> str:
    """The name of a field as a document spells it: `port_value`, or in JSON also `portValue`."""
    head, *rest = name.split("_")
    camel = head + "".join(word.capitalize() for word in rest)
    return camel if camel in content else name


def _host(status: Mapping[str, Any]) -> Host:
    health = status.get("health_status", {})
    counts = {str(each["name"]): int(each.get("value", 0)) for each in status.get("stats", ())}
    failed = bool(health.get("failed_active_health_check") or health.get("failed_outlier_check"))
    weight = max(int(status.get("weight", 1)), 1)
    return Host(address_of(status["address"]), weight, str(health.get("eds_health_status", "")), failed, counts)


def _source(cluster: Mapping[str, Any]) -> ClusterSource:
    name, eds = str(cluster["name"]), cluster.get("eds_cluster_config", {})
    config = eds.get("eds_config", {})
    path = config.get("path_config_source", {}).get("path") or config.get("path")
    common = cluster.get("common_lb_config", {})
    panic = common.get("healthy_panic_threshold", {})
    extensions: Sequence[Mapping[str, Any]] = cluster.get("load_balancing_policy", {}).get("policies", ())
    named = [str(each["typed_extension_config"]["name"]).rpartition(".")[2].upper() for each in extensions]
    policy = named[0] if named else str(cluster.get("lb_policy", "ROUND_ROBIN"))
    kind = str(cluster.get("type") or cluster.get("cluster_type", {}).get("name", "STATIC"))
    percent = float(panic.get("value", 0.0)) if "healthy_panic_threshold" in common else 50.0
    return ClusterSource(name, kind, Path(path) if path else None, eds.get("service_name") or name, policy, percent)
