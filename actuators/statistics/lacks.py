"""What a snapshot cannot show, and what to do about it: histograms, a full zone, metrics instead of JSON. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from actuators.statistics import envoy, haproxy
from actuators.statistics.prometheus import LACKS
from actuators.statistics.vts import ServerCounters, Snapshot, Zone

LackName = Literal["source", "zone", "histogram"]

_PAGE_BYTES = 4096
_SPARE_PAGES = 8
_MOST_NAMES = 5
_BY_MEANS = "judge by means, or by the load engine's own percentiles"


@dataclass(frozen=True)
class Lack:
    """One thing that the statistics do not show.

    Attributes:
        serious: without it nothing can be judged; else the work goes on with less.
        what: one sentence without a full stop.
        remedy: what to do about it.
    """

    name: LackName
    serious: bool
    what: str
    remedy: str


def lacks(snapshot: Snapshot) -> list[Lack]:
    """All that this snapshot does not show; empty when it shows everything."""
    return [*_source(snapshot), *_zone(snapshot), *_histogram(snapshot)]


def unfit(snapshot: Snapshot, groups: Sequence[str] = ()) -> Lack | None:
    """Why no simulator can be fitted to a recording of such statistics; None when they show nothing against it.

    A fit compares histograms of response times: one server without them leaves none for all that are fitted together.

    Args:
        groups: names of those that are fitted together; all when empty.
    """
    if snapshot.source in ("haproxy", "envoy"):
        what = haproxy.LACKS if snapshot.source == "haproxy" else envoy.LACKS
        return Lack("source", True, f"{_NO_FIT}: {what}", _AN_NGINX)
    chosen = {name: servers for name, servers in named_groups(snapshot).items() if not groups or name in groups}
    bounds = _bounds(chosen)
    empty = [name for name, msecs in bounds.items() if not msecs]
    if not bounds or set.intersection(*map(set, bounds.values())):
        return None
    if not empty:
        return Lack("histogram", True, f"{_NO_FIT}: those of the servers have no bound in common", _ANEW)
    if len(empty) == len(bounds):
        return Lack("histogram", True, f"{_NO_FIT}: no server has one", _ADD)
    remedy = f"{_ANEW}; or name the other upstreams with --groups"
    return Lack("histogram", True, f"{_NO_FIT}: {_LATER}: {_listed(empty)}", remedy)


def named_groups(snapshot: Snapshot) -> dict[str, Mapping[str, ServerCounters]]:
    """The groups of upstream blocks; vts files addresses without one under `::nogroups`."""
    return {name: servers for name, servers in snapshot.groups.items() if not name.startswith("::")}


def _source(snapshot: Snapshot) -> Iterator[Lack]:
    if snapshot.source == "prometheus":
        yield Lack(
            "source", False, f"the statistics are metrics: {LACKS}", "for steering, read vts' JSON, /status/format/json"
        )
    if snapshot.source == "haproxy":
        yield Lack("source", False, haproxy.LACKS, _BY_MEANS)
    if snapshot.source == "envoy":
        yield Lack("source", False, envoy.LACKS, _BY_MEANS)


def _zone(snapshot: Snapshot) -> Iterator[Lack]:
    zone = snapshot.zone
    if zone is None or zone.max_size == 0:
        return
    remedy = f"vhost_traffic_status_zone shared:{zone.name or 'vhost_traffic_status'}:{_needed(snapshot)}m; and reload"
    pages = zone.max_size // _PAGE_BYTES
    if zone.full:
        silent = [
            f"{group}/{server}"
            for group, servers in named_groups(snapshot).items()
            for server, counters in servers.items()
            if counters.request_counter == 0 and not counters.removed
        ]
        whom = f"; at 0 now: {_listed(silent)}" if silent else ""
        what = f"the statistics zone is full ({_used(zone)}): NGINX counts nothing for servers that are new to it{whom}"
        yield Lack("zone", bool(silent), what, f"{remedy} (all counters begin again at 0)")
    elif zone.used_node + _SPARE_PAGES > 0.9 * pages:
        yield Lack("zone", False, f"the statistics zone is almost full ({_used(zone)})", remedy)


def _histogram(snapshot: Snapshot) -> Iterator[Lack]:
    if not snapshot.is_nginx:
        return
    bounds = _bounds(named_groups(snapshot))
    empty = [name for name, msecs in bounds.items() if not msecs]
    if not empty:
        if len(set(bounds.values())) > 1:
            what = (
                "servers have histograms of different bounds, from before and after a reload: only common bounds count"
            )
            yield Lack("histogram", False, what, _ANEW)
    elif len(empty) == len(bounds):
        yield Lack("histogram", False, _NO_HISTOGRAM, _ADD)
    else:
        yield Lack("histogram", False, f"{_LATER}: {_listed(empty)}", _ANEW)


def _bounds(groups: Mapping[str, Mapping[str, ServerCounters]]) -> dict[str, tuple[int, ...]]:
    """GROUP/SERVER → bounds of its histogram in milliseconds, empty without one; of the servers that had requests."""
    return {
        f"{group}/{server}": counters.response_buckets.msecs
        for group, servers in groups.items()
        for server, counters in servers.items()
        if counters.request_counter > 0 and not counters.removed
    }


_NO_FIT = "a simulator is fitted to histograms of response times"
_NO_HISTOGRAM = "no server has a histogram of response times: percentiles and late shares are unknown, means are known"
_LATER = "servers without a histogram, because a reload added it later"
_AN_NGINX = "onboard an NGINX with nginx-module-vts; `doctor`, `collect`, `weights` and `steer` need no histogram"
_DIRECTIVE = "add vhost_traffic_status_histogram_buckets 0.001 0.005 0.01 0.025 0.05 0.1 0.25 0.5 1 5; in http"
_ANEW = (
    "delete the old counters once (curl 'http://HOST/status/control?cmd=delete&group=upstream@group&zone=*'; a reset "
    "does not help), or restart NGINX: servers that were counted before a reload keep the bounds that they had, or none"
)
_ADD = f"{_DIRECTIVE} and reload; if it is there: {_ANEW}"


def _needed(snapshot: Snapshot) -> int:
    """Megabytes of a zone with room for every server and server name, twice over."""
    assert snapshot.zone is not None
    pages = sum(map(len, snapshot.groups.values())) + len(snapshot.client_requests) + _SPARE_PAGES
    return math.ceil(2 * max(pages, snapshot.zone.used_node + _SPARE_PAGES) * _PAGE_BYTES / 2**20)


def _used(zone: Zone) -> str:
    return f"{zone.used_node} servers and names, {zone.used_size / 1e6:.2g} of {zone.max_size / 1e6:.2g} MB"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
