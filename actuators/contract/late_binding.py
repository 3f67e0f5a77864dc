"""Late binding: requests are held at the balancer until a server has a free slot, and sent in an order of their own.

docs/studies.md#late-binding defines the rule and says where its numbers come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from actuators.contract.admission import NEVER, finite_importance
from actuators.contract.arrays import FloatArray, IntArray
from actuators.contract.request_cost import RequestCost
from actuators.contract.topology import Topology
from actuators.errors import ConfigError, closest
from actuators.options import Options

UNLIMITED = 1 << 40
"""Slots of a server before any are set."""
ENOUGH = 1_000_000
"""Slots of a server, in NGINX too, that never lack."""
HoldOrder = Literal["shortest", "earliest_deadline", "response_ratio", "fifo"]
"""Which held request is considered first."""


class LateBindingNumbers(Options):
    """The numbers of the rule."""

    order: HoldOrder = "shortest"
    """`shortest`: by expected service time, which waiting shortens (`waiting_weight`) and lateness lengthens
    (`late_weight`); `earliest_deadline`: by what is left of the deadline; `response_ratio`: by age over expected
    service time; both with those that will be late at the end, the shortest first; `fifo`: by age."""
    slots_per_worker: float = Field(default=2.0, ge=1, le=1000)
    """Requests that a server may have of one balancer, over the workers that it is believed to have."""
    theta: float = Field(default=1.4, ge=1, le=1000)
    """How much longer the wait at a busy server counts than it is expected to be, before a free one is preferred."""
    look_ahead: int = Field(default=12, ge=1, le=100)
    """Held requests that are considered each time, in their order."""
    longest_hold_s: float = Field(default=10.0, ge=3, le=3600)
    """Time after which a held request is answered with 503."""
    valid_s: float = Field(default=60.0, ge=1, le=1e8)
    """Age of the control in NGINX from which nothing is held, because the control was not renewed."""
    most_held: int = Field(default=4096, ge=1, le=1_000_000)
    """Held requests beyond which one is answered with 503 when it comes."""
    waiting_weight: float = Field(default=0.9, ge=0, le=1)
    """`shortest`: part of the service time that is taken off when a request has waited for its whole deadline."""
    late_weight: float = Field(default=2.0, ge=1, le=1000)
    """`shortest`: factor on the service time of a request that will be late."""
    refuse_factor: float | None = Field(default=None, ge=0.1, le=1000)
    """A request that is not expected to be answered within so many times its deadline is answered with 503 at once;
    none is when not given."""

    def in_nginx(self) -> dict[str, float]:
        """Names and values of the numbers that NGINX reads; refuse_factor only where it is given."""
        found = self.model_dump(exclude={"order", "slots_per_worker"}, exclude_none=True)
        return {name: float(value) for name, value in found.items()}


@dataclass(frozen=True, eq=False)
class LateBinding:
    """How requests are held. Raises ConfigError for values out of range.

    Attributes:
        deadlines_s: ``[groups]``, > 0, from a request's arrival; the orders go by them.
        slots: ``[servers]``, ≥ 1: requests of one balancer that a server may have.
        importance: ``[groups]``, > 0, by which the orders weigh a group's requests; `NEVER` for groups of which no
            request is refused because it would be late. One each when not given.
        costs: what requests cost in relation to others of their group; all the same when not given.
    """

    topology: Topology
    deadlines_s: FloatArray
    slots: IntArray
    numbers: LateBindingNumbers = field(default_factory=LateBindingNumbers)
    importance: FloatArray = field(default_factory=lambda: np.zeros(0))
    costs: RequestCost = field(default_factory=RequestCost)

    def __post_init__(self) -> None:
        groups, servers = self.topology.shape
        if self.importance.size == 0:
            object.__setattr__(self, "importance", np.ones(groups))
        if self.importance.shape != (groups,) or not (self.importance > 0).all():
            raise ConfigError("importance does not fit", where="late binding", remedy=f"{groups} positive ones")
        if self.deadlines_s.shape != (groups,) or not (self.deadlines_s > 0).all():
            raise ConfigError("deadlines do not fit", where="late binding", remedy=f"{groups} positive ones")
        if self.slots.shape != (servers,) or self.slots.min() < 1:
            raise ConfigError("slots do not fit", where="late binding", remedy=f"{servers} of at least 1")

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, LateBinding)
            and self.topology.plain == other.topology.plain
            and np.array_equal(self.deadlines_s, other.deadlines_s)
            and np.array_equal(self.slots, other.slots)
            and np.array_equal(self.importance, other.importance)
            and self.costs.in_force() == other.costs.in_force()
            and (self.numbers.order, self.numbers.in_nginx()) == (other.numbers.order, other.numbers.in_nginx())
        )

    def __hash__(self) -> int:
        return hash((self.deadlines_s.tobytes(), self.slots.tobytes()))

    def weights(self) -> FloatArray:
        """``[groups]``: importance in the orders; `NEVER` weighs as the most important other one, 1 without others."""
        return finite_importance(self.importance)

    def onto(self, topology: Topology) -> LateBinding:
        """The same for groups and servers in another order; those that this one lacks get its longest deadline and its
        fewest slots.
        """
        names = [group.name for group in self.topology.groups]
        tables = (self.deadlines_s, self.importance)
        deadlines, worth = (dict(zip(names, each.tolist(), strict=True)) for each in tables)
        slots = dict(zip(self.topology.servers, self.slots.tolist(), strict=True))
        return LateBinding(
            topology,
            np.array([deadlines.get(group.name, self.deadlines_s.max()) for group in topology.groups]),
            np.array([slots.get(server, self.slots.min()) for server in topology.servers]),
            self.numbers,
            np.array([worth.get(group.name, 1.0) for group in topology.groups]),
            self.costs,
        )


class LateBindingPlan(Options):
    """How the requests of a system are held."""

    slots: dict[str, Annotated[int, Field(ge=1, le=1_000_000)]] = Field({})
    """Server → requests that it may have at a time from this NGINX; when not given, `numbers.slots_per_worker` over its
    workers. Too few cost capacity, too many cost little."""
    deadlines_ms: dict[str, Annotated[float, Field(gt=0, le=1e7)]] = Field({})
    """Group → deadline in milliseconds, by which the orders go; when not given, that of the bundle or calibration."""
    importance: dict[str, Annotated[float, Field(gt=0, le=1e6)]] = Field({})
    """Group → how much its requests count in the order; 1 when not given. `fifo` takes no notice."""
    never_refused: tuple[str, ...] = ()
    """Groups of which no request is refused because it would be late; all may be when not given."""
    load_balancers: int = Field(1, ge=1, le=10_000)
    """NGINX machines that share the traffic and no counts; each has its part of the slots."""
    numbers: LateBindingNumbers = LateBindingNumbers()
    """Numbers of the rule."""

    def binding(self, topology: Topology, deadlines_s: FloatArray, workers: FloatArray | None) -> LateBinding:
        """What is held at these servers.

        Args:
            deadlines_s: ``[groups]``, where none is given here; nan for unknown.
            workers: ``[servers]``, for those without slots; None for unknown.

        Raises ConfigError for a name that is not there, and for what is not known.
        """
        names = tuple(group.name for group in topology.groups)
        _require_known(self.deadlines_ms, names, "deadlines_ms", "group")
        _require_known(self.slots, topology.servers, "slots", "server")
        _require_known(self.importance, names, "importance", "group")
        _require_known(dict.fromkeys(self.never_refused), names, "never_refused", "group")
        wanted_s = np.array([self.deadlines_ms.get(name, 1e3 * deadlines_s[g]) / 1e3 for g, name in enumerate(names)])
        if np.isnan(wanted_s).any():
            name = names[int(np.argmax(np.isnan(wanted_s)))]
            raise ConfigError(f"no deadline of '{name}'", where="deadlines_ms", remedy="give it")
        missing = [server for server in topology.servers if server not in self.slots]
        if workers is None and missing:
            # A guess that is too low would leave servers idle while requests are held.
            what = f"how many requests {missing[0]} serves at once is not known"
            raise ConfigError(what, where="late binding", remedy="give --workers, or its slots")
        each = np.ones(len(topology.servers)) if workers is None else workers
        found = slots_for(each, self.numbers.slots_per_worker, self.load_balancers)
        slots = np.array([self.slots.get(server, found[s]) for s, server in enumerate(topology.servers)], np.int64)
        worth = {**self.importance, **dict.fromkeys(self.never_refused, NEVER)}
        importance = np.array([worth.get(name, 1.0) for name in names])
        return LateBinding(topology, wanted_s, slots, self.numbers, importance)


def _require_known(given: Mapping[str, object], known: Sequence[str], where: str, kind: str) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"no {kind} '{name}'", where=where, remedy=closest(name, known))


def unlimited(topology: Topology) -> LateBinding:
    """Slots for all requests, so that none is held."""
    groups, servers = topology.shape
    return LateBinding(topology, np.full(groups, np.inf), np.full(servers, UNLIMITED))


def slots_for(workers: FloatArray, slots_per_worker: float, balancers: int = 1) -> IntArray:
    """Slots of servers with so many workers at each of several balancers that share no counts; `ENOUGH` for ∞ workers.

    One balancer: slots_per_worker × workers. L balancers: the larger of ⌈slots_per_worker × workers / L⌉ and
    ⌈workers / L⌉ + 1: with workers / L exactly, servers would be idle while requests are held.
    """
    known = np.minimum(workers, float(ENOUGH))
    share = np.ceil(slots_per_worker * known / balancers - 1e-9)
    least = np.ceil(known / balancers - 1e-9) + (balancers > 1)
    slots: IntArray = np.clip(np.maximum(share, least), 1, ENOUGH).astype(np.int64)
    return slots
