"""Leases of testbeds: an actor that assigns testbeds to holders; a restarted holder gets the same ones again."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from actuators.errors import CapacityError


class LeaseBook:
    """Assigns testbeds, by name, to holders; without Ray."""

    def __init__(self, names: Sequence[str]) -> None:
        self._holders: dict[str, str] = dict.fromkeys(names, "")

    def lease(self, holder: str, count: int) -> list[str]:
        """Names of `count` testbeds for the holder; a holder that calls again keeps those it has.

        Raises:
            CapacityError: too few testbeds are free.
        """
        own = [name for name, by in self._holders.items() if by == holder]
        free = [name for name, by in self._holders.items() if not by]
        if len(own) + len(free) < count:
            held = ", ".join(f"{name} by {by}" for name, by in self._holders.items() if by and by != holder)
            raise CapacityError(
                f"{holder} needs {count} testbed(s), {len(own) + len(free)} of {len(self._holders)} are free",
                where=held,
                remedy="use more testbeds or fewer env runners",
            )
        granted = [*own, *free][:count]
        for name in granted:
            self._holders[name] = holder
        return granted

    def release(self, holder: str) -> None:
        """Frees the holder's testbeds, if it has any."""
        self._holders = {name: "" if by == holder else by for name, by in self._holders.items()}

    def table(self) -> dict[str, str]:
        """Testbed → holder, empty when free."""
        return dict(self._holders)


LEASE_DESK: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(LeaseBook)
"""The actor class of `LeaseBook`."""


@dataclass(frozen=True)
class Leaser:
    """What an environment needs to lease testbeds; travels in RLlib's configuration.

    Attributes:
        desk: handle of a LEASE_DESK.
        conductors: name → handle of the testbed's Conductor.
    """

    desk: Any
    conductors: dict[str, Any]

    def lease(self, count: int) -> dict[str, Any]:
        """Name → conductor of `count` testbeds, leased to the calling actor or driver. Raises CapacityError."""
        try:
            names = ray.get(self.desk.lease.remote(_holder(), count))
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from error
        return {name: self.conductors[name] for name in names}

    def release(self) -> None:
        """Returns the testbeds of this actor; does nothing once the testbeds are closed."""
        with contextlib.suppress(ray.exceptions.ActorDiedError):
            ray.get(self.desk.release.remote(_holder()))


def _holder() -> str:
    """This actor's id, which stays the same after a restart; outside actors the driver's job id."""
    context = ray.get_runtime_context()
    return context.get_actor_id() or f"driver of job {context.get_job_id()}"
