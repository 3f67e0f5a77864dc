"""A vts document as vts' Prometheus text, and a stand-in for a Prometheus server that scraped such texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any
from urllib.parse import parse_qs

from prometheus_client.metrics_core import Sample
from prometheus_client.parser import text_string_to_metric_families

from tests.support.http_server import Received
from tests.support.vts_documents import document


def as_text(document: dict[str, Any]) -> str:
    """What vts serves at /status/format/prometheus: only servers that had requests."""
    return "\n".join(_lines(document)) + "\n"


class StandIn:
    """Answers `query_range` as a Prometheus server that scraped some documents does."""

    def __init__(self, scrapes: dict[float, str], instances: tuple[str, ...] = ("a:80",), tall: int = 10**9) -> None:
        self.scrapes, self.instances, self.tall = scrapes, instances, tall
        self.queries: list[dict[str, str]] = []

    def __call__(self, request: Received) -> bytes:
        asked = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        self.queries.append(asked)
        body = json.dumps({"status": "success", "data": {"resultType": "matrix", "result": list(self.result(asked))}})
        body = body if len(body) < self.tall else body + " " * (70 * 2**20)
        return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()

    def result(self, asked: dict[str, str]) -> Iterator[dict[str, Any]]:
        steps, step = [], float(asked["start"])
        while step <= float(asked["end"]):
            steps.append(step)
            step += float(asked["step"])
        series: dict[str, list[Any]] = {}
        for step in steps:
            scraped_s = max((at_s for at_s in self.scrapes if 0 <= step - at_s < 300), default=None)
            if scraped_s is None:
                continue
            for name, value in self.samples(asked["query"], scraped_s):
                series.setdefault(name, []).append([step, value])
        for labels, values in series.items():
            for instance in self.instances:
                yield {"metric": {**json.loads(labels), "instance": instance}, "values": values}

    def samples(self, query: str, scraped_s: float) -> Iterator[tuple[str, str]]:
        metric = query.removeprefix("timestamp(").partition("{")[0]
        for sample in _samples(self.scrapes[scraped_s]):
            if sample.name == metric:
                value = scraped_s if query.startswith("timestamp(") else sample.value
                yield json.dumps(sample.labels, sort_keys=True), str(value)


def scrapes() -> dict[float, str]:
    return {100.25: as_text(document("before_load")), 115.5: as_text(document("after_load"))}


@cache
def _samples(text: str) -> tuple[Sample, ...]:
    return tuple(sample for family in text_string_to_metric_families(text) for sample in family.samples)


def _lines(document: dict[str, Any]) -> Iterator[str]:
    yield "# HELP nginx_vts_info Nginx info"
    yield "# TYPE nginx_vts_info gauge"
    yield (
        f'nginx_vts_info{{hostname="{document["hostName"]}",module_version="{document["moduleVersion"]}",'
        f'version="{document["nginxVersion"]}"}} 1'
    )
    yield f"nginx_vts_start_time_seconds {document['loadMsec'] / 1000:.3f}"
    for name, value in document["connections"].items():
        yield f'nginx_vts_main_connections{{status="{name}"}} {value}'
    zone = document["sharedZones"]
    for name, key in (("max_size", "maxSize"), ("used_size", "usedSize"), ("used_node", "usedNode")):
        yield f'nginx_vts_main_shm_usage_bytes{{shared="{name}"}} {zone[key]}'
    yield 'nginx_vts_server_requests_total{host="*",code="2xx"} 17'
    for group, entries in document["upstreamZones"].items():
        for entry in entries:
            yield from _server(group, entry) if entry["requestCounter"] else ()


def _server(group: str, entry: dict[str, Any]) -> Iterator[str]:
    labels = f'upstream="{group}",backend="{entry["server"]}"'
    for direction, key in (("in", "inBytes"), ("out", "outBytes")):
        yield f'nginx_vts_upstream_bytes_total{{{labels},direction="{direction}"}} {entry[key]}'
    for code, count in entry["responses"].items():
        yield f'nginx_vts_upstream_requests_total{{{labels},code="{code}"}} {count}'
    for kind in ("request", "response"):
        seconds = entry[f"{kind}MsecCounter"] / 1000
        yield f"nginx_vts_upstream_{kind}_seconds_total{{{labels}}} {seconds:.3f}"
        yield f"nginx_vts_upstream_{kind}_seconds{{{labels}}} {entry[f'{kind}Msec'] / 1000:.3f}"
        buckets = entry[f"{kind}Buckets"]
        metric = f"nginx_vts_upstream_{kind}_duration_seconds"
        for bound, count in zip(buckets["msecs"], buckets["counters"], strict=True):
            yield f'{metric}_bucket{{{labels},le="{bound / 1000:.3f}"}} {count}'
        if buckets["msecs"]:
            yield f'{metric}_bucket{{{labels},le="+Inf"}} {entry["requestCounter"]}'
            yield f"{metric}_sum{{{labels}}} {seconds:.3f}"
            yield f"{metric}_count{{{labels}}} {entry['requestCounter']}"
