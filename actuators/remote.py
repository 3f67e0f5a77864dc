"""A live testbed whose parts are Ray actors, but for those that the calling process holds itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import ray

from actuators.errors import LoadError
from actuators.live import LiveTestbed, Reading
from actuators.parts import dead_process
from actuators.remote_parts import RemotePart

HEALTH_TIMEOUT_S = 5.0


class RemoteTestbed(LiveTestbed):
    """A live testbed that can say which of its actors and processes have died, and where they run.

    Attributes:
        parts: actors of its own.
        held: name → part that the calling process holds.
    """

    parts: Sequence[RemotePart] = ()
    held: Mapping[str, Any] = MappingProxyType({})

    def _read(self) -> Reading:
        # All are asked at once: a call takes about 2 ms, and at an interval's end every one counts.
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
        """Asks every part whether it lives; the answers are for `dead_parts`, and come while an interval passes."""
        return [part.ask("health") for part in self.parts]

    def answered(self, checks: list[Any], within_s: float) -> bool:
        """Whether all of them are answered within that time."""
        ready, _ = ray.wait(checks, num_returns=len(checks), timeout=within_s)
        return len(ready) == len(checks)

    def dead_parts(self, checks: list[Any] | None = None) -> list[str]:
        """What had died when `checks` were made (now, when None), in words; empty when all was well."""
        here = [f"{name}: {found}" for name, part in self.held.items() if (found := dead_process(part))]
        answers = checks or self.begin_checks()
        with contextlib.suppress(ray.exceptions.RayError):
            # All at once is several times quicker than one by one, and nearly always all is well.
            if not any(ray.get(answers, timeout=HEALTH_TIMEOUT_S)):
                return here
        actors = zip(self.parts, answers, strict=True)
        return here + [found for part, answer in actors if (found := _dead(part, answer))]

    def places(self) -> dict[str, str]:
        """Part → address of its node; a part that does not answer is left out."""
        references = {part.ask("where"): part.name for part in self.parts}
        ready, _ = ray.wait(list(references), num_returns=len(references), timeout=HEALTH_TIMEOUT_S)
        found = {name: str(ray.util.get_node_ip_address()) for name in self.held}
        for number, reference in enumerate(ready):
            with contextlib.suppress(ray.exceptions.RayError):
                found[f"{references[reference]} {number}"] = ray.get(reference)
        return found


def _begin_call(part: Any, method: str) -> Callable[[], Any]:
    """Asks an actor at once, a part that is held when its answer is wanted."""
    if isinstance(part, RemotePart):
        return part.begin_call(method)
    answer: Callable[[], Any] = getattr(part, method)
    return answer


def _dead(part: RemotePart, answer: Any) -> str:
    try:
        found = ray.get(answer, timeout=HEALTH_TIMEOUT_S)
    except ray.exceptions.RayActorError:
        return f"the actor of {part.name} died"
    except ray.exceptions.GetTimeoutError:
        return f"{part.name} has not answered for {HEALTH_TIMEOUT_S:g} s"
    return f"{part.name}: {found}" if found else ""
