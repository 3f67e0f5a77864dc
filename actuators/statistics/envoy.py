"""Envoy's statistics as snapshots: counters per server from its admin endpoint. A cluster is a group.

https://www.envoyproxy.io/docs/envoy/latest/operations/admin#get--clusters?format=json. Envoy has response times per
cluster only: those per server follow here from the requests in flight by Little's law, L = λW.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Mapping
from functools import partial

from actuators.envoy_admin import EnvoyAdmin, Host
from actuators.errors import ActuationError, StatusError
from actuators.statistics.vts import ConnectionCounts, Responses, ServerCounters, Snapshot

LACKS = (
    "Envoy reports no response times per server: means follow from the requests in flight, which are read every 50 ms,"
    " percentiles and late shares are unknown, and every answer below 500 counts as a success"
)

_LOOK_S = 0.05
"""Between two readings of the requests in flight."""
_MOST_OF_A_CORE = 0.05
"""That reading them may take of the time, here and at Envoy."""
_FRONT = re.compile(
    r"http\.(?!admin\.).*\.(downstream_cx_active|downstream_cx_total|downstream_rq_total|downstream_rq_5xx)"
)
_PATTERN = r"^http\..*\.downstream_(cx_active|cx_total|rq_total|rq_5xx)$"
_CLOCK_S = 2.5
"""Envoy's uptime is in whole seconds."""

Hosts = Mapping[str, tuple[Host, ...]]


class EnvoyStatistics:
    """Reads one Envoy. Stateful: from the first reading on, a thread reads the requests in flight until `close`.

    Args:
        url: ``http://HOST:PORT`` of its admin endpoint.

    Raises:
        ConfigError: `url` is not an HTTP address.
    """

    def __init__(self, url: str, *, connect_timeout_s: float, read_timeout_s: float, max_bytes: int) -> None:
        self._open = partial(
            EnvoyAdmin, url, connect_timeout_s=connect_timeout_s, read_timeout_s=read_timeout_s, max_bytes=max_bytes
        )
        self._admin = self._open()
        self._in_flight = InFlight()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._started_s = 0.0

    def snapshot(self) -> Snapshot:
        """The counters now. Raises StatusError when they cannot be read or are of another format."""
        try:
            uptime_s, totals = self._admin.uptime_s(), _totals(self._admin.counters(_PATTERN))
            hosts = self._admin.clusters()
        except ActuationError as error:
            raise StatusError(error.what, where=error.where, remedy=error.remedy) from error
        now_s = time.time()
        self._in_flight.see(hosts, time.monotonic())
        if self._thread is None:
            self._thread = threading.Thread(target=self._look, name="envoy", daemon=True)
            self._thread.start()
        if abs(now_s - uptime_s - self._started_s) > _CLOCK_S:
            self._started_s = now_s - uptime_s
        groups, duplicates = self._groups(hosts)
        return Snapshot(
            now_ms=round(now_s * 1e3),
            load_ms=round(self._started_s) * 1000,
            groups=groups,
            connections=ConnectionCounts(
                active=totals["downstream_cx_active"],
                accepted=totals["downstream_cx_total"],
                handled=totals["downstream_cx_total"],
                requests=totals["downstream_rq_total"],
            ),
            host_name=f"Envoy at {self._admin.url}",
            duplicates=frozenset(duplicates),
            client_errors=totals["downstream_rq_5xx"],
            source="envoy",
        )

    def close(self) -> None:
        """Ends the thread; idempotent. A later `snapshot` starts it again."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        self._ended.clear()
        self._admin.close()

    def _look(self) -> None:
        with self._open() as admin:
            pause_s = _LOOK_S
            while not self._ended.wait(pause_s):
                began_s = time.monotonic()
                # A reading that fails makes the next step longer; that of `snapshot` says why.
                with contextlib.suppress(ActuationError):
                    self._in_flight.see(admin.clusters(), time.monotonic())
                took_s = time.monotonic() - began_s
                pause_s = max(_LOOK_S - took_s, took_s / _MOST_OF_A_CORE - took_s)

    def _groups(self, hosts: Hosts) -> tuple[dict[str, dict[str, ServerCounters]], set[tuple[str, str]]]:
        groups: dict[str, dict[str, ServerCounters]] = {}
        duplicates = set()
        for group, members in hosts.items():
            servers = groups.setdefault(group, {})
            for host in members:
                if host.server in servers:
                    duplicates.add((group, host.server))
                servers[host.server] = _counters(host, self._in_flight.msecs(group, host.server))
        return groups, duplicates


class InFlight:
    """The integral over time of the requests in flight of every server, from readings; for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[tuple[str, str], tuple[float, int]] = {}
        self._sums: dict[tuple[str, str], float] = {}

    def see(self, hosts: Hosts, now_s: float) -> None:
        """Takes a reading at `now_s` (monotonic); between two of them the requests in flight are their mean."""
        with self._lock:
            for group, members in hosts.items():
                for host in members:
                    place, active = (group, host.server), max(host.counts.get("rq_active", 0), 0)
                    before_s, before = self._last.get(place, (now_s, active))
                    if now_s >= before_s:
                        self._sums[place] = self._sums.get(place, 0.0) + (now_s - before_s) * (before + active) / 2
                        self._last[place] = now_s, active

    def msecs(self, group: str, server: str) -> int:
        """Request × milliseconds so far; 0 for a server that was never seen."""
        with self._lock:
            return round(self._sums.get((group, server), 0.0) * 1e3)


def _counters(host: Host, msecs: int) -> ServerCounters:
    good, bad = host.counts.get("rq_success", 0), host.counts.get("rq_error", 0)
    return ServerCounters(
        host.server,
        good + bad,
        responses=Responses(successful=good, server_errors=bad),
        request_msec_counter=msecs,
        response_msec_counter=msecs,
        weight=host.weight,
        down=host.out or host.failed,
    )


def _totals(counters: Mapping[str, int]) -> dict[str, int]:
    """Of all listeners but the admin endpoint."""
    totals = dict.fromkeys(
        ("downstream_cx_active", "downstream_cx_total", "downstream_rq_total", "downstream_rq_5xx"), 0
    )
    for name, value in counters.items():
        if found := _FRONT.fullmatch(name):
            totals[found[1]] += value
    return totals
