"""The first weights: what a revert goes back to, by group and server; kept once, and never replaced by what we set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from actuators.contract.admission import NEVER
from actuators.contract.arrays import FloatArray
from actuators.contract.control import MAX_WEIGHT, Control, MemoryMethod, ServiceTimes, Weights
from actuators.contract.late_binding import LateBinding, LateBindingNumbers
from actuators.contract.request_cost import RequestCost
from actuators.contract.testbed import Restored
from actuators.contract.topology import Topology
from actuators.external.actuator import Actuator
from actuators.store import Store, Stored


class FirstHolding(BaseModel):
    """How requests were held before any controller, by name.

    Attributes:
        slots: server → requests that it may have; deadlines_s: group → seconds.
        numbers: of `LateBindingNumbers`.
        importance: group → importance, or None for one that is never refused; 1 where it is missing.
        costs: group → feature → weight, of what requests cost; all the same where it is missing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    slots: dict[str, int]
    deadlines_s: dict[str, float]
    numbers: dict[str, str | float]
    importance: dict[str, float | None] = {}
    costs: dict[str, dict[str, float]] = {}

    @classmethod
    def of(cls, holding: LateBinding) -> FirstHolding:
        topology = holding.topology
        worth = zip((group.name for group in topology.groups), holding.importance.tolist(), strict=True)
        return cls(
            importance={name: None if each == NEVER else each for name, each in worth if each != 1.0},
            slots=dict(zip(topology.servers, holding.slots.tolist(), strict=True)),
            deadlines_s=dict(zip((g.name for g in topology.groups), holding.deadlines_s.tolist(), strict=True)),
            numbers={"order": holding.numbers.order, **holding.numbers.in_nginx()},
            costs=holding.costs.in_force(),
        )

    def onto(self, topology: Topology) -> LateBinding:
        """The same on the groups and servers that there are now; those that it lacks get its longest deadline and its
        fewest slots.
        """
        longest_s, fewest = max(self.deadlines_s.values()), min(self.slots.values())
        deadlines_s = np.array([self.deadlines_s.get(group.name, longest_s) for group in topology.groups])
        slots = np.array([self.slots.get(server, fewest) for server in topology.servers])
        given = [self.importance.get(group.name, 1.0) for group in topology.groups]
        importance = np.array([NEVER if each is None else each for each in given], dtype=float)
        numbers, costs = LateBindingNumbers.model_validate(self.numbers), RequestCost.of_terms(self.costs)
        return LateBinding(topology, deadlines_s, slots, numbers, importance, costs)


class FirstWeights(BaseModel):
    """The control from before any controller, by name, so that it survives added, removed and moved servers.

    Attributes:
        method: the balancing method; None where only a reload could change it.
        weights, service_times_s: group → server → value; one of the two is empty.
        workers: server → workers, beside service times.
        holding: beside service times, when requests were held.
        sealed: a controller has set something since they were read; from then on they stay as they are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: MemoryMethod | None = None
    weights: dict[str, dict[str, int]] = {}
    service_times_s: dict[str, dict[str, float]] = {}
    workers: dict[str, float] = {}
    holding: FirstHolding | None = None
    sealed: bool = True

    @model_validator(mode="before")
    @classmethod
    def _tables(cls, data: Any) -> Any:
        """Accepts the tables of version 0.1, rows per group and columns per server."""
        if not isinstance(data, dict) or "groups" not in data:
            return data
        groups = data["groups"]
        servers = list(dict.fromkeys(server for names in groups.values() for server in names))
        kind, table = ("service_times_s", data["tau_s"]) if "tau_s" in data else ("weights", data["values"])
        named = {
            group: {server: row[servers.index(server)] for server in names}
            for (group, names), row in zip(groups.items(), table, strict=True)
        }
        workers = dict(zip(servers, data["workers"], strict=True)) if "workers" in data else {}
        return {"method": data.get("method"), kind: named, "workers": workers}

    @classmethod
    def of(cls, control: Control, method: MemoryMethod | None, *, sealed: bool = False) -> FirstWeights:
        """The first weights when this control is in force."""
        if isinstance(control, ServiceTimes):
            workers = dict(zip(control.topology.servers, control.workers.tolist(), strict=True))
            times = _named(control.topology, control.tau_s)
            holding = None if control.holding is None else FirstHolding.of(control.holding)
            return cls(method=method, service_times_s=times, workers=workers, holding=holding, sealed=sealed)
        return cls(method=method, weights=_named(control.topology, control.values), sealed=sealed)

    def extended(self, present: Control) -> FirstWeights:
        """Also of servers that were added meanwhile: their first weights are those that they have now."""
        now = FirstWeights.of(present, None)
        if bool(now.weights) != bool(self.weights):
            return self
        update = {
            "weights": _joined(now.weights, self.weights),
            "service_times_s": _joined(now.service_times_s, self.service_times_s),
            "workers": {**now.workers, **self.workers},
        }
        return self.model_copy(update=update)

    def onto(self, present: Control) -> Control:
        """This control on the servers that there are now. Servers without a first weight keep what they have, or get
        their group's mean; a server that is out of rotation stays out, as no controller decides that.
        """
        topology = present.topology
        if self.service_times_s:
            base = present.tau_s if isinstance(present, ServiceTimes) else None
            tau_s = _table(topology, self.service_times_s, base)
            workers = np.array([self.workers.get(server, np.nan) for server in topology.servers])
            known = present.workers if isinstance(present, ServiceTimes) else np.full(len(workers), 1.0)
            holding = None if self.holding is None else self.holding.onto(topology)
            return ServiceTimes(topology, tau_s, np.where(np.isfinite(workers), workers, known), holding, present.down)
        shown = present.values if isinstance(present, Weights) else None
        values = np.rint(_table(topology, self.weights, shown)).clip(1, MAX_WEIGHT).astype(np.int64)
        return Weights(topology, values, present.down)

    def missing(self, topology: Topology) -> tuple[str, ...]:
        """GROUP/SERVER that have a first weight but are not there any more."""
        there = {(group.name, server) for group in topology.groups for server in group.servers}
        return tuple(
            f"{group}/{server}"
            for group, servers in (self.weights or self.service_times_s).items()
            for server in servers
            if (group, server) not in there
        )


class FirstStore:
    """`original.json` of a controller."""

    def __init__(self, path: Path) -> None:
        self._store = Store(path, FirstWeights, "a file of first weights")

    def read(self) -> FirstWeights | None:
        """None when no controller has run here. Raises DataError when the file cannot be read."""
        return self._store.read().value

    def keep(self, present: Control, method: MemoryMethod | None) -> FirstWeights:
        """The first weights, when this control is in force at the start or after somebody else's change.

        It becomes the first as long as no controller has set anything; afterwards only for servers that were added.
        Raises ConflictError, DataError, OSError.
        """

        def update(stored: Stored[FirstWeights]) -> FirstWeights:
            kept = stored.value
            return kept.extended(present) if kept is not None and kept.sealed else FirstWeights.of(present, method)

        return self._changed(update)

    def seal(self, sealed: bool = True) -> None:
        """Call before a controller sets something; or, with False, when the first weights are in force again.

        Raises ConflictError, DataError, OSError.
        """
        kept = self.read()
        if kept is not None and kept.sealed != sealed:
            self._changed(lambda stored: (stored.value or kept).model_copy(update={"sealed": sealed}))

    def _changed(self, update: Callable[[Stored[FirstWeights]], FirstWeights]) -> FirstWeights:
        value = self._store.change(update).value
        assert value is not None
        return value


def restore(first: FirstWeights, actuator: Actuator) -> Restored:
    """Puts the first weights and method in force again on the servers that there are, and names the others.

    Raises ActuationError, ConfigError or StatusError; what was in force then stays.
    """
    restored = actuator.restore(first.onto(actuator.control()), first.method)
    return replace(restored, missing=first.missing(actuator.topology))


def _named(topology: Topology, table: Any) -> dict[str, dict[str, Any]]:
    return {
        group.name: {server: table[g, topology.server_index(server)].item() for server in group.servers}
        for g, group in enumerate(topology.groups)
    }


_Named = dict[str, dict[str, Any]]


def _joined(now: _Named, kept: _Named) -> _Named:
    """All of both; what was kept counts."""
    return {group: {**now.get(group, {}), **kept.get(group, {})} for group in {**kept, **now}}


def _table(topology: Topology, named: Mapping[str, Mapping[str, float]], base: np.ndarray | None) -> FloatArray:
    """``[groups, servers]``: the named values; where there is none that of `base`, or the mean of the others."""
    table = np.full(topology.shape, np.nan)
    for g, group in enumerate(topology.groups):
        for server in group.servers:
            table[g, topology.server_index(server)] = named.get(group.name, {}).get(server, np.nan)
    if base is not None:
        return np.where(np.isnan(table), base, table)
    overall = np.nanmean(table) if np.isfinite(table).any() else 1.0
    means = [np.nanmean(row) if np.isfinite(row).any() else overall for row in table]
    return np.where(np.isnan(table), np.array(means)[:, None], table)
