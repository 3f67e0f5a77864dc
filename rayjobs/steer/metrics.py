"""Prometheus metrics of a running controller, at `--metrics-port`; `deepsched dashboards` draws and watches them.

Made of the lines of the audit log, so that metrics and record cannot disagree. Counters begin at 0 with the controller.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from actuators.contract.arrays import FloatArray
from actuators.errors import ConfigError
from envs.observation.deadlines import late_requests
from tuning.steering.audit import has_data, recorded_percent
from tuning.steering.options import GUARDS, current_mode
from tuning.steering.window_json import histogram_of

PREFIX = "deepsched_steer_"
MODES = ("shadow", "canary", "active")
OVERRIDES = ("paused", "reverted")
SOURCES = ("policy", "baseline", "hold")
PARTS = ("collect", "advise", "apply", "total")
MOST_HISTOGRAMS = 2000
"""Servers in groups up to which each has a histogram of its own; beyond that there is one per group."""
_ADMISSION = ("offered", "refused", "spared", "late")
_HOLDING = ("asked", "would", "held", "refused", "hopeless", "gone", "answered", "late")
_STEPS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_PLACE = ("group", "server")

COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "requests": ("Requests that NGINX counted in usable windows", _PLACE),
    "errors": ("Answers with a 5xx status", _PLACE),
    "late_requests": (
        "Answers after the group's deadline, estimated from the histogram of vts, without the time held in NGINX",
        _PLACE,
    ),
    "admission_offered": ("Requests that asked admission control to enter", ("group",)),
    "admission_refused": ("Those of them that were refused with 503", ("group",)),
    "admission_spared": ("Those of them that entered beyond the limit of their group", ("group",)),
    "admission_late": ("Those of them that entered and were answered after the deadline, or failed", ("group",)),
    "holding_asked": ("Requests that asked for a slot of a server", ("group",)),
    "holding_would": ("Those of them that would have been held, where that is only counted", ("group",)),
    "holding_held": ("Those of them that were held, and have left the line", ("group",)),
    "holding_refused": ("Those of them that were refused with 503: too many were held, or for too long", ("group",)),
    "holding_hopeless": ("Those of them that were refused with 503 because they would have been late", ("group",)),
    "holding_gone": ("Those of them whose client left while they were held", ("group",)),
    "holding_answered": ("Those of them that were answered", ("group",)),
    "holding_late": ("Those of them that were answered after the deadline, counted from arrival", ("group",)),
    "decisions": ("Decisions by whose control they chose", ("source",)),
    "guard_decisions": ("Decisions in which a guard acted", ("guard",)),
    "changes": ("Changes of weights or service times that were applied", ()),
    "alarms": ("Decisions with an alarm", ()),
}
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "deadline_seconds": ("Deadline of the group's requests", ("group",)),
    "weight": ("Weight in force; for service times 1/τ on the same scale", _PLACE),
    "service_time_seconds": ("Service time in force, where NGINX balances by those", _PLACE),
    "share": ("Share of the group's weight, 0 to 1: in force, wanted by the policy, of the baseline", (*_PLACE, "of")),
    "down": ("1 for a server that the statistics show as down", _PLACE),
    "novelty": ("Distance of the server's state from every observed one; above 1 it is novel", ("server",)),
    "admission_limit": (
        "Limit on the requests in flight of all groups, from which the group's are refused",
        ("group",),
    ),
    "admission_in_flight": ("Requests of the group inside", ("group",)),
    "admission_percent": ("Percentage of the requests beyond their limit that is refused", ()),
    "holding_in_line": ("Requests of the group that are held now", ("group",)),
    "holding_slots": ("Requests that a server may have at a time, where requests are held", ("server",)),
    "holding_active": ("1 while NGINX holds requests, else 0", ()),
    "art": ("Relative lateness per request of the last usable window, from arrival where requests ask for a slot", ()),
    "baseline_art": ("Relative lateness per request while the baseline was measured", ()),
    "error_ratio": ("Failed requests per request of the last usable window, 0 to 1", ()),
    "mode": ("1 for the mode in force", ("mode",)),
    "override": ("1 for the operator's order in force", ("override",)),
    "canary_ratio": ("How far canary goes from the baseline to the policy, 0 to 1", ()),
    "last_decision_timestamp_seconds": ("Unix time of the last decision", ()),
    "last_data_timestamp_seconds": ("Unix time of the last window with usable statistics", ()),
}
HISTOGRAMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "response_seconds": (
        "Response times of servers as NGINX measured them, in the buckets of vts, without the time held in NGINX",
        _PLACE,
    ),
    "holding_seconds": ("Times that requests were held", ("group",)),
    "answer_seconds": (
        "Times from arrival to the last byte from the server, of requests that asked for a slot, the hold included",
        ("group",),
    ),
    "decision_seconds": ("Duration of a decision and of its parts", ("part",)),
}


def exported() -> set[str]:
    """Every name that Prometheus can find, those of histograms and counters with their suffixes."""
    names = {f"{PREFIX}{name}_total" for name in COUNTERS} | {PREFIX + name for name in GAUGES}
    return names | {f"{PREFIX}{name}_{end}" for name in HISTOGRAMS for end in ("bucket", "sum", "count")}


class SteerMetrics(Collector):
    """Sums what the decisions say. Thread-safe: the controller writes, Prometheus reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, Counter[str]] = {
            "decisions": Counter(dict.fromkeys(SOURCES, 0)), "guard_decisions": Counter(dict.fromkeys(GUARDS, 0)),
            "changes": Counter({"": 0}), "alarms": Counter({"": 0}),
        }  # fmt: skip
        self._steps = {part: np.zeros(len(_STEPS_S) + 1, np.int64) for part in PARTS}
        self._steps_s = Counter(dict.fromkeys(PARTS, 0.0))
        self._data_time: float | None = None
        self.begin({"topology": (), "deadlines_s": ()})

    def begin(self, header: Mapping[str, Any]) -> None:
        """What follows is about the groups of this header (`tuning.steering.audit.header`), counted from 0."""
        groups = header["topology"]
        servers = list(dict.fromkeys(server for group in groups for server in group["servers"]))
        shape = (len(groups), len(servers))
        with self._lock:
            self._groups, self._servers = [group["name"] for group in groups], servers
            self._places = [
                (g, servers.index(server), (group["name"], server))
                for g, group in enumerate(groups)
                for server in group["servers"]
            ]
            self._deadlines_s = np.array(header["deadlines_s"], dtype=float)
            self._tables = {name: np.zeros(shape) for name in ("requests", "errors", "late_requests", "seconds")}
            self._of_groups = {
                f"{kind}_{name}": np.zeros(len(groups))
                for kind, names in (("admission", _ADMISSION), ("holding", _HOLDING))
                for name in names
            }
            self._held = _GroupTimes(len(groups)), _GroupTimes(len(groups))
            self._bounds_ms: list[int] = []
            self._histogram = np.zeros((*shape, 0), np.int64)
            self._line: dict[str, Any] = {}

    def see(self, line: dict[str, Any]) -> None:
        """Takes a decision line."""
        with self._lock:
            self._line = line
            self._counts["decisions"][line["source"]] += 1
            self._counts["guard_decisions"].update(line["guards"])
            self._counts["changes"][""] += bool(line.get("applied"))
            self._counts["alarms"][""] += bool(line["alarms"])
            for part, duration_ms in line.get("latency_ms", {}).items():
                self._steps[part][np.searchsorted(_STEPS_S, duration_ms / 1e3)] += 1
                self._steps_s[part] += duration_ms / 1e3
            if has_data(line):
                self._data_time = line["time"]
                self._add(line["window"])

    def collect(self) -> Iterator[Metric]:
        """What Prometheus asks for."""
        with self._lock:
            families = [*self._counters(), *self._gauges(), *self._histograms()]
        yield from families

    def _add(self, window: Mapping[str, Any]) -> None:
        counts = histogram_of(window)
        self._tables["requests"] += np.array(window["requests"])
        self._tables["errors"] += np.array(window["errors"])
        for kind, names in (("admission", _ADMISSION), ("holding", _HOLDING)):
            for name in names if kind in window else ():
                self._of_groups[f"{kind}_{name}"] += np.array(window[kind][name])
        if "holding" in window:
            for times, kind in zip(self._held, ("held", "answer"), strict=True):
                sums = window["holding"]["held_s" if kind == "held" else "answered_s"]
                times.add(window["holding"]["bounds_ms"], window["holding"][f"{kind}_histogram"], sums)
        if not window["bounds_ms"]:
            return
        if window["bounds_ms"] != self._bounds_ms:
            # Other buckets after a reload of NGINX: a histogram of Prometheus begins anew with them.
            self._bounds_ms, self._histogram = window["bounds_ms"], np.zeros_like(counts)
            self._tables["seconds"][:] = 0
        self._histogram += counts
        self._tables["late_requests"] += late_requests(counts, window["bounds_ms"], self._deadlines_s)
        self._tables["seconds"] += np.array(window["response_ms_sum"]) / 1e3

    def _counters(self) -> Iterator[Metric]:
        for name, (text, labels) in COUNTERS.items():
            family = CounterMetricFamily(PREFIX + name, text, labels=labels)
            if labels == _PLACE:
                _fill(family, self._places, self._tables[name])
            elif labels == ("group",):
                for group, number in zip(self._groups, self._of_groups[name], strict=True):
                    family.add_metric([group], number)
            else:
                for label, count in self._counts[name].items():
                    family.add_metric([label] if labels else [], count)
            yield family

    def _gauges(self) -> Iterator[Metric]:
        line = self._line
        families = {
            name: GaugeMetricFamily(PREFIX + name, text, labels=labels) for name, (text, labels) in GAUGES.items()
        }
        for group, deadline_s in zip(self._groups, self._deadlines_s, strict=True):
            families["deadline_seconds"].add_metric([group], deadline_s)
        if line:
            self._of_places(families, line)
            self._of_admission(families, line["window"].get("admission", {}))
            self._of_holding(families, line)
            for name, value in self._of_controller(line).items():
                if value is not None:
                    families[name].add_metric([], value)
            for mode in MODES:
                families["mode"].add_metric([mode], current_mode(line["mode"]) == mode)
            for override in OVERRIDES:
                families["override"].add_metric([override], line["override"] == override)
            for server, novelty in zip(self._servers, line["novelty"] or (), strict=False):
                families["novelty"].add_metric([server], novelty)
        yield from families.values()

    def _of_controller(self, line: Mapping[str, Any]) -> dict[str, float | None]:
        reference = line["reference"]
        return {
            "admission_percent": line.get("admission", {}).get("percent"),
            "holding_active": line["holding"]["state"] == "holding" if "holding" in line else None,
            "art": line["art"],
            "baseline_art": reference["art"] if reference["windows"] else None,
            "error_ratio": line["errors"],
            "canary_ratio": recorded_percent(dict(line)) / 100,
            "last_decision_timestamp_seconds": line["time"],
            "last_data_timestamp_seconds": self._data_time,
        }

    def _of_places(self, families: Mapping[str, GaugeMetricFamily], line: Mapping[str, Any]) -> None:
        weights = np.array(line["in_force"], dtype=float)
        _fill(families["weight"], self._places, weights)
        _fill(families["down"], self._places, np.array(line["window"]["down"], dtype=float))
        for of, table in (("in_force", weights), ("policy", line["policy"]), ("baseline", line["baseline"])):
            if table is not None:
                _fill(families["share"], self._places, _shares(table), of)
        exact = line.get("exact", {}).get("weights" if line.get("applied") else "before", {})
        if "tau_s" in exact:
            _fill(families["service_time_seconds"], self._places, np.array(exact["tau_s"], dtype=float))

    def _of_admission(self, families: Mapping[str, GaugeMetricFamily], counts: Mapping[str, Any]) -> None:
        for name, column in (("admission_limit", "limits"), ("admission_in_flight", "in_flight")):
            for group, value in zip(self._groups, counts.get(column, ()), strict=False):
                if value is not None:
                    families[name].add_metric([group], value)

    def _of_holding(self, families: Mapping[str, GaugeMetricFamily], line: Mapping[str, Any]) -> None:
        for group, held in zip(self._groups, line["window"].get("holding", {}).get("in_line", ()), strict=False):
            families["holding_in_line"].add_metric([group], held)
        for server, slots in zip(self._servers, line.get("holding", {}).get("slots", ()), strict=False):
            families["holding_slots"].add_metric([server], np.inf if slots is None else slots)

    def _histograms(self) -> Iterator[Metric]:
        text, labels = HISTOGRAMS["response_seconds"]
        each = len(self._places) <= MOST_HISTOGRAMS
        family = HistogramMetricFamily(PREFIX + "response_seconds", text, labels=labels if each else labels[:1])
        bounds_s = [bound / 1e3 for bound in self._bounds_ms]
        if bounds_s and each:
            for g, s, names in self._places:
                family.add_metric(names, _buckets(bounds_s, self._histogram[g, s]), self._tables["seconds"][g, s])
        elif bounds_s:
            whole, seconds = self._histogram.sum(axis=1), self._tables["seconds"].sum(axis=1)
            for g, group in enumerate(self._groups):
                family.add_metric([group], _buckets(bounds_s, whole[g]), seconds[g])
        yield family
        for name, times in zip(("holding_seconds", "answer_seconds"), self._held, strict=True):
            text, labels = HISTOGRAMS[name]
            family = HistogramMetricFamily(PREFIX + name, text, labels=labels)
            for group, buckets, seconds in times.rows(self._groups):
                family.add_metric([group], buckets, seconds)
            yield family
        text, labels = HISTOGRAMS["decision_seconds"]
        steps = HistogramMetricFamily(PREFIX + "decision_seconds", text, labels=labels)
        for part in PARTS:
            steps.add_metric([part], _buckets(_STEPS_S, self._steps[part]), self._steps_s[part])
        yield steps


class _GroupTimes:
    """A histogram per group, that begins anew with other buckets."""

    def __init__(self, groups: int) -> None:
        self._groups = groups
        self._reset(())

    def _reset(self, bounds_ms: Sequence[int]) -> None:
        self._bounds_ms = tuple(bounds_ms)
        self._counts = np.zeros((self._groups, len(self._bounds_ms) + 1), np.int64)
        self._seconds = np.zeros(self._groups)

    def add(self, bounds_ms: Sequence[int], rows: Sequence[Sequence[int]], seconds: Sequence[float]) -> None:
        if tuple(bounds_ms) != self._bounds_ms:
            self._reset(bounds_ms)
        for own, row in zip(self._counts, rows, strict=True):
            own[: len(row)] += np.array(row, np.int64)
        self._seconds += np.array(seconds)

    def rows(self, groups: Sequence[str]) -> Iterator[tuple[str, list[tuple[str, float]], float]]:
        """Group, buckets and sum; nothing before the first counts."""
        bounds_s = [bound / 1e3 for bound in self._bounds_ms]
        for group, counts, seconds in zip(groups, self._counts, self._seconds, strict=True) if bounds_s else ():
            yield group, _buckets(bounds_s, counts), float(seconds)


class Publication:
    """Where a controller's decisions are published; nowhere without a port."""

    def __init__(self, metrics: SteerMetrics | None) -> None:
        self._metrics = metrics

    def recording(
        self, header: Mapping[str, Any], write: Callable[[dict[str, Any]], None]
    ) -> Callable[[dict[str, Any]], None]:
        """`write`, whose lines are published as well."""
        metrics = self._metrics
        if metrics is None:
            return write
        metrics.begin(header)

        def record(line: dict[str, Any]) -> None:
            write(line)
            metrics.see(line)

        return record


@contextmanager
def publishing(host: str, port: int | None) -> Iterator[Publication]:
    """Answers Prometheus at `http://HOST:PORT/metrics` meanwhile.

    Raises ConfigError when the port cannot be listened on.
    """
    if port is None:
        yield Publication(None)
        return
    metrics, registry = SteerMetrics(), CollectorRegistry()
    registry.register(metrics)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}", where="--metrics-port", remedy="choose another"
        ) from error
    try:
        yield Publication(metrics)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _fill(
    family: CounterMetricFamily | GaugeMetricFamily,
    places: Sequence[tuple[int, int, tuple[str, str]]],
    table: FloatArray,
    *more: str,
) -> None:
    for g, s, names in places:
        family.add_metric([*names, *more], float(table[g, s]))


def _shares(table: Any) -> FloatArray:
    """``[groups, servers]`` weights → shares of their group."""
    weights = np.array(table, dtype=float)
    shares: FloatArray = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
    return shares


def _buckets(bounds_s: Sequence[float], counts: np.ndarray) -> list[tuple[str, float]]:
    """Cumulative, as Prometheus wants them."""
    sums = np.cumsum(counts)
    return [
        (floatToGoString(float(bound)), float(count)) for bound, count in zip((*bounds_s, np.inf), sums, strict=True)
    ]
