"""The Testbed protocol: one NGINX, its servers and one load generator, as an environment uses them.

Live (`actuators.testbed.live`) and simulated (`envs.simulator.testbed`) testbeds implement it and pass the same
contract tests (`tests/support/contracts.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from actuators.contract.admission import Admission
from actuators.contract.control import BalancingMethod, Control
from actuators.contract.script import Scenario
from actuators.contract.topology import Topology
from actuators.contract.window import Window


@dataclass(frozen=True)
class Applied:
    """Confirmation that a control is in force.

    Attributes:
        changed: False when the control was already in force and nothing was done.
        duration_s: from the call until the control was in force and read back.
    """

    changed: bool
    duration_s: float


@dataclass(frozen=True)
class Restored(Applied):
    """Confirmation that an earlier control is in force again, as far as its servers still exist.

    Attributes:
        restored: GROUP/SERVER that have their earlier control again.
        missing: those of the earlier control that NGINX does not have any more, or whose group takes no weights now, as
            when all of its servers are down.
        added: those of its groups that NGINX has now and the earlier control does not know; they keep what they had.
    """

    restored: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    added: tuple[str, ...] = ()


class Testbed(Protocol):
    """One NGINX, its servers and one load generator; a context manager."""

    @property
    def topology(self) -> Topology: ...

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Ends a running script, puts equal weights in force and starts the scenario's script.

        NGINX also forgets which servers failed, because those failures belong to the earlier script. The next
        `advance` returns the first window. Raises TestbedError when the testbed cannot return to a clean state.
        """
        ...

    def set_method(self, method: BalancingMethod) -> None:
        """Switches NGINX to `method`, with equal weights. Raises ActuationError."""
        ...

    def apply(self, control: Control) -> Applied:
        """Puts a control in force. Raises ActuationError; the old control is then still in force."""
        ...

    def admit(self, admission: Admission | None) -> None:
        """Requests enter by this rule from now on; None lets all enter. It stays in force over `reset`.

        Raises ActuationError; then the old rule is in force.
        """
        ...

    def advance(self, interval_s: float) -> Window:
        """Waits until `interval_s` seconds (> 0) after the end of the previous window; returns the window since then.

        A disturbed system does not raise: what is wrong with the window is in its `faults`.
        Raises TestbedError only when there can be no window (before `reset`, after `close`).
        """
        ...

    def drain(self, timeout_s: float = 10.0) -> Window:
        """Ends the arrivals, waits until no request is in flight and returns the window since the last one."""
        ...

    def close(self) -> None:
        """Releases everything; idempotent."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
