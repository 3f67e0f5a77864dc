"""The Testbed protocol: what an environment may ask of one NGINX, its servers and one load generator.

Live (`actuators.testbed.live`) and simulated (`envs.simulator.testbed`) testbeds implement it and pass the same
contract tests (`tests/contracts.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from actuators.contract.control import BalancingMethod, Control
from actuators.contract.script import Scenario
from actuators.contract.topology import Topology
from actuators.contract.window import Window


@dataclass(frozen=True)
class Applied:
    """Acknowledgement that a control is in force.

    Attributes:
        changed: False when the control was already in force and nothing was done.
        duration_s: from the call until the control was in force and read back.
    """

    changed: bool
    duration_s: float


class Testbed(Protocol):
    """One NGINX, its servers and one load generator; a context manager."""

    @property
    def topology(self) -> Topology: ...

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Ends a running script, puts equal weights in force and starts the scenario's script.

        NGINX forgets which servers failed: they were others' failures, of another script. The next `advance`
        returns the first window. Raises TestbedError when the testbed cannot be brought back to a clean state.
        """
        ...

    def set_method(self, method: BalancingMethod) -> None:
        """Makes the NGINX balance by `method` from now on, with equal weights. Raises ActuationError."""
        ...

    def apply(self, control: Control) -> Applied:
        """Puts a control in force. Raises ActuationError; the old control is then still in force."""
        ...

    def advance(self, interval_s: float) -> Window:
        """Lets `interval_s` seconds pass (> 0) since the previous window's end, returns what happened.

        Never raises for a disturbed system: what is wrong with the window is in its `faults`.
        Raises TestbedError only when no window can be had (before `reset`, after `close`).
        """
        ...

    def drain(self, timeout_s: float = 10.0) -> Window:
        """Ends the arrivals, waits until nothing is in flight and returns the window since the last one."""
        ...

    def close(self) -> None:
        """Frees everything; may be called twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
