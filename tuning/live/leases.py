"""Leases of testbeds: an actor that assigns testbeds to holders; a restarted holder gets the same ones again."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from pydantic import BaseModel, ConfigDict

from actuators.errors import CapacityError
from actuators.store import Store, Stored
from tuning.live.relay import Channel, open_channels


class Leases(BaseModel):
    """Testbed → holder, empty when free."""

    model_config = ConfigDict(frozen=True)

    holders: dict[str, str]


class LeaseBook:
    """Assigns testbeds, by name, to holders; without Ray. A book that is opened again knows all of its leases.

    Args:
        state: file of the leases; those of names that are not among these are forgotten.
    """

    def __init__(self, names: Sequence[str], state: Path) -> None:
        self._names = tuple(names)
        self._store = Store(state, Leases, "a file of leases")

    def lease(self, holder: str, count: int) -> list[str]:
        """Names of `count` testbeds for the holder; a holder that calls again keeps those it has.

        Raises:
            CapacityError: too few testbeds are free.
        """
        granted: list[str] = []

        def update(stored: Stored[Leases]) -> Leases:
            holders = self._holders(stored)
            granted[:] = _grant(holders, holder, count)
            return Leases(holders={**holders, **dict.fromkeys(granted, holder)})

        self._store.change(update)
        return granted

    def release(self, holder: str) -> None:
        """Frees the holder's testbeds, if it has any."""

        def update(stored: Stored[Leases]) -> Leases:
            return Leases(holders={name: "" if by == holder else by for name, by in self._holders(stored).items()})

        self._store.change(update)

    def table(self) -> dict[str, str]:
        """Testbed → holder, empty when free."""
        return self._holders(self._store.read())

    def _holders(self, stored: Stored[Leases]) -> dict[str, str]:
        kept = stored.value.holders if stored.value is not None else {}
        return {name: kept.get(name, "") for name in self._names}


def _grant(holders: Mapping[str, str], holder: str, count: int) -> list[str]:
    own = [name for name, by in holders.items() if by == holder]
    free = [name for name, by in holders.items() if not by]
    if len(own) + len(free) < count:
        held = ", ".join(f"{name} by {by}" for name, by in holders.items() if by and by != holder)
        raise CapacityError(
            f"{holder} needs {count} testbed(s), {len(own) + len(free)} of {len(holders)} are free",
            where=held,
            remedy="use more testbeds or fewer env runners",
        )
    return [*own, *free][:count]


LEASE_DESK: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(LeaseBook)
"""The actor class of `LeaseBook`; Ray restarts it, and its state file is on the node of its owner."""


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

    def channels(self, leased: Mapping[str, Any]) -> tuple[list[Channel], dict[str, str]]:
        """Ways to leased testbeds, which end with the calling process; name → address of its node (`relay`)."""
        return open_channels(leased)

    def release(self) -> None:
        """Returns the testbeds of this actor; does nothing once the testbeds are closed."""
        with contextlib.suppress(ray.exceptions.ActorDiedError):
            ray.get(self.desk.release.remote(_holder()))


def _holder() -> str:
    """This actor's id, which stays the same after a restart; outside actors the driver's job id."""
    context = ray.get_runtime_context()
    return context.get_actor_id() or f"driver of job {context.get_job_id()}"
