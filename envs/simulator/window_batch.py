"""What one control interval looked like in every environment of a simulated batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import EllipsisType

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray, IntArray
from actuators.contract.topology import Topology
from actuators.contract.window import AdmissionWindow, Connections, DelayWindow, Fault, LoadWindow, Window


@dataclass(frozen=True, eq=False)
class AttemptCounts:
    """What NGINX's gate and the clients counted of a window, first attempts and repeated ones. ``[size, groups]``.

    Attributes:
        offered: attempts that came; refused: those that were refused; spared: those let in beyond the limit.
        finished, late, failed, quick: of those that had entered, by the admission's deadline and idle time, or else by
            the script's deadlines (docs/admission.md#counts-of-a-tick), but that `late` and `failed` have nothing in
            common here.
        gave_up: attempts whose clients gave up.
        inside: attempts in flight at the end.
        good: requests of which an attempt was answered within the script's deadline from that attempt's start;
            good_first: those of them that were answered within the deadline from the first attempt's start.
        slow: requests that were answered after the deadline.
        lost_refused, lost_gave_up, lost_failed: requests that ended without an answer, by how the last attempt ended.
        response_s: seconds, sum over `finished`.
        limits: on what is in flight in all groups, at the end; infinite where there is none.
        peak: ``[size]``, the most that were in flight at a time.
        limited: whether an admission is in force.
        timed: ``[size]``, whether the script has deadlines.
    """

    offered: IntArray
    refused: IntArray
    spared: IntArray
    finished: IntArray
    late: IntArray
    failed: IntArray
    quick: IntArray
    gave_up: IntArray
    inside: IntArray
    good: IntArray
    good_first: IntArray
    slow: IntArray
    lost_refused: IntArray
    lost_gave_up: IntArray
    lost_failed: IntArray
    response_s: FloatArray
    limits: FloatArray
    peak: IntArray
    limited: bool
    timed: NDArray[np.bool_]

    def window(self, i: int) -> AdmissionWindow | None:
        """One environment's as NGINX would tell it; None without admission."""
        if not self.limited:
            return None
        return AdmissionWindow(
            self.offered[i], self.refused[i], self.spared[i], self.finished[i], self.late[i] + self.failed[i],
            self.quick[i], self.inside[i], self.limits[i], int(self.peak[i]),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class WindowBatch:
    """One window of every environment: `actuators.contract.window.Window`'s arrays with a leading axis ``[size]``.

    Attributes:
        start_s, end_s: ``[size]``, simulated seconds since each environment's reset.
        latency_counts: ``[size, groups, histogram.SIZE]``, exact client latencies of good answers.
        latency_s_sum: ``[size, groups]``, seconds, of the same answers.
        planned, answered, failed: ``[size, groups]``: arrivals, answers, answers with an error status.
        delay: ``[size, groups, servers, 4]``, under `expected_delay` only: arrivals that found an idle
            worker, their response seconds, and over all answers predicted wait and service time in s;
            answers below 500 only.
        by_in_flight: ``[size, servers, 25, 6]``, see DelayWindow; zeros unless `count_by_in_flight`.
        tau_s: ``[size, groups, servers]`` service times in force at the end; 0 while there are none.
        balances_by_delay: True under `expected_delay`.
        ended: ``[size]``, the script was over before the window's end.
        attempts: what the gate and the clients counted; a refused attempt is in no other count.
        costs: ``[size, groups, kinds, 3]``, where the script has kinds of requests, under `expected_delay` only: those
            that found an idle worker, their response times over the service time believed, and the squares of these.
    """

    topology: Topology
    bounds_ms: tuple[int, ...]
    start_s: FloatArray
    end_s: FloatArray
    requests: IntArray
    responses: IntArray
    response_ms_sum: IntArray
    latency_histogram: IntArray
    weight: IntArray
    down: NDArray[np.bool_]
    active: IntArray
    latency_counts: IntArray
    latency_s_sum: FloatArray
    planned: IntArray
    answered: IntArray
    failed: IntArray
    delay: FloatArray
    by_in_flight: FloatArray
    ended: NDArray[np.bool_]
    tau_s: FloatArray
    balances_by_delay: bool
    attempts: AttemptCounts
    costs: FloatArray

    def window(self, index: int) -> Window:
        """One environment's window, with the client's exact view."""
        i, zeros = index, np.zeros(self.topology.shape, np.int64)
        faults = (Fault("load_ended", "the script was over before the window's end"),) if self.ended[i] else ()
        in_flight = int(self.active[i].sum())
        return Window(
            self.topology, float(self.start_s[i]), float(self.end_s[i]), self.requests[i], zeros, zeros,
            self.responses[i], self.response_ms_sum[i], self.bounds_ms, self.latency_histogram[i], self.weight[i],
            self.down[i], Connections(active=in_flight, writing=in_flight), self.active[i], faults, self._client(i),
            self.delay_window(i), admission=self.attempts.window(i),
        )  # fmt: skip

    def delay_window(self, index: int | EllipsisType = ...) -> DelayWindow | None:
        """What the balancer in memory saw, of one environment or, by default, of all: ``[size, groups, servers]``."""
        if not self.balances_by_delay:
            return None
        sums, good = self.delay[index], (self.requests - self.responses[..., 3] - self.responses[..., 4])[index]
        idle = sums[..., 0].astype(np.int64)
        by_in_flight = self.by_in_flight[index]
        return DelayWindow(
            good, idle, sums[..., 1], sums[..., 2], sums[..., 3], self.tau_s[index],
            by_in_flight if by_in_flight.any() else None,
        )  # fmt: skip

    def _client(self, i: int) -> LoadWindow:
        attempts, none = self.attempts, np.zeros(len(self.topology.groups), np.int64)
        errors = {"status_5xx": self.failed[i] + attempts.refused[i]}
        if attempts.gave_up[i].any():
            errors["timeout"] = attempts.gave_up[i]
        window = LoadWindow(
            float(self.start_s[i]), float(self.end_s[i]), self.planned[i], attempts.offered[i],
            self.answered[i] + attempts.refused[i], errors, none, none, self.latency_counts[i], self.latency_s_sum[i],
        )  # fmt: skip
        if not attempts.timed[i]:
            return window
        repeated = attempts.offered[i] - self.planned[i]
        return replace(window, repeated=repeated, good=attempts.good[i], good_first=attempts.good_first[i])
