"""Ray actors that each hold one part of a live testbed, and what calls a part in its actor as if it were here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from actuators.errors import TestbedError
from actuators.parts import dead_process
from actuators.priority import go_first

START_TIMEOUT_S = 90.0
CALL_TIMEOUT_S = 60.0


class _Host:
    """Holds one part in its actor; every actor class below is this one under a telling name."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._part = make()
        go_first()

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of the part."""
        return getattr(self._part, method)(*args, **kwargs)

    def get(self, attribute: str) -> Any:
        """Reads an attribute of the part."""
        return getattr(self._part, attribute)

    def health(self) -> str:
        """Which process of the part has died; empty when all is well."""
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
    """The reader of NGINX's counters, on the load generator's client node."""


@ray.remote
class NginxActuator(_Host):
    """NGINX and what changes its weights, on a proxy node."""


@ray.remote
class SocialNetworkNode(_Host):
    """One server of the social network, on a server node."""


class RemotePart:
    """Calls a part in its actor as if it were here; errors of our family arrive as themselves."""

    def __init__(self, actor: Any, name: str) -> None:
        self._actor, self._name = actor, name

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):
            raise AttributeError(method)

        return lambda *args, **kwargs: self.begin_call(method, *args, **kwargs)()

    def begin_call(self, method: str, *args: Any, **kwargs: Any) -> Callable[[], Any]:
        """Calls a method of the part; what waits for its answer."""
        reference = self._actor.call.remote(method, *args, **kwargs)
        return lambda: self._wait(reference, method, CALL_TIMEOUT_S)

    def read(self, attribute: str) -> Any:
        """An attribute of the part; waits for the actor's start."""
        return self._wait(self._actor.get.remote(attribute), attribute, START_TIMEOUT_S)

    @property
    def name(self) -> str:
        return self._name

    def ask(self, method: str) -> Any:
        """Calls a method of the actor itself (`health`, `where`); a reference to wait on."""
        return getattr(self._actor, method).remote()

    def begin_close(self) -> Any:
        """Asks the part to close; a reference to wait on."""
        return self._actor.call.remote("close")

    def kill(self) -> None:
        """Ends the actor; the guardians of its processes cover a part that did not close."""
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
