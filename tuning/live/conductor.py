"""The Ray actor that drives one testbed: one call per control interval, so that one process can drive many.

It repairs what breaks: when a part of the testbed has died, the next `reset` builds the testbed anew in
the same placement group. Ray restarts the actor itself when it dies; its parts die with it.

A Testbed over a conductor, for who drives one of several by hand: to observe it, or to judge on it.
"""

from __future__ import annotations

import contextlib
import pickle
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import ray

from actuators.contract.control import BalancingMethod, Control
from actuators.contract.script import Scenario
from actuators.contract.testbed import Applied, Testbed
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from actuators.errors import ActuationError, DeepSchedError, TestbedError
from actuators.processes.system import set_realtime_priority
from actuators.testbed.remote import RemoteTestbed

NEWS_KEPT = 100


@dataclass(frozen=True, eq=False)
class Stepped:
    """What one call of a conductor gave.

    Attributes:
        window: of the interval; None when there is none, and `fault` says why.
        fault: in words; empty when the window may be read as numbers.
        changed: whether the control was another one than before.
        waited_s: seconds in which nothing was done but to wait for the interval's end; the rest is our own work.
        apply_s: seconds until the control was in force.
        collect_s: seconds from the interval's end until its window was read and the testbed looked over.
    """

    window: Window | None
    fault: str = ""
    changed: bool = False
    waited_s: float = 0.0
    apply_s: float = 0.0
    collect_s: float = 0.0

    def dump(self) -> bytes:
        """For another process of this cluster."""
        return pickle.dumps(self, pickle.HIGHEST_PROTOCOL)

    @classmethod
    def load(cls, data: bytes) -> Stepped:
        """The inverse of `dump`; only for what came from an actor of our own."""
        stepped = pickle.loads(data)
        assert isinstance(stepped, cls)
        return stepped


@dataclass(frozen=True)
class News:
    """Something that a person should hear about: a fault, a repair.

    Attributes:
        number: ascends within a testbed, from 1.
        at: time in UTC.
        lost: intervals that it cost, 0 or 1.
    """

    testbed: str
    number: int
    at: str
    text: str
    lost: int = 0


class TestbedDriver:
    """What a conductor does, apart from Ray.

    Args:
        make: builds the testbed; gets the number of the build, from 0.
        method: balancing method under the weights.
    """

    def __init__(self, name: str, make: Callable[[int], Testbed], method: BalancingMethod) -> None:
        self.name, self._make, self._method = name, make, method
        self._testbed: Testbed | None = None
        self._builds = self._windows = self._faults = 0
        self._news: deque[News] = deque(maxlen=NEWS_KEPT)
        self._said = 0
        self._doing = "idle"

    def reset(self, scenario: Scenario, seed: int, interval_s: float) -> Stepped:
        """Starts a script under equal weights and waits for its first window; builds or repairs the testbed first.

        Raises DeepSchedError when the testbed cannot be built; the next reset tries again.
        """
        self._doing = "resetting"
        testbed = self._sound()
        try:
            testbed.reset(scenario, seed)
            return self._advance(testbed, interval_s, changed=False)
        except DeepSchedError:
            self._break()
            raise

    def step(self, control: Control, interval_s: float) -> Stepped:
        """Puts a control of this testbed's shape in force and waits for the interval's end; never raises for faults."""
        if self._testbed is None:
            return self._note(Stepped(None, "the testbed was not running"))
        self._doing = "stepping"
        began_s = time.monotonic()
        try:
            # Only this side knows the addresses that the servers have now.
            applied = self._testbed.apply(replace(control, topology=self._testbed.topology))
            apply_s = time.monotonic() - began_s
            return replace(self._advance(self._testbed, interval_s, changed=applied.changed), apply_s=apply_s)
        except ActuationError as error:
            return self._note(Stepped(None, f"not_in_force: {error}"))
        except TestbedError as error:
            self._break()
            return self._note(Stepped(None, str(error)))

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A method of the testbed, for those who drive it by hand (`tuning.live.conductor`)."""
        self._doing = method
        return getattr(self._sound() if method in ("reset", "set_method") else self._running(), method)(*args, **kwargs)

    def topology(self) -> Any:
        """The topology with real addresses; builds the testbed when there is none."""
        return self._sound().topology

    def describe(self) -> dict[str, Any]:
        """State for a person: what it does, how often it was built, windows and faults so far, where its parts are."""
        places: dict[str, str] = self._testbed.places() if isinstance(self._testbed, RemoteTestbed) else {}
        return {
            "name": self.name,
            "doing": self._doing,
            "builds": self._builds,
            "windows": self._windows,
            "faults": self._faults,
            "method": self._method,
            "places": places,
        }

    def news(self, after: int) -> list[News]:
        """What has happened since the news of that number."""
        return [news for news in self._news if news.number > after]

    def close(self) -> None:
        """Ends the testbed; a later reset builds another one."""
        self._doing = "idle"
        testbed, self._testbed = self._testbed, None
        if testbed is not None:
            testbed.close()

    def _advance(self, testbed: Testbed, interval_s: float, *, changed: bool) -> Stepped:
        began_s = time.monotonic()
        remote = testbed if isinstance(testbed, RemoteTestbed) else None
        checks = remote.begin_checks() if remote else []
        # Looked at before the interval's end, they cost nothing then.
        told = remote.dead_parts(checks) if remote and remote.answered(checks, interval_s / 2) else None
        window = testbed.advance(interval_s)
        # A testbed without a clock of its own, such as a simulated one, does not wait.
        waited_s = max(getattr(testbed, "due_s", began_s) - began_s, 0.0)
        self._windows += 1
        if told is None:
            told = remote.dead_parts(checks) if remote else []
        if not told and not window.usable:
            told = [f"{fault.kind}: {fault.detail}" for fault in window.faults if fault.kind != "reload"]
        collect_s = time.monotonic() - began_s - waited_s
        stepped = Stepped(window, "; ".join(told), changed, waited_s, collect_s=collect_s)
        return self._note(stepped) if told else stepped

    def _sound(self) -> Testbed:
        """The testbed, all of whose parts live; built anew when there is none or something in it has died."""
        if self._testbed is not None:
            dead = self._testbed.dead_parts() if isinstance(self._testbed, RemoteTestbed) else []
            if not dead:
                return self._testbed
            self._say(f"{', '.join(dead)}; building the testbed anew")
            self._break()
        began_s = time.monotonic()
        self._doing = "building"
        testbed = self._make(self._builds)
        try:
            testbed.set_method(self._method)
        except BaseException:
            testbed.close()
            raise
        self._testbed = testbed
        self._builds += 1
        if self._builds > 1:
            self._say(f"rebuilt in {time.monotonic() - began_s:.1f} s")
        return testbed

    def _running(self) -> Testbed:
        if self._testbed is None:
            raise TestbedError("nothing is running", where=self.name, remedy="call reset first")
        return self._testbed

    def _break(self) -> None:
        # What is left of a broken testbed may be unable to close; a part that hangs is killed by its close.
        with contextlib.suppress(DeepSchedError):
            self.close()

    def _note(self, stepped: Stepped) -> Stepped:
        self._faults += 1
        self._say(stepped.fault, lost=1)
        return stepped

    def _say(self, text: str, lost: int = 0) -> None:
        self._said += 1
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._news.append(News(self.name, self._said, now, text, lost))


class Conductor(TestbedDriver):
    """A TestbedDriver as an actor; who only looks on does not wait for the running interval."""

    def __init__(self, name: str, make: Callable[[int], Testbed], method: BalancingMethod) -> None:
        super().__init__(name, make, method)
        set_realtime_priority()

    def reset(self, scenario: Scenario, seed: int, interval_s: float) -> bytes:  # type: ignore[override]
        """As TestbedDriver's, for `Stepped.load`: Ray takes several times as long to pack thirty small arrays."""
        return super().reset(scenario, seed, interval_s).dump()

    def step(self, control: Control, interval_s: float) -> bytes:  # type: ignore[override]
        """As TestbedDriver's, for `Stepped.load`."""
        return super().step(control, interval_s).dump()

    @ray.method(concurrency_group="watch")
    def describe(self) -> dict[str, Any]:
        """As TestbedDriver's."""
        return super().describe()

    @ray.method(concurrency_group="watch")
    def news(self, after: int) -> list[News]:
        """As TestbedDriver's."""
        return super().news(after)

    def __ray_shutdown__(self) -> None:
        self.close()


CONDUCTOR: Any = ray.remote(num_cpus=0, max_restarts=-1, concurrency_groups={"watch": 1})(Conductor)
"""Conductor as Ray starts it."""

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
