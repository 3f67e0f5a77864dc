"""The Ray actor that drives one testbed, one call per control interval, and a Testbed over such an actor.

When a part of the testbed has died, the next `reset` rebuilds the testbed in the same placement group. Ray restarts
the actor when it dies; the parts of its testbed die with it. `tuning.live.vector_env` calls many conductors at once.
"""

from __future__ import annotations

import contextlib
import pickle
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import ray

from actuators.closing import Closing
from actuators.contract.admission import Admission
from actuators.contract.control import BalancingMethod, Control
from actuators.contract.script import Scenario
from actuators.contract.testbed import Applied, Testbed
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from actuators.errors import ActuationError, DeepSchedError, TestbedError
from actuators.load.engine import LONGEST_FINISH_S
from actuators.processes.system import set_realtime_priority
from actuators.testbed.remote import RemoteTestbed

NEWS_KEPT = 100


@dataclass(frozen=True, eq=False)
class Stepped:
    """Result of one call of a conductor.

    Attributes:
        window: the interval's window; None when it was lost, then `fault` gives the reason.
        fault: description of the fault; empty when the window is usable.
        changed: whether the control differs from the previous one.
        waited_s: seconds spent waiting for the end of the interval.
        apply_s: seconds until the control was in force.
        collect_s: seconds from the end of the interval until its window was read and the testbed checked.
    """

    window: Window | None
    fault: str = ""
    changed: bool = False
    waited_s: float = 0.0
    apply_s: float = 0.0
    collect_s: float = 0.0

    def dump(self) -> bytes:
        """Serialises the result for another process of this cluster."""
        return pickle.dumps(self, pickle.HIGHEST_PROTOCOL)

    @classmethod
    def load(cls, data: bytes) -> Stepped:
        """The inverse of `dump`. Unpickles: use it only on bytes from an actor of this program."""
        stepped = pickle.loads(data)
        assert isinstance(stepped, cls)
        return stepped


@dataclass(frozen=True)
class News:
    """An event to report to the user: a fault or a repair.

    Attributes:
        number: ascends within a testbed, also over restarts of its conductor.
        at: time in UTC, ISO 8601.
        lost: number of intervals lost, 0 or 1.
    """

    testbed: str
    number: int
    at: str
    text: str
    lost: int = 0


class TestbedDriver:
    """The logic of a conductor, without Ray.

    Args:
        make: builds the testbed; receives the build number, from 0.
        method: balancing method that the weights act on, until `call` sets another one.
    """

    def __init__(self, name: str, make: Callable[[int], Testbed], method: BalancingMethod) -> None:
        self.name, self._make, self._method = name, make, method
        self._testbed: Testbed | None = None
        self._builds = self._windows = self._faults = 0
        self._news: deque[News] = deque(maxlen=NEWS_KEPT)
        # Ray may restart this process between two questions: what the new one says is newer than all of the old one.
        self._said = time.time_ns()
        self._doing = "idle"

    def reset(self, scenario: Scenario, seed: int, interval_s: float) -> Stepped:
        """Builds or repairs the testbed, starts a script under equal weights and waits for its first window.

        Raises:
            DeepSchedError: the testbed cannot be built; the next reset tries again.
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
        """Applies a control of this testbed's shape and waits for the end of the interval; returns faults as text."""
        if self._testbed is None:
            return self._note(Stepped(None, "the testbed was not running"))
        self._doing = "stepping"
        began_s = time.monotonic()
        try:
            applied = self._apply(self._testbed, control)
            apply_s = time.monotonic() - began_s
            return replace(self._advance(self._testbed, interval_s, changed=applied.changed), apply_s=apply_s)
        except ActuationError as error:
            return self._note(Stepped(None, f"not_in_force: {error}"))
        except TestbedError as error:
            self._break()
            return self._note(Stepped(None, str(error)))

    def call(self, method: str, *args: Any) -> Any:
        """Calls a method of the testbed (for `ConductedTestbed`); `reset` and `set_method` repair it first.

        Raises:
            TestbedError: it is not running, for the other methods.
        """
        self._doing = method
        testbed = self._sound() if method in ("reset", "set_method") else self._running()
        if method == "apply":
            return self._apply(testbed, *args)
        answer = getattr(testbed, method)(*args)
        if method == "set_method":
            # A repair in the middle of a block must not go on under another method.
            (self._method,) = args
        return answer

    def dead_parts(self) -> list[str]:
        """What has died of the testbed, in words; empty when nothing has."""
        if self._testbed is None:
            return [f"{self.name} is not running"]
        return self._testbed.dead_parts() if isinstance(self._testbed, RemoteTestbed) else []

    def topology(self) -> Any:
        """The topology with real addresses; builds the testbed if it is not running."""
        return (self._testbed or self._sound()).topology

    def describe(self) -> dict[str, Any]:
        """State for display: activity, number of builds, windows and faults so far, placement of the parts."""
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
        """Events with a number above `after`."""
        return [news for news in self._news if news.number > after]

    def close(self) -> None:
        """Ends the testbed; a later reset builds a new one."""
        self._doing = "idle"
        testbed, self._testbed = self._testbed, None
        if testbed is not None:
            testbed.close()

    def _apply(self, testbed: Testbed, control: Control) -> Applied:
        # Only this process knows the current addresses of the servers: those of a rebuilt testbed are new.
        return testbed.apply(replace(control, topology=testbed.topology))

    def _advance(self, testbed: Testbed, interval_s: float, *, changed: bool) -> Stepped:
        began_s = time.monotonic()
        remote = testbed if isinstance(testbed, RemoteTestbed) else None
        checks = remote.begin_checks() if remote else []
        # Checks that finish before the end of the interval do not delay the next control.
        dead = remote.dead_parts(checks) if remote and remote.answered(checks, interval_s / 2) else None
        window = testbed.advance(interval_s)
        # A testbed without a clock (a simulated one) does not wait.
        waited_s = max(getattr(testbed, "due_s", began_s) - began_s, 0.0)
        self._windows += 1
        if dead is None:
            dead = remote.dead_parts(checks) if remote else []
        if not dead and not window.usable:
            dead = [f"{fault.kind}: {fault.detail}" for fault in window.faults if fault.kind != "reload"]
        collect_s = time.monotonic() - began_s - waited_s
        stepped = Stepped(window, "; ".join(dead), changed, waited_s, collect_s=collect_s)
        return self._note(stepped) if dead else stepped

    def _sound(self) -> Testbed:
        """The running testbed; rebuilds it if it is not running or one of its parts has died."""
        if self._testbed is not None:
            dead = self.dead_parts()
            if not dead:
                return self._testbed
            self._say(f"{', '.join(dead)}; rebuilding the testbed")
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
            raise TestbedError("the testbed is not running", where=self.name, remedy="call reset first")
        return self._testbed

    def _break(self) -> None:
        # A broken testbed may fail to close; its close kills a part that hangs.
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
    """A TestbedDriver as an actor; `describe` and `news` answer while an interval is running."""

    def __init__(self, name: str, make: Callable[[int], Testbed], method: BalancingMethod) -> None:
        super().__init__(name, make, method)
        set_realtime_priority()

    def reset(self, scenario: Scenario, seed: int, interval_s: float) -> bytes:  # type: ignore[override]
        """`TestbedDriver.reset`, dumped: Ray itself takes several times as long to serialise thirty small arrays."""
        return super().reset(scenario, seed, interval_s).dump()

    def step(self, control: Control, interval_s: float) -> bytes:  # type: ignore[override]
        """`TestbedDriver.step`, dumped for `Stepped.load`."""
        return super().step(control, interval_s).dump()

    @ray.method(concurrency_group="watch")
    def place(self) -> tuple[str, str]:
        """Ray's id of the node, and its address."""
        return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()

    @ray.method(concurrency_group="watch")
    def describe(self) -> dict[str, Any]:
        """See `TestbedDriver.describe`."""
        return super().describe()

    @ray.method(concurrency_group="watch")
    def news(self, after: int) -> list[News]:
        """See `TestbedDriver.news`."""
        return super().news(after)

    def __ray_shutdown__(self) -> None:
        self.close()


CONDUCTOR: Any = ray.remote(num_cpus=0, max_restarts=-1, concurrency_groups={"watch": 1})(Conductor)
"""The actor class of `Conductor`; Ray restarts it without limit."""

START_TIMEOUT_S = 240.0
ANSWER_SLACK_S = 60.0


class ConductedTestbed(Closing):
    """Implements the Testbed protocol over a conductor, to observe or evaluate on one testbed of several.

    `reset` and `set_method` repair a testbed of which a part has died; its servers then have new addresses.

    Raises:
        TestbedError: from the constructor, `reset` and `set_method`, when the testbed does not start within 240 s; from
            every method, when the conductor dies or does not answer in time.
    """

    def __init__(self, conductor: Any, name: str) -> None:
        self._conductor, self._name = conductor, name
        self._topology = self._read_topology()

    @property
    def topology(self) -> Topology:
        return self._topology

    def reset(self, scenario: Scenario, seed: int) -> None:
        self._call(START_TIMEOUT_S, "reset", scenario, seed)
        self._topology = self._read_topology()

    def set_method(self, method: BalancingMethod) -> None:
        self._call(START_TIMEOUT_S, "set_method", method)
        self._topology = self._read_topology()

    def apply(self, control: Control) -> Applied:
        applied: Applied = self._call(ANSWER_SLACK_S, "apply", control)
        return applied

    def admit(self, admission: Admission | None) -> None:
        self._call(ANSWER_SLACK_S, "admit", admission)

    def advance(self, interval_s: float) -> Window:
        window: Window = self._call(interval_s + ANSWER_SLACK_S, "advance", interval_s)
        return window

    def drain(self, timeout_s: float | None = None) -> Window:
        within_s = (LONGEST_FINISH_S if timeout_s is None else timeout_s) + ANSWER_SLACK_S
        window: Window = self._call(within_s, "drain", *(() if timeout_s is None else (timeout_s,)))
        return window

    def dead_parts(self) -> list[str]:
        """What has died of the testbed, in words; empty when nothing has."""
        dead: list[str] = self._wait(self._conductor.dead_parts.remote(), ANSWER_SLACK_S)
        return dead

    def close(self) -> None:
        """Does nothing: `Testbeds` owns the conductor and closes it."""

    def _read_topology(self) -> Topology:
        topology: Topology = self._wait(self._conductor.topology.remote(), START_TIMEOUT_S)
        return topology

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
            raise TestbedError(f"the conductor of {self._name} died", remedy="try again: Ray restarts it") from error
