"""Late binding: requests are held at the balancer until a server has a free slot, and sent in an order of their own.

docs/studies.md#late-binding defines the rule and says where its numbers come from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from pydantic import Field

from actuators.contract.arrays import FloatArray, IntArray
from actuators.contract.topology import Topology
from actuators.errors import ConfigError
from actuators.options import Options

UNLIMITED = 1 << 40
"""Slots of a server before any are set."""
HoldOrder = Literal["response_ratio", "earliest_deadline", "fifo"]
"""Which held request is considered first."""


class LateBindingNumbers(Options):
    """The numbers of the rule."""

    order: HoldOrder = "response_ratio"
    """`response_ratio`: by age over expected service time; `earliest_deadline`: by what is left of the deadline; both
    with those that will be late at the end, the shortest first; `fifo`: by age."""
    slots_per_worker: float = Field(default=2.0, ge=1, le=1000)
    """Requests that a server may have of one balancer, over the workers that it is believed to have."""
    theta: float = Field(default=1.4, ge=1, le=1000)
    """How much longer the wait at a busy server counts than it is expected to be, before a free one is preferred."""
    look_ahead: int = Field(default=12, ge=1, le=100)
    """Held requests that are considered each time, in their order."""
    longest_hold_s: float = Field(default=10.0, ge=3, le=3600)
    """Time after which a held request is answered with 503."""
    valid_s: float = Field(default=60.0, ge=1, le=1e6)
    """Age of the control in NGINX from which on nothing is held any more, because nobody renews it."""
    most_held: int = Field(default=4096, ge=1, le=1_000_000)
    """Held requests beyond which one is answered with 503 when it comes."""


@dataclass(frozen=True, eq=False)
class LateBinding:
    """How requests are held. Raises ConfigError for values out of range.

    Attributes:
        deadlines_s: ``[groups]``, > 0, from a request's arrival; the orders go by them.
        slots: ``[servers]``, ≥ 1: requests of one balancer that a server may have.
    """

    topology: Topology
    deadlines_s: FloatArray
    slots: IntArray
    numbers: LateBindingNumbers = field(default_factory=LateBindingNumbers)

    def __post_init__(self) -> None:
        groups, servers = self.topology.shape
        if self.deadlines_s.shape != (groups,) or not (self.deadlines_s > 0).all():
            raise ConfigError("deadlines do not fit", where="late binding", remedy=f"{groups} positive ones")
        if self.slots.shape != (servers,) or self.slots.min() < 1:
            raise ConfigError("slots do not fit", where="late binding", remedy=f"{servers} of at least 1")


def unlimited(topology: Topology) -> LateBinding:
    """Slots for all requests, so that none is held."""
    groups, servers = topology.shape
    return LateBinding(topology, np.full(groups, np.inf), np.full(servers, UNLIMITED))


def slots_for(workers: FloatArray, slots_per_worker: float, balancers: int = 1) -> IntArray:
    """Slots of servers with so many workers at each of several balancers that share no counts.

    One balancer: slots_per_worker × workers. L balancers: the larger of ⌈slots_per_worker × workers / L⌉ and
    ⌈workers / L⌉ + 1: with workers / L exactly, servers would be idle while requests are held.
    """
    share = np.ceil(slots_per_worker * workers / balancers - 1e-9)
    least = np.ceil(workers / balancers - 1e-9) + (balancers > 1)
    slots: IntArray = np.maximum(np.maximum(share, least), 1).astype(np.int64)
    return slots
