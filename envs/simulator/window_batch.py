"""What one control interval looked like in every environment of a simulated batch."""

from __future__ import annotations

from dataclasses import dataclass
from types import EllipsisType

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray, IntArray
from actuators.contract.topology import Topology
from actuators.contract.window import Connections, DelayWindow, Fault, LoadWindow, Window


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

    def window(self, index: int) -> Window:
        """One environment's window, with the client's exact view."""
        i, zeros = index, np.zeros(self.topology.shape, np.int64)
        faults = (Fault("load_ended", "the script was over before the window's end"),) if self.ended[i] else ()
        in_flight = int(self.active[i].sum())
        return Window(
            self.topology, float(self.start_s[i]), float(self.end_s[i]), self.requests[i], zeros, zeros,
            self.responses[i], self.response_ms_sum[i], self.bounds_ms, self.latency_histogram[i], self.weight[i],
            self.down[i], Connections(active=in_flight, writing=in_flight), self.active[i], faults, self._client(i),
            self.delay_window(i),
        )  # fmt: skip

    def delay_window(self, index: int | EllipsisType = ...) -> DelayWindow | None:
        """What the balancer in memory saw, of one environment or, by default, of all: ``[size, groups, servers]``."""
        if not self.balances_by_delay:
            return None
        sums, good = self.delay[index], (self.requests - self.responses[..., 4])[index]
        idle = sums[..., 0].astype(np.int64)
        by_in_flight = self.by_in_flight[index]
        return DelayWindow(
            good, idle, sums[..., 1], sums[..., 2], sums[..., 3], self.tau_s[index],
            by_in_flight if by_in_flight.any() else None,
        )  # fmt: skip

    def _client(self, i: int) -> LoadWindow:
        none = np.zeros(len(self.topology.groups), np.int64)
        return LoadWindow(
            float(self.start_s[i]), float(self.end_s[i]), self.planned[i], self.planned[i], self.answered[i],
            {"status_5xx": self.failed[i]}, none, none, self.latency_counts[i], self.latency_s_sum[i],
        )  # fmt: skip
