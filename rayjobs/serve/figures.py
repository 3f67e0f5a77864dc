"""Decision lines of the audit log → the figures of the live page: per group and server, over time, and the gain."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray, IntArray
from envs.observation.deadlines import late_requests
from envs.observation.features import quantile_s, tail_quantile_s
from tuning.steering.options import current_mode
from tuning.steering.window_json import histogram_of

Regime = Literal["policy", "baseline"]
_DIGITS = re.compile(r"\d+(?:[.,]\d+)*")
_ADMITTED = ("offered", "refused", "spared", "finished", "late", "in_flight", "limits")
_HELD = ("asked", "would", "held", "held_s", "refused", "hopeless", "answered", "late", "in_line")
SHOWN_EVENTS = 60


def group_figures(
    line: Mapping[str, Any], deadlines_ms: Sequence[float], types: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Per group: rate, response times, late share, and the same per server with its shares.

    Response times and late shares are None where the statistics have no histogram. Those of a group count from arrival,
    the time that a request was held included, where `from_arrival`; those of servers never do.
    """
    window = line["window"]
    duration_s = max(window["end_s"] - window["start_s"], 1e-3)
    seen = _Seen.of(window, deadlines_ms)
    in_force, policy, baseline = (_shares(line[name]) for name in ("in_force", "policy", "baseline"))
    assert in_force is not None
    assert baseline is not None
    requests = np.array(window["requests"])
    return [
        {
            "name": name,
            "request_type": types.get(name, name),
            "deadline_ms": deadlines_ms[g],
            "rate_rps": float(requests[g].sum() / duration_s),
            "from_arrival": seen.from_arrival(g),
            **seen.group(g),
            "servers": [
                {
                    "name": server,
                    "index": s,
                    "rate_rps": window["requests"][g][s] / duration_s,
                    **seen.server(g, s),
                    "errors": window["errors"][g][s],
                    "weight": line["in_force"][g][s],
                    "baseline": line["baseline"][g][s],
                    "share": in_force[g][s],
                    "policy_share": policy[g][s] if policy else None,
                    "baseline_share": baseline[g][s],
                    "down": window["down"][g][s],
                }
                for s, server in enumerate(window["servers"])
                if line["in_force"][g][s] > 0
            ],
        }
        for g, name in enumerate(window["groups"])
    ]


def admission_figures(line: Mapping[str, Any]) -> dict[str, Any] | None:
    """What admission control did in the window, per group; None where there is none.

    Shares are of the requests that asked to enter; `late_share` is of those that entered and ended. None for none.
    """
    entry, counts, window = line.get("admission"), line["window"].get("admission"), line["window"]
    if entry is None:
        return None
    duration_s = max(window["end_s"] - window["start_s"], 1e-3)
    rows = zip(window["groups"], *(counts[name] for name in _ADMITTED), strict=True) if counts else ()
    return {
        **{name: entry[name] for name in ("rule", "percent", "reason", "since_start")},
        "groups": [
            {
                "name": name,
                "rate_rps": offered / duration_s,
                "refused_share": refused / offered if offered else None,
                "spared_share": spared / offered if offered else None,
                "late_share": late / finished if finished else None,
                "in_flight": in_flight,
                "limit": limit,
            }
            for name, offered, refused, spared, finished, late, in_flight, limit in rows
        ],
    }


def holding_figures(line: Mapping[str, Any]) -> dict[str, Any] | None:
    """What late binding did in the window, or would have done, per group; None where it is left alone.

    Shares are of the requests that asked for a slot; `late_share` is of those that were answered. None for none.
    """
    entry, counts, window = line.get("holding"), line["window"].get("holding"), line["window"]
    if entry is None:
        return None
    duration_s = max(window["end_s"] - window["start_s"], 1e-3)
    rows = zip(window["groups"], *(counts[name] for name in _HELD), strict=True) if counts else ()
    holds = _hold_histogram(counts, "held_histogram") if counts else np.zeros((0, 1))
    return {
        **{name: entry[name] for name in ("holds", "reason", "state", "order", "slots", "since_start")},
        "groups": [
            {
                "name": name,
                "rate_rps": asked / duration_s,
                "would_share": would / asked if asked else None,
                "held_share": held / asked if asked else None,
                "hold_ms": 1e3 * held_s / held if held else None,
                "hold_p99_ms": float(1e3 * tail_quantile_s(holds[g], counts["bounds_ms"], 0.99)) if held else None,
                "refused_share": (refused + hopeless) / asked if asked else None,
                "late_share": late / answered if answered else None,
                "in_line": in_line,
            }
            for g, (name, asked, would, held, held_s, refused, hopeless, answered, late, in_line) in enumerate(rows)
        ],
    }


def _hold_histogram(counts: Mapping[str, Any], name: str) -> IntArray:
    """``[groups, bounds + 1]``."""
    table = np.zeros((len(counts[name]), len(counts["bounds_ms"]) + 1), np.int64)
    for row, values in zip(table, counts[name], strict=True):
        row[: len(values)] = values
    return table


@dataclass(frozen=True, eq=False)
class _GroupTimes:
    """How long the requests of each group took: from arrival where that is known, else from when a server was asked.

    Attributes:
        counts: ``[groups, bounds + 1]``; from_arrival: bool ``[groups]``.
        requests, seconds: ``[groups]``.
    """

    counts: IntArray
    from_arrival: NDArray[np.bool_]
    requests: IntArray
    seconds: FloatArray

    @classmethod
    def of(cls, window: Mapping[str, Any]) -> _GroupTimes:
        counts, held = histogram_of(window).sum(axis=1), window.get("holding")
        requests, seconds = np.sum(window["requests"], axis=1), np.sum(window["response_ms_sum"], axis=1) / 1e3
        known = np.zeros(len(counts), bool)
        if held and held["state"] in ("holding", "watching") and held["bounds_ms"] == window["bounds_ms"]:
            known = np.array(held["answered"]) > 0
            counts = np.where(known[:, None], _hold_histogram(held, "answer_histogram"), counts)
            requests = np.where(known, held["answered"], requests)
            seconds = np.where(known, held["answered_s"], seconds)
        return cls(counts, known, requests, seconds)


def point(line: Mapping[str, Any], deadlines_ms: Sequence[float]) -> dict[str, Any]:
    """What the charts show of one decision, without per-server response times."""
    window, seen = line["window"], _Seen.of(line["window"], deadlines_ms)
    return {
        "time": line["time"],
        "source": line["source"],
        "groups": [seen.group(g) for g in range(len(window["groups"]))],
        "in_force": _shares(line["in_force"]),
        "policy": _shares(line["policy"]),
        "cluster": line["cluster"],
    }


@dataclass
class Measured:
    """Sums over the windows in which one control was in force, from arrival on where that is known.

    Attributes:
        late: requests after their deadline; known only for `timed` of the requests, those in a histogram.
    """

    windows: int = 0
    requests: int = 0
    seconds: float = 0.0
    timed: int = 0
    late: float = 0.0

    def add(self, window: Mapping[str, Any], deadlines_ms: Sequence[float]) -> None:
        self.windows += 1
        times = _GroupTimes.of(window)
        self.requests += int(times.requests.sum())
        self.seconds += float(times.seconds.sum())
        if window["bounds_ms"]:
            self.timed += int(times.counts.sum())
            counts = times.counts[:, None]
            self.late += float(late_requests(counts, window["bounds_ms"], np.array(deadlines_ms) / 1e3).sum())

    def join(self, other: Measured) -> None:
        for name in ("windows", "requests", "seconds", "timed", "late"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def to_json(self) -> dict[str, Any]:
        return {
            "windows": self.windows,
            "requests": self.requests,
            "mean_ms": 1e3 * self.seconds / self.requests if self.requests else None,
            "late_share": self.late / self.timed if self.timed else None,
        }


def regime_after(line: Mapping[str, Any], before: Regime) -> Regime:
    """Whose control is in force after a decision; `before` was until then."""
    if current_mode(line["mode"]) == "shadow" or line["source"] == "baseline":
        return "baseline"
    return "policy" if line["source"] == "policy" else before


@dataclass
class Event:
    """Decisions of one kind: with a change or an alarm, alike but for their numbers."""

    line: dict[str, Any]
    first: float
    count: int = 1
    changes: int = 0
    guards: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        line = self.line
        return {
            "time": line["time"], "first": self.first, "count": self.count, "changes": self.changes,
            "source": line["source"], "reason": line["reason"], "alarms": line["alarms"],
            "guards": list(self.guards), "mode": current_mode(line["mode"]),
        }  # fmt: skip


def folded(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Changes and alarms, repeats folded into one with a count, latest first."""
    events: dict[tuple[str, ...], Event] = {}
    for line in lines:
        if not (line["change"] or line["alarms"]):
            continue
        key = (line["source"], *(_DIGITS.sub("#", text) for text in (line["reason"], *line["alarms"])))
        event = events.setdefault(key, Event(dict(line), line["time"], 0))
        event.line, event.count = dict(line), event.count + 1
        event.changes += bool(line.get("applied", False))
        event.guards.update(line["guards"])
    latest = sorted(events.values(), key=lambda event: -event.line["time"])
    return [event.to_json() for event in latest[:SHOWN_EVENTS]]


def moves(groups: Sequence[Mapping[str, Any]], most: int = 6) -> list[dict[str, Any]]:
    """The servers whose share the policy would change most, largest change first."""
    found = [
        {"group": group["name"], "server": server["name"], "from": server["share"], "to": server["policy_share"]}
        for group in groups
        for server in group["servers"]
        if server["policy_share"] is not None
    ]
    found.sort(key=lambda move: -abs(move["to"] - move["from"]))
    return [move for move in found[:most] if abs(move["to"] - move["from"]) >= 0.005]


@dataclass(frozen=True, eq=False)
class _Seen:
    """Response times of a window, each ``[groups, servers]`` and ``[groups]``; None without a histogram."""

    p50_ms: FloatArray
    p99_ms: FloatArray
    late: FloatArray
    counts: IntArray
    group_p50_ms: FloatArray
    group_p99_ms: FloatArray
    group_late: FloatArray
    times: _GroupTimes

    @classmethod
    def of(cls, window: Mapping[str, Any], deadlines_ms: Sequence[float]) -> _Seen | _Nothing:
        bounds = window["bounds_ms"]
        counts = histogram_of(window)
        if not bounds:
            return _Nothing()
        times, deadlines_s = _GroupTimes.of(window), np.array(deadlines_ms) / 1e3
        p50_ms, group_p50_ms = (1e3 * quantile_s(each, bounds, 0.5) for each in (counts, times.counts))
        p99_ms, group_p99_ms = (1e3 * tail_quantile_s(each, bounds, 0.99) for each in (counts, times.counts))
        late, group_late = (late_requests(each, bounds, deadlines_s) for each in (counts, times.counts[:, None]))
        return cls(p50_ms, p99_ms, late, counts.sum(axis=-1), group_p50_ms, group_p99_ms, group_late.sum(axis=1), times)

    def group(self, g: int) -> dict[str, float | None]:
        count = self.times.counts[g].sum()
        return _times(self.group_p50_ms[g], self.group_p99_ms[g], self.group_late[g], count)

    def from_arrival(self, g: int) -> bool:
        """Whether the group's times contain the time that a request was held."""
        return bool(self.times.from_arrival[g])

    def server(self, g: int, s: int) -> dict[str, float | None]:
        return _times(self.p50_ms[g, s], self.p99_ms[g, s], self.late[g, s], self.counts[g, s])


class _Nothing:
    """Of a window whose statistics have no histogram."""

    def from_arrival(self, g: int) -> bool:
        return False

    def group(self, g: int) -> dict[str, float | None]:
        return _times(0.0, 0.0, 0.0, 0)

    def server(self, g: int, s: int) -> dict[str, float | None]:
        return self.group(g)


def _times(p50_ms: float, p99_ms: float, late: float, count: int) -> dict[str, float | None]:
    """Response times of `count` answers; unknown for none."""
    if not count:
        return {"p50_ms": None, "p99_ms": None, "late_share": None}
    return {"p50_ms": float(p50_ms), "p99_ms": float(p99_ms), "late_share": round(float(late / count), 5)}


def _shares(table: Any) -> list[list[float]] | None:
    """Weights → shares of their group, with four digits; None for None."""
    if table is None:
        return None
    weights = np.array(table, dtype=float)
    shares: list[list[float]] = (weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)).round(4).tolist()
    return shares
