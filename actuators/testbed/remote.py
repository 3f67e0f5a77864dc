"""A live testbed whose parts are Ray actors, or held by the calling process; the actors, and calls to them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import ray

from actuators.errors import LoadError, TestbedError
from actuators.load.engine import LONGEST_FINISH_S
from actuators.processes.system import set_realtime_priority
from actuators.testbed.live import LiveTestbed, Reading
from actuators.testbed.parts import dead_process

START_TIMEOUT_S = 90.0
CALL_TIMEOUT_S = 60.0
HEALTH_TIMEOUT_S = 5.0


class _Host:
    """Holds one part in its actor; the actor classes below differ only in their names, which Ray shows."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._part = make()
        self._about: dict[str, Any] = {}
        self._calls = Counter[str]()
        self._latest = "starting"
        set_realtime_priority()

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of the part."""
        self._calls[method] += 1
        self._latest = method
        return getattr(self._part, method)(*args, **kwargs)

    def introduce(self, about: dict[str, Any]) -> None:
        """What `describe` says of the testbed that this part belongs to: name, method, places."""
        self._about = about

    def describe(self) -> dict[str, Any]:
        """State for `deepsched testbeds`: the latest call, and windows so far; faults are known to its driver only."""
        windows = self._calls["cpu_s"]
        return {"doing": self._latest, "windows": windows, "faults": "", "builds": 1, **self._about}

    def get(self, attribute: str) -> Any:
        """Reads an attribute of the part."""
        return getattr(self._part, attribute)

    def health(self) -> str:
        """What has died of the part, in words; empty when nothing has."""
        return dead_process(self._part)

    def where(self) -> str:
        """Address of the node it runs on."""
        return str(ray.util.get_node_ip_address())

    def __ray_shutdown__(self) -> None:
        self._part.close()


@ray.remote
class LoadGenerator(_Host):
    """The load engine, on a client node."""


@ray.remote
class StatisticsCollector(_Host):
    """The reader of NGINX's counters, on a client node or beside NGINX."""


@ray.remote
class NginxActuator(_Host):
    """NGINX and what changes its weights, on a proxy node."""


@ray.remote
class SocialNetworkNode(_Host):
    """One server of the social network, on a server node."""


class RemotePart:
    """Calls a part in its actor as a local object; its errors are raised here unchanged."""

    def __init__(self, actor: Any, name: str) -> None:
        self._actor, self._name = actor, name

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):
            raise AttributeError(method)

        return lambda *args, **kwargs: self.begin_call(method, *args, **kwargs)()

    def begin_call(self, method: str, *args: Any, **kwargs: Any) -> Callable[[], Any]:
        """Calls a method of the part; returns a function that waits for the result."""
        reference = self._actor.call.remote(method, *args, **kwargs)
        timeout_s = CALL_TIMEOUT_S + (LONGEST_FINISH_S if method == "finish" else 0.0)
        return lambda: self._wait(reference, method, timeout_s)

    def read(self, attribute: str) -> Any:
        """An attribute of the part; waits for the start of the actor."""
        return self._wait(self._actor.get.remote(attribute), attribute, START_TIMEOUT_S)

    @property
    def name(self) -> str:
        return self._name

    def introduce(self, about: dict[str, Any]) -> None:
        """See `_Host.introduce`."""
        self._wait(self._actor.introduce.remote(about), "introduce", CALL_TIMEOUT_S)

    def ask(self, method: str) -> Any:
        """Calls a method of the actor itself (`health`, `where`); returns a reference."""
        return getattr(self._actor, method).remote()

    def begin_close(self) -> Any:
        """Starts to close the part; returns a reference."""
        return self._actor.call.remote("close")

    def begin_remove_database(self) -> Any:
        """Starts to remove the database of a closed server (`SocialNetworkServer`); returns a reference."""
        return self._actor.call.remote("remove_database")

    def kill(self) -> None:
        """Ends the actor; guardians end the processes of a part that did not close."""
        ray.kill(self._actor)

    def _wait(self, reference: Any, what: str, timeout_s: float) -> Any:
        try:
            return ray.get(reference, timeout=timeout_s)
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from error
        except ray.exceptions.GetTimeoutError as error:
            raise TestbedError(f"{self._name} did not answer {what} within {timeout_s:g} s") from error
        except ray.exceptions.RayActorError as error:
            raise TestbedError(
                f"the actor of {self._name} died", remedy="close the testbed, build a new one"
            ) from error


class RemoteTestbed(LiveTestbed):
    """A live testbed that knows which of its actors and processes have died, and where they run.

    Attributes:
        parts: its actors.
        held: name → part in the calling process.
    """

    parts: Sequence[RemotePart] = ()
    held: Mapping[str, Any] = MappingProxyType({})

    def _read(self) -> Reading:
        # All calls at once: one takes about 2 ms, and at the end of an interval each one counts.
        client, window, cpu_s = (
            _begin_call(part, method)
            for part, method in ((self._load, "window"), (self._collector, "window"), (self._proxy, "cpu_s"))
        )
        read = window()
        try:
            return read, client(), cpu_s()
        except LoadError as error:
            return read, error, cpu_s()

    def begin_checks(self) -> list[Any]:
        """Starts a health check of every part, for `dead_parts`; the results arrive during an interval."""
        return [part.ask("health") for part in self.parts]

    def answered(self, checks: list[Any], within_s: float) -> bool:
        """Whether all checks have a result within that time."""
        ready, _ = ray.wait(checks, num_returns=len(checks), timeout=within_s)
        return len(ready) == len(checks)

    def dead_parts(self, checks: list[Any] | None = None) -> list[str]:
        """What had died at the time of `checks` (now when None), in words; empty when nothing had."""
        here = [f"{name}: {death}" for name, part in self.held.items() if (death := dead_process(part))]
        answers = checks or self.begin_checks()
        with contextlib.suppress(ray.exceptions.RayError):
            # All at once is several times faster than one by one, and nearly always nothing has died.
            if not any(ray.get(answers, timeout=HEALTH_TIMEOUT_S)):
                return here
        actors = zip(self.parts, answers, strict=True)
        return here + [death for part, answer in actors if (death := _dead(part, answer))]

    def places(self) -> dict[str, str]:
        """Part → address of its node, without parts that do not respond."""
        references = {part.ask("where"): part.name for part in self.parts}
        ready, _ = ray.wait(list(references), num_returns=len(references), timeout=HEALTH_TIMEOUT_S)
        nodes = {name: str(ray.util.get_node_ip_address()) for name in self.held}
        for number, reference in enumerate(ready):
            with contextlib.suppress(ray.exceptions.RayError):
                nodes[f"{references[reference]} {number}"] = ray.get(reference)
        return nodes


def _begin_call(part: Any, method: str) -> Callable[[], Any]:
    """Calls an actor now, a held part when the result is read."""
    if isinstance(part, RemotePart):
        return part.begin_call(method)
    answer: Callable[[], Any] = getattr(part, method)
    return answer


def _dead(part: RemotePart, answer: Any) -> str:
    try:
        death = ray.get(answer, timeout=HEALTH_TIMEOUT_S)
    except ray.exceptions.RayActorError:
        return f"the actor of {part.name} died"
    except ray.exceptions.GetTimeoutError:
        return f"{part.name} has not answered for {HEALTH_TIMEOUT_S:g} s"
    return f"{part.name}: {death}" if death else ""
