"""The simulated testbed: one environment of a batch behind the Testbed protocol, as the live one."""

from __future__ import annotations

import numpy as np

from actuators.closing import Closing
from actuators.contract.admission import Admission
from actuators.contract.control import BY_TIMES, BalancingMethod, CappedWeights, Control, ServiceTimes, Weights
from actuators.contract.late_binding import unlimited
from actuators.contract.script import Scenario
from actuators.contract.testbed import Applied
from actuators.contract.topology import Topology
from actuators.contract.window import DEFAULT_BOUNDS_MS, Window
from actuators.errors import ActuationError, TestbedError
from envs.simulator.batch import OracleMethod, SimulatedBatch, SimulationOptions, warm_up
from envs.simulator.window_batch import WindowBatch

__all__ = ["OracleMethod", "SimulatedBatch", "SimulatedTestbed", "SimulationOptions", "WindowBatch", "warm_up"]


class SimulatedTestbed(Closing):
    """A Testbed whose time is simulated: `advance` returns as soon as the interval has been computed."""

    def __init__(
        self,
        topology: Topology,
        method: BalancingMethod = "least_conn",
        bounds_ms: tuple[int, ...] = DEFAULT_BOUNDS_MS,
        options: SimulationOptions | None = None,
    ) -> None:
        self._batch = SimulatedBatch(topology, 1, method, bounds_ms, options)
        self._method: BalancingMethod = method
        self._control: Control = Weights.equal(topology)
        self._running = self._closed = False

    @property
    def topology(self) -> Topology:
        return self._batch.topology

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Starts the scenario's script at time 0 with equal weights."""
        self._require_open()
        self._batch.reset(0, scenario.script(self.topology, seed))
        self._control = Weights.equal(self.topology)
        self._running = True

    def set_method(self, method: BalancingMethod) -> None:
        self._require_open()
        self._batch.set_method(method)
        self._method = method
        self._control = Weights.equal(self.topology)

    def apply(self, control: Control) -> Applied:
        """Puts a control in force at once; service times under a method that takes weights are read as 1/τ."""
        self._require_open()
        if isinstance(control, Weights) and self._method in BY_TIMES:
            raise ActuationError(f"{self._method} takes service times", remedy="call set_method first")
        if control.topology != self.topology:
            raise ActuationError("the control is of another topology", where="simulated testbed")
        if isinstance(control, ServiceTimes) and self._method not in BY_TIMES:
            control = control.as_weights()
        changed = not _same(control, self._control)
        if isinstance(control, Weights):
            self._batch.set_weights(control.values[None], control.down[None])
            if isinstance(control, CappedWeights):
                self._batch.limit_connections(control.most[None])
        else:
            self._batch.set_service_times(control.tau_s[None], control.workers[None], control.down[None])
            self._batch.hold([control.holding or unlimited(self.topology)])
        self._control = control
        return Applied(changed, 0.0)

    def admit(self, admission: Admission | None) -> None:
        """Requests enter by this admission from now on; None lets all in. It stays in force over resets."""
        self._require_open()
        if admission is not None and admission.topology != self.topology:
            raise ActuationError("the admission is of another topology", where="simulated testbed")
        self._batch.admit(admission)

    def advance(self, interval_s: float) -> Window:
        self._require_running()
        return self._batch.advance(interval_s).window(0)

    def drain(self, timeout_s: float = 10.0) -> Window:
        self._require_running()
        self._running = False
        return self._batch.drain(timeout_s).window(0)

    def close(self) -> None:
        self._closed = True
        self._running = False

    def _require_open(self) -> None:
        if self._closed:
            raise TestbedError("the testbed is closed", remedy="build a new one")

    def _require_running(self) -> None:
        self._require_open()
        if not self._running:
            raise TestbedError("nothing is running", where="simulated testbed", remedy="call reset first")


def _same(one: Control, other: Control) -> bool:
    if isinstance(one, Weights) or isinstance(other, Weights):
        return one == other
    same = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("tau_s", "workers", "down"))
    return same and one.holding is other.holding
