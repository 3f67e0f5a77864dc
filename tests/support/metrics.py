"""A vts document as the text that vts serves at /status/format/prometheus, for servers that had requests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def as_text(document: dict[str, Any]) -> str:
    return "\n".join(_lines(document)) + "\n"


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
