"""Controls that a policy sets: integer weights, or service times for `expected_delay`; validated on construction."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray
from actuators.contract.late_binding import LateBinding
from actuators.contract.topology import Topology
from actuators.errors import ConfigError

MAX_WEIGHT = 100

BalancingMethod = Literal["round_robin", "least_conn", "random_two", "expected_delay", "late_binding"]
"""How NGINX chooses a server. The first three exist in NGINX itself and take Weights, the others take ServiceTimes."""
DirectMethod = Literal["round_robin", "least_conn", "random_two", "expected_delay"]
"""Methods that send every request at once."""
BY_TIMES = ("expected_delay", "late_binding")
"""Methods that take ServiceTimes."""
MemoryMethod = BalancingMethod | Literal["configured"]
"""In memory also `configured`: each group by the method that its upstream block had."""


@dataclass(frozen=True, eq=False)
class Weights:
    """NGINX weights of every server in every group. Raises ConfigError for a wrong shape or value.

    Attributes:
        values: int ``[groups, servers]``, 1…100; 0 only where the group lacks the server.
        down: bool ``[groups, servers]``; True takes the server out of that group's rotation.
    """

    topology: Topology
    values: NDArray[np.int64]
    down: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0), dtype=bool))

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", np.where(self.topology.mask, np.asarray(self.values), 0).astype(np.int64))
        if self.down.size == 0:
            object.__setattr__(self, "down", np.zeros(self.topology.shape, dtype=bool))
        self._check()

    def _check(self) -> None:
        mask = self.topology.mask
        if self.values.shape != self.topology.shape or self.down.shape != self.topology.shape:
            raise ConfigError(f"weights have shape {self.values.shape}", remedy=f"expected {self.topology.shape}")
        bad = mask & ((self.values < 1) | (self.values > MAX_WEIGHT))
        if bad.any():
            g, s = np.argwhere(bad)[0]
            raise ConfigError(
                f"weight {self.values[g, s]} of {self.topology.servers[s]}",
                where=f"group {self.topology.groups[g].name}",
                remedy=f"weights are integers from 1 to {MAX_WEIGHT}; use down to remove a server",
            )
        _check_rotation(self.topology, self.down)

    @classmethod
    def scaled(cls, topology: Topology, values: FloatArray, down: NDArray[np.bool_]) -> Self:
        """Of another balancer's weights ``[groups, servers]``: those of a group with one above 100 in proportion, whole
        numbers, at least 1. Raises ConfigError where every server of a group is down.
        """
        largest = values.max(axis=1, keepdims=True)
        within = np.where(largest > MAX_WEIGHT, values * MAX_WEIGHT / largest, values)
        return cls(topology, np.maximum(np.rint(within), 1).astype(np.int64), down)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Weights)
            and self.topology == other.topology
            and np.array_equal(self.values, other.values)
            and np.array_equal(self.down, other.down)
        )

    def __hash__(self) -> int:
        return hash((self.values.tobytes(), self.down.tobytes()))

    @classmethod
    def equal(cls, topology: Topology, value: int = 1) -> Weights:
        return cls(topology, np.full(topology.shape, value))

    @classmethod
    def from_shares(cls, topology: Topology, shares: NDArray[np.float64]) -> Weights:
        """Weights in proportion to positive shares ``[groups, servers]``; the largest of each group becomes 100.

        Raises ConfigError for a share that is not positive and finite.
        """
        shares = np.where(topology.mask, shares, 0.0)
        if not np.isfinite(shares).all() or (shares[topology.mask] <= 0).any():
            raise ConfigError("a share is not positive and finite", where="weights", remedy="repair the policy")
        scaled = np.rint(shares / shares.max(axis=1, keepdims=True) * MAX_WEIGHT)
        return cls(topology, np.clip(scaled, 1, MAX_WEIGHT).astype(np.int64))

    def as_weights(self) -> Weights:
        """These weights: every control has this method."""
        return self

    def shares(self) -> NDArray[np.float64]:
        """Float ``[groups, servers]``: each group's weights divided by their sum, 0 where down.

        A server with several addresses has its weight as often.
        """
        usable = np.where(self.down, 0, self.values * self.topology.entries).astype(float)
        total: NDArray[np.float64] = usable / usable.sum(axis=1, keepdims=True)
        return total


@dataclass(frozen=True, eq=False)
class CappedWeights(Weights):
    """Weights with `max_conns` of one upstream for all request types, which the simulator's `shared_least_conn` obeys.

    Attributes:
        most: int ``[servers]``, requests in flight that a server may have, >= 1.
    """

    most: NDArray[np.int64] = field(kw_only=True)

    def _check(self) -> None:
        super()._check()
        if self.most.shape != (self.topology.shape[1],) or (self.most < 1).any():
            remedy = f"give {self.topology.shape[1]} numbers of at least 1"
            raise ConfigError(f"max_conns are {self.most.tolist()}", where="weights", remedy=remedy)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CappedWeights) and super().__eq__(other) and np.array_equal(self.most, other.most)

    def __hash__(self) -> int:
        return hash((super().__hash__(), self.most.tobytes()))


@dataclass(frozen=True, eq=False)
class ServiceTimes:
    """The control of `expected_delay` and `late_binding`. Raises ConfigError for a wrong shape or value.

    Attributes:
        tau_s: float ``[groups, servers]``, learned service time in seconds, > 0.
        workers: float ``[servers]``, requests that a server serves at once, >= 0.25.
        holding: how `late_binding` holds requests; None for no slots, so that it works as `expected_delay`.
        down: bool ``[groups, servers]``; True takes the server out of that group's rotation.
    """

    topology: Topology
    tau_s: NDArray[np.float64]
    workers: NDArray[np.float64]
    holding: LateBinding | None = None
    down: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0), dtype=bool))

    def __post_init__(self) -> None:
        if self.down.size == 0:
            object.__setattr__(self, "down", np.zeros(self.topology.shape, dtype=bool))
        shape = self.topology.shape
        if self.tau_s.shape != shape or self.workers.shape != shape[1:] or self.down.shape != shape:
            raise ConfigError("service times have the wrong shape", remedy=f"expected {shape}")
        known = self.tau_s[self.topology.mask]
        if not (np.isfinite(known).all() and (known > 0).all() and (self.workers >= 0.25).all()):
            what, remedy = "a service time is not above 0 s or a worker count is below 0.25", "give larger ones"
            raise ConfigError(what, where="service times", remedy=remedy)
        if self.holding is not None and self.holding.topology != self.topology:
            raise ConfigError("late binding is of another topology", where="service times")
        _check_rotation(self.topology, self.down)

    def as_weights(self) -> Weights:
        """Weights ∝ 1/τ, for methods that take weights."""
        weights = Weights.from_shares(self.topology, 1.0 / np.where(self.topology.mask, self.tau_s, 1.0))
        return replace(weights, down=self.down)


def _check_rotation(topology: Topology, down: NDArray[np.bool_]) -> None:
    empty = ~(topology.mask & ~down).any(axis=1)
    if empty.any():
        name = topology.groups[int(np.argmax(empty))].name
        raise ConfigError("every server is down", where=f"group {name}", remedy="leave at least one usable server")


Control = Weights | ServiceTimes


@dataclass(frozen=True, eq=False)
class Canary:
    """The part of the requests that a control in memory gets, and what balances the others.

    Attributes:
        percent: 0 … 100, of the requests that go by the new control.
        base: for the other requests.
    """

    percent: float
    base: Control


def shares_of(control: Control, canary: Canary | None) -> NDArray[np.float64]:
    """Float ``[groups, servers]``: expected share of each group's requests; 0 where down."""
    shares = control.as_weights().shares()
    if canary is None:
        return shares
    base = canary.base.as_weights().shares()
    mixed: NDArray[np.float64] = base + (shares - base) * canary.percent / 100.0
    return mixed
