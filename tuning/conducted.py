"""A Testbed over a conductor, for who drives one of several by hand: to observe it, or to judge on it."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import ray

from actuators.control import BalancingMethod, Control
from actuators.errors import TestbedError
from actuators.script import Scenario
from actuators.testbed import Applied
from actuators.topology import Topology
from actuators.window import Window

START_TIMEOUT_S = 240.0
ANSWER_SLACK_S = 60.0


class ConductedTestbed:
    """Testbed protocol; `close` leaves the testbed to whoever opened the conductor.

    Raises TestbedError at the start when the testbed does not come up within 240 s.
    """

    def __init__(self, conductor: Any, name: str) -> None:
        self._conductor, self._name = conductor, name
        self._topology: Topology = self._wait(conductor.topology.remote(), START_TIMEOUT_S)

    @property
    def topology(self) -> Topology:
        return self._topology

    def reset(self, scenario: Scenario, seed: int) -> None:
        self._call(ANSWER_SLACK_S, "reset", scenario, seed)

    def set_method(self, method: BalancingMethod) -> None:
        self._call(ANSWER_SLACK_S, "set_method", method)

    def apply(self, control: Control) -> Applied:
        applied: Applied = self._call(ANSWER_SLACK_S, "apply", control)
        return applied

    def advance(self, interval_s: float) -> Window:
        window: Window = self._call(interval_s + ANSWER_SLACK_S, "advance", interval_s)
        return window

    def drain(self, timeout_s: float = 15.0) -> Window:
        window: Window = self._call(timeout_s + ANSWER_SLACK_S, "drain", timeout_s)
        return window

    def close(self) -> None:
        """Nothing to do: the testbed goes on for others."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, timeout_s: float, method: str, *args: Any) -> Any:
        return self._wait(self._conductor.call.remote(method, *args), timeout_s)

    def _wait(self, reference: Any, timeout_s: float) -> Any:
        try:
            return ray.get(reference, timeout=timeout_s)
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from error
        except ray.exceptions.GetTimeoutError as error:
            raise TestbedError(f"{self._name} did not answer within {timeout_s:g} s") from error
        except ray.exceptions.RayActorError as error:
            raise TestbedError(f"the conductor of {self._name} died", remedy="try again: it is restarted") from error
