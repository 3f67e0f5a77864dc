"""Counts of the load engine over a part of a run: one window, several, or the whole run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from actuators.contract import histogram
from actuators.contract.arrays import FloatArray, IntArray
from actuators.contract.window import LoadWindow

ERROR_CLASSES = ("connect", "timeout", "closed", "status_4xx", "status_5xx", "not_sent")
PERCENTILES = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99)


@dataclass(frozen=True, eq=False)
class LoadSummary:
    """Counts of one part of a run; arrays are ``[types]`` in the order of `request_types`.

    Everything is counted when it happens: `planned` at the intended time, `sent` at the first byte written, the rest
    when the request ends. So the windows of a run add up exactly to its summary, and over a whole run
    ``planned + repeated = sent + connect + not_sent`` and ``sent = answered + timeout + closed``.

    Attributes:
        start_s, end_s: seconds since the plan began.
        planned, sent, answered, errors, late, retried: as in `LoadWindow`.
        repeated, good, good_first: as in `LoadWindow`; zeros without clients that repeat, and without deadlines.
        sent_bytes, received_bytes: HTTP bytes, headers included.
        latency_counts, latency_s_sum: ``[types, histogram.SIZE]`` and ``[types]``, from the intended send
            time, of responses with a status below 400 (corrected for coordinated omission).
        raw_counts, raw_s_sum: the same from the actual send time.
        send_delay_p50_ms, send_delay_p99_ms: actual minus intended send time.
        gap_error: root mean square of the differences between gaps as sent and as planned, over the mean gap; of
            planned gaps that are fixed, their coefficient of variation as sent.
        cpu_share: CPU seconds of the engine per second.
        windows, saturated_windows: number of windows, and of those in which the engine was the bottleneck.
        interrupted: the arrivals ended before the end of the plan.
        complete: False when the engine died; then `unaccounted` requests were lost with it.
        in_flight, connections: requests without a response, and open connections, at the end.
    """

    request_types: tuple[str, ...]
    start_s: float
    end_s: float
    planned: IntArray
    sent: IntArray
    answered: IntArray
    errors: dict[str, IntArray]
    late: IntArray
    retried: IntArray
    sent_bytes: IntArray
    received_bytes: IntArray
    latency_counts: IntArray
    latency_s_sum: FloatArray
    raw_counts: IntArray
    raw_s_sum: FloatArray
    repeated: IntArray
    good: IntArray
    good_first: IntArray
    send_delay_p50_ms: float = 0.0
    send_delay_p99_ms: float = 0.0
    cpu_share: float = 0.0
    windows: int = 1
    saturated_windows: int = 0
    interrupted: bool = False
    complete: bool = True
    in_flight: int = 0
    connections: int = 0
    gap_error: float = 0.0

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> Self:
        """From a ``window`` or ``summary`` line of the engine. Raises KeyError for any other."""
        types = tuple(line["types"])
        rows = [line["types"][name] for name in types]
        window = line["kind"] == "window"
        return cls(
            request_types=types,
            start_s=line["start_s"],
            end_s=line["end_s"],
            errors={name: _ints([row["errors"][name] for row in rows]) for name in ERROR_CLASSES},
            latency_counts=np.stack([dense(row["corrected_counts"]) for row in rows]),
            latency_s_sum=np.array([row["corrected_us_sum"] for row in rows]) / 1e6,
            raw_counts=np.stack([dense(row["raw_counts"]) for row in rows]),
            raw_s_sum=np.array([row["raw_us_sum"] for row in rows]) / 1e6,
            send_delay_p50_ms=line["send_delay_ms"]["p50"],
            send_delay_p99_ms=line["send_delay_ms"]["p99"],
            cpu_share=line["cpu_share"],
            windows=1 if window else line["windows"],
            saturated_windows=int(line["saturated"]) if window else line["saturated_windows"],
            interrupted=not window and line["interrupted"],
            complete=line.get("complete", True),
            in_flight=line.get("in_flight", 0),
            connections=line.get("connections", 0),
            gap_error=line.get("gap_error", 0.0),
            **_each(_COUNTS, lambda name: _ints([row[name] for row in rows])),
            # Lines of before 2026-12 have none.
            **_each(_CLIENT_COUNTS, lambda name: _ints([row.get(name, 0) for row in rows])),
        )

    @classmethod
    def empty(cls, request_types: Sequence[str]) -> Self:
        """All zeros, the neutral element of `+`."""
        size = len(request_types)
        zero = np.zeros(size, dtype=np.int64)
        counts = np.zeros((size, histogram.SIZE), dtype=np.int64)
        return cls(
            request_types=tuple(request_types), start_s=0.0, end_s=0.0, errors=dict.fromkeys(ERROR_CLASSES, zero),
            latency_counts=counts, latency_s_sum=np.zeros(size), raw_counts=counts, raw_s_sum=np.zeros(size),
            windows=0, **_each((*_COUNTS, *_CLIENT_COUNTS), lambda _: zero),
        )  # fmt: skip

    def __add__(self, later: LoadSummary) -> LoadSummary:
        """Both parts together; the send delays are the larger ones, because their counts are not kept."""
        first = later if self.windows == 0 else self
        busy_s = self.cpu_share * (self.end_s - self.start_s) + later.cpu_share * (later.end_s - later.start_s)
        length_s = (self.end_s - self.start_s) + (later.end_s - later.start_s)
        return LoadSummary(
            request_types=self.request_types,
            start_s=first.start_s,
            end_s=later.end_s,
            errors={name: self.errors[name] + later.errors[name] for name in ERROR_CLASSES},
            send_delay_p50_ms=max(self.send_delay_p50_ms, later.send_delay_p50_ms),
            send_delay_p99_ms=max(self.send_delay_p99_ms, later.send_delay_p99_ms),
            cpu_share=busy_s / length_s if length_s > 0 else 0.0,
            interrupted=self.interrupted or later.interrupted,
            complete=self.complete and later.complete,
            in_flight=later.in_flight,
            connections=later.connections,
            gap_error=_together(self, later),
            **_each(_SUMMED, lambda name: getattr(self, name) + getattr(later, name)),
        )

    def to_json(self, kind: Literal["window", "summary"]) -> dict[str, Any]:
        """Inverse of `from_json`; the shape that load.schema.json describes."""
        head: dict[str, Any] = {"kind": kind}
        if kind == "window":
            head |= {"saturated": self.saturated_windows > 0, "in_flight": self.in_flight}
            head |= {"connections": self.connections}
        else:
            head |= {"interrupted": self.interrupted, "complete": self.complete}
            head |= {"windows": self.windows, "saturated_windows": self.saturated_windows}
        delays_ms = {"p50": self.send_delay_p50_ms, "p99": self.send_delay_p99_ms}
        types = {name: self._type_to_json(i) for i, name in enumerate(self.request_types)}
        times = {"start_s": self.start_s, "end_s": self.end_s, "cpu_share": self.cpu_share}
        return {**head, **times, "send_delay_ms": delays_ms, "gap_error": self.gap_error, "types": types}

    def window(self) -> LoadWindow:
        """The same as what testbeds carry in a Window."""
        return LoadWindow(
            self.start_s, self.end_s, self.planned, self.sent, self.answered, self.errors, self.late, self.retried,
            self.latency_counts, self.latency_s_sum, self.send_delay_p99_ms, self.cpu_share, self.saturated_windows > 0,
            self.repeated, self.good, self.good_first,
        )  # fmt: skip

    @property
    def offered_rps(self) -> FloatArray:
        """``[types]``: planned requests per second."""
        return self._rate(self.planned)

    @property
    def achieved_rps(self) -> FloatArray:
        """``[types]``: responses with a status below 400, per second."""
        return self._rate(self.answered - self.errors["status_4xx"] - self.errors["status_5xx"])

    @property
    def unaccounted(self) -> IntArray:
        """``[types]``: requests that were sent, but neither answered nor failed; zeros over a whole run."""
        return self.sent - self.answered - self.errors["timeout"] - self.errors["closed"]

    def percentiles_ms(self, *, raw: bool = False) -> dict[str, dict[str, float]]:
        """Per type, ``{"p50": ms, …, "p99.99": ms}``; nan without responses. `raw`: from the actual send time."""
        counts = self.raw_counts if raw else self.latency_counts
        return {
            name: {f"p{p:g}": histogram.percentile_ms(counts[i], p) for p in PERCENTILES}
            for i, name in enumerate(self.request_types)
        }

    def _type_to_json(self, i: int) -> dict[str, Any]:
        corrected, raw = self.latency_counts[i], self.raw_counts[i]
        return {
            **{name: int(getattr(self, name)[i]) for name in (*_COUNTS, *_CLIENT_COUNTS)},
            "errors": {name: int(counts[i]) for name, counts in self.errors.items()},
            "corrected_us_sum": float(self.latency_s_sum[i] * 1e6),
            "raw_us_sum": float(self.raw_s_sum[i] * 1e6),
            "corrected_ms": _statistics_ms(corrected, self.latency_s_sum[i]),
            "raw_ms": _statistics_ms(raw, self.raw_s_sum[i]),
            "corrected_counts": sparse(corrected),
            "raw_counts": sparse(raw),
        }

    def _rate(self, counts: IntArray) -> FloatArray:
        duration_s = self.end_s - self.start_s
        return counts / duration_s if duration_s > 0 else np.zeros(len(counts))


_COUNTS = ("planned", "sent", "answered", "late", "retried", "sent_bytes", "received_bytes")
_CLIENT_COUNTS = ("repeated", "good", "good_first")
_SUMMED = (
    *_COUNTS, *_CLIENT_COUNTS, "latency_counts", "latency_s_sum", "raw_counts", "raw_s_sum", "windows",
    "saturated_windows",
)  # fmt: skip


def dense(pairs: Sequence[Sequence[int]]) -> IntArray:
    """``[histogram.SIZE]`` counts from the sparse ``[[bucket, count], …]`` of a line."""
    counts = np.zeros(histogram.SIZE, dtype=np.int64)
    if pairs:
        table = np.asarray(pairs, dtype=np.int64)
        counts[table[:, 0]] = table[:, 1]
    return counts


def sparse(counts: IntArray) -> list[list[int]]:
    """Inverse of `dense`."""
    return [[int(bucket), int(counts[bucket])] for bucket in np.flatnonzero(counts)]


def _together(one: LoadSummary, other: LoadSummary) -> float:
    """The gap error of both, weighted by what they sent; exact for parts of one rate."""
    sent = int(one.sent.sum()), int(other.sent.sum())
    squares = sent[0] * one.gap_error**2 + sent[1] * other.gap_error**2
    return float(np.sqrt(squares / sum(sent))) if sum(sent) else 0.0


def _statistics_ms(counts: IntArray, sum_s: float) -> dict[str, float] | None:
    total = int(counts.sum())
    if total == 0:
        return None
    percentiles = {f"p{p:g}": histogram.percentile_ms(counts, p) for p in PERCENTILES}
    return {"mean": float(sum_s) * 1e3 / total, **percentiles}


def _each(names: Sequence[str], value: Callable[[str], Any]) -> dict[str, Any]:
    """Name → value(name), for a constructor."""
    return {name: value(name) for name in names}


def _ints(values: Sequence[int]) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)
