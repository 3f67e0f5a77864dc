"""Snapshots from the metrics of nginx-module-vts in Prometheus' form: its own text, or samples that a server kept.

The form has no clock, no weights and no flags of servers, and shows a server only once it had a request
(docs/nginx-facts.md#vts-in-prometheus-form). Pure: no I/O, no clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from actuators.errors import StatusError
from actuators.statistics.vts import Snapshot, parse

METRICS = (
    "nginx_vts_start_time_seconds", "nginx_vts_main_connections", "nginx_vts_main_shm_usage_bytes",
    "nginx_vts_upstream_requests_total", "nginx_vts_upstream_bytes_total",
    "nginx_vts_upstream_request_seconds_total", "nginx_vts_upstream_response_seconds_total",
    "nginx_vts_upstream_response_duration_seconds_bucket",
)  # fmt: skip
"""What a snapshot is made of; the histograms of whole requests are left out, because no decision reads them."""
LACKS = "weights, down, backup and max_fails are not in it, and a server is shown only once it had a request"

_NAME = re.compile(r"nginx_vts_\w+")
_REMEDY = "vts serves its metrics at /status/format/prometheus and JSON at /status/format/json"
_WANTED = ("nginx_vts_info", *METRICS)
_BUCKET = METRICS[-1]
_STATUSES = ("1xx", "2xx", "3xx", "4xx", "5xx")
_ZONE = {"max_size": "maxSize", "used_size": "usedSize", "used_node": "usedNode", "free_size": "freeSize"}
_SUMS = {
    "nginx_vts_upstream_request_seconds_total": "requestMsecCounter",
    "nginx_vts_upstream_response_seconds_total": "responseMsecCounter",
}


class Sample(NamedTuple):
    """One value of one time series."""

    name: str
    labels: Mapping[str, str]
    value: float


def parse_text(text: bytes, now_ms: int) -> Snapshot:
    """The Snapshot of what vts serves at /status/format/prometheus, read at `now_ms` (ms since the epoch).

    Raises StatusError for any other text.
    """
    try:
        families = list(text_string_to_metric_families("\n".join(_wanted(text.decode()))))
    except (ValueError, IndexError) as error:
        raise StatusError(f"not Prometheus text: {error}"[:200], remedy=_REMEDY) from error
    samples = (sample for family in families for sample in family.samples)
    return snapshot_of((Sample(sample.name, sample.labels, sample.value) for sample in samples), now_ms)


def _wanted(text: str) -> Iterator[str]:
    """The lines of `METRICS`: most of a text is of no use, and the parser is slow."""
    for line in text.split("\n"):
        name = _NAME.match(line)
        if name and name[0] in _WANTED:
            yield line


def snapshot_of(samples: Iterable[Sample], now_ms: int) -> Snapshot:
    """The Snapshot of one moment. Raises StatusError when the samples are not those of vts."""
    document = _Document()
    for sample in samples:
        document.add(sample)
    return document.snapshot(now_ms)


class _Document:
    """Samples on their way into a vts document."""

    def __init__(self) -> None:
        self._top: dict[str, Any] = {}
        self._connections: dict[str, int] = {}
        self._zone: dict[str, int] = {}
        self._groups: dict[str, dict[str, dict[str, Any]]] = {}

    def add(self, sample: Sample) -> None:
        name, labels, value = sample
        if name == "nginx_vts_info":
            self._top |= {"hostName": labels.get("hostname", ""), "moduleVersion": labels.get("module_version", "")}
        elif name == "nginx_vts_start_time_seconds":
            self._top["loadMsec"] = _milliseconds(value, name)
        elif name == "nginx_vts_main_connections":
            self._connections[labels.get("status", "")] = _count(value, name)
        elif name == "nginx_vts_main_shm_usage_bytes":
            self._zone[_ZONE.get(labels.get("shared", ""), "")] = _count(value, name)
        elif "upstream" in labels and "backend" in labels:
            servers = self._groups.setdefault(labels["upstream"], {})
            self._add_to_server(servers.setdefault(labels["backend"], {"responses": {}, "buckets": {}}), sample)

    def snapshot(self, now_ms: int) -> Snapshot:
        if "loadMsec" not in self._top:
            raise StatusError("no metrics of nginx-module-vts", remedy=_REMEDY)
        document = {**self._top, "nowMsec": now_ms, "connections": self._connections}
        if self._zone:
            document["sharedZones"] = self._zone
        zones = {group: [_entry(group, *each) for each in servers.items()] for group, servers in self._groups.items()}
        return replace(parse({**document, "upstreamZones": zones}), source="prometheus")

    def _add_to_server(self, entry: dict[str, Any], sample: Sample) -> None:
        name, labels, value = sample
        if name == "nginx_vts_upstream_requests_total":
            entry["responses"][labels.get("code", "")] = _count(value, name)
        elif name == "nginx_vts_upstream_bytes_total":
            entry["inBytes" if labels.get("direction") == "in" else "outBytes"] = _count(value, name)
        elif name in _SUMS:
            entry[_SUMS[name]] = _milliseconds(value, name)
        elif name == _BUCKET and (bound := labels.get("le", "")) != "+Inf":
            entry["buckets"][_milliseconds(_number(bound), name)] = _count(value, name)


def _entry(group: str, server: str, entry: dict[str, Any]) -> dict[str, Any]:
    """One server as vts' JSON shows it."""
    buckets = sorted(entry.pop("buckets").items())
    return {
        **entry,
        "server": server,
        "requestCounter": sum(entry["responses"].get(status, 0) for status in _STATUSES),
        "responseBuckets": {"msecs": [bound for bound, _ in buckets], "counters": [count for _, count in buckets]},
        # vts counts requests that met no live server under the name of the group.
        "weight": int(server != group),
    }


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise StatusError(f"'{text[:40]}' is not a bound", where=_BUCKET) from error


def _count(value: float, where: str) -> int:
    if not 0 <= value < 2**64:
        raise StatusError(f"{str(value)[:40]} is not a count", where=where)
    return round(value)


def _milliseconds(value: float, where: str) -> int:
    return _count(value * 1000, where)
