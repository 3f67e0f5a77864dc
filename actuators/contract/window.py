"""Windows: what happened in one control interval, as NGINX (Window) and the load engine (LoadWindow) counted it.

Live and simulated testbeds produce them; features, rewards and the judge read nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from actuators.contract import histogram
from actuators.contract.arrays import FloatArray, IntArray
from actuators.contract.topology import Topology

FaultKind = Literal[
    "restart", "reset", "reload", "gap", "missing_server", "missing_group", "zone_full", "duplicate_server",
    "saturated_client", "saturated_nginx", "not_in_force", "server_down", "load_ended",
]  # fmt: skip

DEFAULT_BOUNDS_MS: tuple[int, ...] = (
    1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100, 125, 150, 200, 250, 300, 400, 500,
    650, 800, 1000, 1500, 2000, 5000, 10000,
)  # fmt: skip
"""Histogram bounds of the NGINX that we run and of the simulator: 32, the most that vts allows."""


@dataclass(frozen=True)
class Fault:
    """Why the counters of a window, or of a part of it, do not mean anything.

    Attributes:
        kind: what is wrong; after a ``reload`` the counters are still valid.
        detail: one line for the user.
        group, server: names, when the fault concerns only one.
    """

    kind: FaultKind
    detail: str
    group: str = ""
    server: str = ""


@dataclass(frozen=True)
class Connections:
    """NGINX's own client connection counts (`stub_status`) at the end of the window."""

    active: int = 0
    reading: int = 0
    writing: int = 0
    waiting: int = 0


@dataclass(frozen=True, eq=False)
class LoadWindow:
    """What the load engine counted in one of its windows.

    Arrays are ``[groups]`` unless said otherwise, in the topology's order of request types.

    Attributes:
        start_s, end_s: seconds since the plan began.
        planned: requests that the plan asked for.
        sent: requests that were written to a connection.
        answered: responses received, of any status.
        errors: mapping of class (``connect``, ``timeout``, ``closed``, ``status_4xx``, ``status_5xx``,
            ``not_sent``) to counts; the status classes are a part of `answered`.
        late: requests sent more than 1 ms after their intended time.
        retried: requests repeated once because a keep-alive connection closed before any byte.
        latency_counts: ``[groups, histogram.SIZE]``, from the intended send time to the last byte,
            of answered requests with a status below 400.
        latency_s_sum: seconds, of the same requests.
        send_delay_p99_ms: actual minus intended send time.
        cpu_share: CPU seconds of the engine per second of the window, 0…1.
        saturated: the engine itself was the bottleneck, so that the window says nothing about the servers.
        repeated: attempts that clients made again, not part of `planned`; None when clients do not repeat.
        good: requests with an answer below 400 within the deadline, from the start of that attempt; good_first: the
            same from the start of the first attempt. None without deadlines.
    """

    start_s: float
    end_s: float
    planned: IntArray
    sent: IntArray
    answered: IntArray
    errors: dict[str, IntArray]
    late: IntArray
    retried: IntArray
    latency_counts: IntArray
    latency_s_sum: FloatArray
    send_delay_p99_ms: float = 0.0
    cpu_share: float = 0.0
    saturated: bool = False
    repeated: IntArray | None = None
    good: IntArray | None = None
    good_first: IntArray | None = None


@dataclass(frozen=True, eq=False)
class DelayWindow:
    """What only a balancer in memory knows of a window: samples for `envs.estimators.base`. ``[groups, servers]``.

    Attributes:
        requests: responses (status below 500, not aborted by the client) that the balancer counted.
        idle_requests: those of them that met an idle worker when they were forwarded.
        idle_response_s: seconds, sum of the response times of `idle_requests`.
        predicted_wait_s, predicted_service_s: seconds, sums over `requests` of what the rule predicted
            when it chose; 0 while no service times are in force.
        tau_s: seconds, service times in force at the end; 0 without.
        by_in_flight: ``[servers, 25, 6]`` or None: responses by the number of requests (0…24) in flight at the server
            when they were forwarded; each row holds count, Σq, Σq², Σy, Σy², Σqy, where y is the response time and q
            the mean service time of those in flight, both divided by the service time in force of the response's cell.
    """

    requests: IntArray
    idle_requests: IntArray
    idle_response_s: FloatArray
    predicted_wait_s: FloatArray
    predicted_service_s: FloatArray
    tau_s: FloatArray
    by_in_flight: FloatArray | None = None


@dataclass(frozen=True, eq=False)
class AdmissionWindow:
    """What admission control counted in a window, first attempts and repeated ones alike. ``[groups]``.

    Attributes:
        offered: requests that asked to enter; refused: those of them that were refused.
        spared: those of them that entered beyond the limit: refusals are only counted, of a part of the requests only,
            or were too many of the group.
        finished: requests that had entered and ended, except `quick` ones: errors before the group's idle latency,
            answers of NGINX itself, and clients that left before the deadline.
        late: those of `finished` that took longer than the deadline, were given up by the client, or failed.
        in_flight: requests inside at the end.
        limits: on the requests in flight of all groups, at the end; ∞ where none is in force.
        peak: most requests in flight of all groups at a time.
    """

    offered: IntArray
    refused: IntArray
    spared: IntArray
    finished: IntArray
    late: IntArray
    quick: IntArray
    in_flight: IntArray
    limits: FloatArray
    peak: int


@dataclass(frozen=True, eq=False)
class HoldWindow:
    """What late binding did in a window, or would have done (docs/late-binding.md#status). ``[groups]``.

    All times count from a request's arrival, so that they contain the time that it was held.

    Attributes:
        state: `holding`, `watching` (what would be held is only counted), or why nothing is held, at the end.
        asked: requests that asked for a slot; would: those of them that would have been held, while `watching`.
        held: requests that left the line, however; held_s: seconds, their sum.
        refused: answered with 503, because too many were held or after the longest hold; hopeless: because they would
            have been late.
        gone: clients that left while they were held; passed: let through without a slot.
        answered: requests that asked for a slot and were answered; answered_s: seconds, their sum.
        late: those of them that took longer than the deadline.
        in_line: held at the end.
        bounds_ms: upper bounds of both histograms, ascending.
        held_histogram, answer_histogram: ``[groups, bounds + 1]``, of `held_s` and `answered_s`; the last column lies
            above all bounds.
    """

    state: str
    asked: IntArray
    would: IntArray
    held: IntArray
    held_s: FloatArray
    refused: IntArray
    hopeless: IntArray
    gone: IntArray
    passed: IntArray
    answered: IntArray
    answered_s: FloatArray
    late: IntArray
    in_line: IntArray
    bounds_ms: tuple[int, ...]
    held_histogram: IntArray
    answer_histogram: IntArray

    @property
    def counts(self) -> bool:
        """Whether answers were counted from arrival, so that these times are those that clients waited."""
        return self.state in ("holding", "watching") and bool(self.bounds_ms)


@dataclass(frozen=True, eq=False)
class Window:
    """Difference of two snapshots of NGINX's counters. Arrays are ``[groups, servers]`` with the topology's mask.

    Attributes:
        start_s, end_s: NGINX's clock (seconds since the epoch), or simulated seconds.
        requests: finished attempts, as vts counts them (docs/nginx-facts.md#vts-retries).
        in_bytes, out_bytes: client-side bytes.
        responses: ``[groups, servers, 5]``, statuses 1xx…5xx.
        response_ms_sum: sum of `$upstream_response_time` in whole milliseconds.
        bounds_ms: upper bounds of the histogram, ascending, at most 32.
        latency_histogram: ``[groups, servers, len(bounds_ms) + 1]``; the last column lies above all bounds.
        weight: weights in force at the end; 0 where the mask is False.
        down: ``True`` for servers out of rotation at the end.
        connections: NGINX's connection counts at the end.
        active: requests in flight at the end; None when the source does not know.
        faults: what is wrong with the window; empty when nothing is.
        client: the load engine's counts of the same interval; None without a load engine.
        delay: samples of a balancer in memory; None without one.
        client_errors: 5xx that clients of this NGINX got, of all its virtual servers; None when the source does not
            tell. Attempts that another server answered are in `responses` only, and not with every version of vts.
        backup: ``True`` for servers that get requests only when no other server is up; None when none is known.
        admission: counts of admission control; None without it.
        holding: counts of late binding; None where no location asks for a slot.
        proxy_cpu_s: CPU time of the load balancer and its workers meanwhile; None when not measured.
    """

    topology: Topology
    start_s: float
    end_s: float
    requests: IntArray
    in_bytes: IntArray
    out_bytes: IntArray
    responses: IntArray
    response_ms_sum: IntArray
    bounds_ms: tuple[int, ...]
    latency_histogram: IntArray
    weight: IntArray
    down: NDArray[np.bool_]
    connections: Connections = field(default_factory=Connections)
    active: IntArray | None = None
    faults: tuple[Fault, ...] = ()
    client: LoadWindow | None = None
    delay: DelayWindow | None = None
    client_errors: int | None = None
    backup: NDArray[np.bool_] | None = None
    admission: AdmissionWindow | None = None
    holding: HoldWindow | None = None
    proxy_cpu_s: float | None = None

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def usable(self) -> bool:
        """True when the counters are valid."""
        return all(fault.kind == "reload" for fault in self.faults)

    @property
    def server_errors(self) -> IntArray:
        """``[groups, servers]``: 5xx responses."""
        return self.responses[:, :, 4]

    def mean_response_s(self) -> FloatArray:
        """``[groups, servers]`` mean response time in seconds; nan where nothing was answered."""
        with np.errstate(invalid="ignore", divide="ignore"):
            mean: FloatArray = self.response_ms_sum / np.where(self.requests > 0, self.requests, np.nan) / 1e3
        return mean


def merge_load_windows(windows: Sequence[LoadWindow], groups: int) -> LoadWindow:
    """Sums the windows, which must be adjacent; zeros when there are none. The CPU share is weighted by duration."""
    zeros = np.zeros(groups, dtype=np.int64)
    if not windows:
        counts = np.zeros((groups, histogram.SIZE), dtype=np.int64)
        return LoadWindow(0.0, 0.0, zeros, zeros, zeros, {}, zeros, zeros, counts, np.zeros(groups))
    kinds = sorted({kind for window in windows for kind in window.errors})
    duration_s = sum(w.end_s - w.start_s for w in windows)
    busy_s = sum(w.cpu_share * (w.end_s - w.start_s) for w in windows)
    return LoadWindow(
        start_s=windows[0].start_s,
        end_s=windows[-1].end_s,
        planned=np.sum([w.planned for w in windows], axis=0),
        sent=np.sum([w.sent for w in windows], axis=0),
        answered=np.sum([w.answered for w in windows], axis=0),
        errors={kind: np.sum([w.errors.get(kind, zeros) for w in windows], axis=0) for kind in kinds},
        late=np.sum([w.late for w in windows], axis=0),
        retried=np.sum([w.retried for w in windows], axis=0),
        latency_counts=np.sum([w.latency_counts for w in windows], axis=0),
        latency_s_sum=np.sum([w.latency_s_sum for w in windows], axis=0),
        send_delay_p99_ms=max(w.send_delay_p99_ms for w in windows),
        cpu_share=busy_s / duration_s if duration_s > 0 else 0.0,
        saturated=any(w.saturated for w in windows),
        repeated=_sum_known([w.repeated for w in windows]),
        good=_sum_known([w.good for w in windows]),
        good_first=_sum_known([w.good_first for w in windows]),
    )


def _sum_known(counts: Sequence[IntArray | None]) -> IntArray | None:
    known = [each for each in counts if each is not None]
    return np.sum(known, axis=0) if len(known) == len(counts) else None


def merge_windows(first: Window, second: Window) -> Window:
    """One window from the start of `first` to the end of `second`, which must follow it: sums, the state at the end."""
    clients = [w.client for w in (first, second) if w.client is not None]
    failed = [w.client_errors for w in (first, second) if w.client_errors is not None]
    cpu_s = [w.proxy_cpu_s for w in (first, second) if w.proxy_cpu_s is not None]
    return replace(
        second,
        start_s=first.start_s,
        requests=first.requests + second.requests,
        in_bytes=first.in_bytes + second.in_bytes,
        out_bytes=first.out_bytes + second.out_bytes,
        responses=first.responses + second.responses,
        response_ms_sum=first.response_ms_sum + second.response_ms_sum,
        latency_histogram=first.latency_histogram + second.latency_histogram,
        faults=first.faults + second.faults,
        client=merge_load_windows(clients, first.topology.shape[0]) if clients else None,
        client_errors=sum(failed) if len(failed) == 2 else None,
        admission=_merge_admission(first.admission, second.admission),
        holding=_merge_holding(first.holding, second.holding),
        proxy_cpu_s=sum(cpu_s) if cpu_s else None,
    )


def _merge_admission(first: AdmissionWindow | None, second: AdmissionWindow | None) -> AdmissionWindow | None:
    if first is None or second is None:
        return second
    return replace(
        second,
        offered=first.offered + second.offered,
        refused=first.refused + second.refused,
        spared=first.spared + second.spared,
        finished=first.finished + second.finished,
        late=first.late + second.late,
        quick=first.quick + second.quick,
        peak=max(first.peak, second.peak),
    )


_HELD = (
    "asked", "would", "held", "held_s", "refused", "hopeless", "gone", "passed", "answered", "answered_s", "late",
    "held_histogram", "answer_histogram",
)  # fmt: skip


def _merge_holding(first: HoldWindow | None, second: HoldWindow | None) -> HoldWindow | None:
    if first is None or second is None or first.bounds_ms != second.bounds_ms:
        return second
    return replace(second, **{name: getattr(first, name) + getattr(second, name) for name in _HELD})
