"""A testbed whose interval is a wait and whose windows are made up: for what concerns Ray, not NGINX.

Benches and tests of parallel testbeds use it: real actors and real time, but next to no CPU. Every actor imports this
module, so it imports nothing heavy.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from actuators.closing import Closing
from actuators.contract.admission import Admission
from actuators.contract.control import BalancingMethod, Control, Weights
from actuators.contract.script import Scenario
from actuators.contract.testbed import Applied
from actuators.contract.topology import Topology, social_network
from actuators.contract.window import DEFAULT_BOUNDS_MS, Window
from actuators.errors import TestbedError


class WaitingTestbed(Closing):
    """Testbed protocol; every window says the same about ten requests of 10 ms per group and server."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.due_s = 0.0
        self._control: Control = Weights.equal(topology)
        self._closed = False

    def reset(self, scenario: Scenario, seed: int) -> None:
        self._require_open()
        self.due_s = time.monotonic()
        self._control = Weights.equal(self.topology)

    def set_method(self, method: BalancingMethod) -> None:
        self._require_open()

    def apply(self, control: Control) -> Applied:
        self._require_open()
        changed, self._control = control != self._control, control
        return Applied(changed, 0.0)

    def admit(self, admission: Admission | None) -> None:
        self._require_open()

    def advance(self, interval_s: float) -> Window:
        """Waits as a live testbed does: for the tick, which is skipped when more than an interval has been lost."""
        self._require_open()
        self.due_s += interval_s
        now_s = time.monotonic()
        if now_s > self.due_s + interval_s:
            self.due_s = now_s
        time.sleep(max(self.due_s - now_s, 0.0))
        return self._window(interval_s)

    def drain(self, timeout_s: float = 10.0) -> Window:
        return replace(self._window(0.0), requests=np.zeros(self.topology.shape, np.int64))

    def close(self) -> None:
        self._closed = True

    def _require_open(self) -> None:
        if self._closed:
            raise TestbedError("the testbed is closed", remedy="build a new one")

    def _window(self, interval_s: float) -> Window:
        shape = self.topology.shape
        histogram = np.zeros((*shape, len(DEFAULT_BOUNDS_MS) + 1), np.int64)
        histogram[..., DEFAULT_BOUNDS_MS.index(10)] = 10
        responses = np.zeros((*shape, 5), np.int64)
        responses[..., 1] = 10
        weights = self._control.values if isinstance(self._control, Weights) else np.ones(shape, np.int64)
        now_s = time.time()
        return Window(
            topology=self.topology,
            start_s=now_s - interval_s,
            end_s=now_s,
            requests=np.full(shape, 10, np.int64),
            in_bytes=np.zeros(shape, np.int64),
            out_bytes=np.zeros(shape, np.int64),
            responses=responses,
            response_ms_sum=np.full(shape, 100, np.int64),
            bounds_ms=DEFAULT_BOUNDS_MS,
            latency_histogram=histogram,
            weight=weights,
            down=np.zeros(shape, dtype=bool),
        )


def make_waiting(build: int) -> WaitingTestbed:
    """For `tuning.live.testbeds.Testbeds`: a WaitingTestbed over the social network's groups."""
    return WaitingTestbed(social_network())
