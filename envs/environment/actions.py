"""Policy output ↔ integer weights or service times: residual, absolute, incremental, or one of a finite set.

Weights of every kind pass through the same floor and dead band, so that kinds can be compared.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from actuators.contract.arrays import FloatArray, IntArray
from actuators.contract.control import MAX_WEIGHT, BalancingMethod
from actuators.contract.topology import Topology
from actuators.errors import ConfigError
from actuators.options import Only, Options

if TYPE_CHECKING:
    from gymnasium import spaces

ActionKind = Literal["residual", "continuous", "increments", "ratios"]
Baseline = Literal["inverse_latency", "idle", "ratio", "levelled"]

CONTINUOUS_RANGE = 2.0
INCREMENT = 0.4
MAX_VECTORS = 1000
"""Ratio vectors per group; {1, 3, 5} stays below it up to six servers."""
MAX_JOINT = 50_000
"""Joint actions; {1, 3, 5} gives 15,625 for three groups on three servers. DQN computes a value of each of them for
every step of a batch: 50 MB per tensor."""


SETS_WEIGHTS = (Only(baseline="inverse_latency"), Only(kind=("continuous", "increments", "ratios")))


class ActionOptions(Options):
    """How an action becomes weights."""

    kind: ActionKind = "residual"
    """`residual`: the baseline × exp(bound·a), so that 0 is that baseline; `continuous`: exp(2a);
    `increments`: the present weights × exp(0.4a); `ratios`: one of a finite set of ratio vectors per group."""
    baseline: Annotated[Baseline, Only(kind="residual")] = "inverse_latency"
    """What a residual stands on: `inverse_latency` sets weights; `levelled`, `idle`, `ratio` estimate the service times
    of `expected_delay`, which a positive action shortens, so that the server gets more."""
    bound: Annotated[float, Only(kind="residual")] = Field(default=0.7, ge=0, le=10)
    """Largest |log| by which a residual may move a weight or a service time off the baseline; 0 is the baseline."""
    ratios: Annotated[tuple[Annotated[int, Field(ge=1, le=MAX_WEIGHT)], ...], Only(kind="ratios")] = Field(
        default=(1, 3, 5), min_length=1
    )
    """Levels that ratio vectors are made of; {1, 3, 5} gives 25 distinct vectors for three servers."""
    joint: Annotated[bool, Only(kind="ratios")] = False
    """`ratios`: one number for all groups together (Discrete), which DQN needs, instead of one per group."""
    floor: Annotated[int, SETS_WEIGHTS] = Field(default=3, ge=1, le=MAX_WEIGHT)
    """Smallest weight of a usable server, 1…100: a server must be seen to be judged."""
    dead_band: Annotated[float, SETS_WEIGHTS] = Field(default=0.1, ge=0, le=100)
    """Relative change below which a group keeps its weights; saves reloads that change nothing."""

    @property
    def estimator(self) -> str | None:
        """The service-time estimator under a residual (`envs.estimators.registry`); None when weights are set."""
        return self.baseline if self.kind == "residual" and self.baseline != "inverse_latency" else None


def check_method(method: BalancingMethod, action: ActionOptions) -> None:
    """Raises ValueError unless what the actions set is what the balancing method takes: weights or service times."""
    if action.estimator is None and method == "expected_delay":
        raise ValueError(
            "expected_delay takes service times, not weights: set decision.action.baseline=levelled (kind residual)"
        )
    if action.estimator is not None and method != "expected_delay":
        raise ValueError(f"baseline {action.estimator} sets service times: set method=expected_delay")


@lru_cache(maxsize=32)
def ratio_levels(ratios: tuple[int, ...], servers: int) -> IntArray:
    """Distinct ratio vectors as indices into `ratios`, ``[vectors, servers]``; the first is equal weights.

    Raises ConfigError when there would be more than 1000.
    """
    if len(ratios) ** servers > MAX_VECTORS * 2 or min(ratios, default=0) < 1:
        raise ConfigError(
            f"ratios {ratios} for {servers} servers", where="action", remedy="use fewer levels or another action kind"
        )
    vectors: dict[tuple[int, ...], tuple[int, ...]] = {}
    for levels in itertools.product(range(len(ratios)), repeat=servers):
        vector = [ratios[level] for level in levels]
        vectors.setdefault(tuple(value // math.gcd(*vector) for value in vector), levels)
    return np.array(list(vectors.values()), dtype=np.int64)


class ActionCodec:
    """Actions → weights ``[..., groups, servers]``.

    An action is ``[..., groups * servers]`` in [−1, 1], group by group, or for `ratios` an index into
    `ratio_levels` per group, ``[..., groups]``, or for `joint` ones a single number ``[...]``.
    """

    def __init__(self, topology: Topology, options: ActionOptions) -> None:
        self.topology, self.options = topology, options
        self.size = topology.shape[0] * topology.shape[1]

    def check(self) -> None:
        """Raises ConfigError when there are no ratio vectors, or too many, for so many servers and groups."""
        if self.options.kind != "ratios":
            return
        groups, vectors = self.topology.shape[0], len(self._levels)
        if self.options.joint and vectors**groups > MAX_JOINT:
            raise ConfigError(
                f"{vectors} ratio vectors for each of {groups} groups are {vectors**groups:,} joint actions",
                where="decision.action.joint",
                remedy=f"at most {MAX_JOINT:,} are possible: set fewer decision.action.ratios, or joint=false with ppo",
            )

    @property
    def space(self) -> spaces.Space[Any]:
        """Of one testbed's action. Raises ConfigError as `check` does."""
        from gymnasium import spaces  # noqa: PLC0415 - `--help` reads the options above and must answer at once

        self.check()
        if self.options.kind != "ratios":
            return spaces.Box(-1.0, 1.0, (self.size,), np.float32)
        groups, vectors = self.topology.shape[0], len(self._levels)
        return spaces.Discrete(vectors**groups) if self.options.joint else spaces.MultiDiscrete([vectors] * groups)

    def weights(self, action: NDArray[Any], base_shares: FloatArray, present: FloatArray | IntArray) -> IntArray:
        """Integer weights, 1…100, 0 where a group lacks the server.

        Args:
            action: see the class; values beyond ±1 are cut, nan counts as 0.
            base_shares: ``[..., groups, servers]``, the baseline's shares, > 0.
            present: weights in force, same shape; a group whose new weights all lie within the dead
                band of these keeps them.
        """
        mask = self.topology.mask
        shares = np.where(mask, self._shares(np.asarray(action), base_shares, present), 0.0)
        scaled = np.rint(shares / shares.max(axis=-1, keepdims=True) * MAX_WEIGHT)
        new = np.where(mask, np.clip(scaled, self.options.floor, MAX_WEIGHT), 0).astype(np.int64)
        return np.where(self._keep(new, present), present, new).astype(np.int64)

    def service_times(self, action: NDArray[Any], base_s: FloatArray) -> FloatArray:
        """The baseline's service times ``[..., groups, servers]`` in seconds, each moved by at most `bound`."""
        return base_s * np.exp(-self.options.bound * self._moved(action))

    def action_of(self, shares: FloatArray, base_shares: FloatArray, present: FloatArray | IntArray) -> NDArray[Any]:
        """The action that comes nearest to these shares, the inverse of `weights`; imitation learns from it.

        All arguments are ``[..., groups, servers]`` and positive where the group has the server.
        """
        if self.options.kind == "ratios":
            return self.of_vectors(self._nearest_vector(self._centred_log(shares)))
        scale, origin = {
            "residual": (self.options.bound, base_shares),
            "continuous": (CONTINUOUS_RANGE, np.ones_like(base_shares)),
            "increments": (INCREMENT, present),
        }[self.options.kind]
        moved = self._centred_log(shares / np.where(self.topology.mask, origin, 1.0))
        action = np.clip(moved / max(scale, 1e-9), -1.0, 1.0)
        flat: NDArray[np.float32] = action.reshape(*action.shape[:-2], self.size).astype(np.float32)
        return flat

    def of_vectors(self, index: IntArray) -> NDArray[Any]:
        """The `ratios` action that chooses these vectors, ``[..., groups]`` → action."""
        if not self.options.joint:
            return index
        groups, vectors = self.topology.shape[0], len(self._levels)
        return np.asarray(np.ravel_multi_index(tuple(np.moveaxis(index, -1, 0)), (vectors,) * groups))

    def vectors_of(self, action: NDArray[Any]) -> NDArray[Any]:
        """Inverse of `of_vectors`; actions of other kinds come back as they are."""
        if self.options.kind != "ratios" or not self.options.joint:
            return action
        groups, vectors = self.topology.shape[0], len(self._levels)
        return np.stack(np.unravel_index(action.astype(np.int64), (vectors,) * groups), axis=-1)

    @property
    def _levels(self) -> IntArray:
        return ratio_levels(self.options.ratios, self.topology.shape[1])

    def _shares(self, action: NDArray[Any], base_shares: FloatArray, present: FloatArray | IntArray) -> FloatArray:
        if self.options.kind == "ratios":
            return self._ratio_shares(action)
        moved = self._moved(action)
        if self.options.kind == "continuous":
            return np.asarray(np.exp(CONTINUOUS_RANGE * moved))
        if self.options.kind == "increments":
            return np.asarray(present * np.exp(INCREMENT * moved))
        return np.asarray(base_shares * np.exp(self.options.bound * moved))

    def _moved(self, action: NDArray[Any]) -> FloatArray:
        moved = np.clip(np.nan_to_num(np.asarray(action).astype(float)), -1.0, 1.0)
        shaped: FloatArray = moved.reshape(*moved.shape[:-1], *self.topology.shape)
        return shaped

    def _centred_log(self, shares: FloatArray) -> FloatArray:
        # Only ratios matter; the middle of the range leaves the most room on both sides.
        mask = self.topology.mask
        logs = np.log(np.where(mask, shares, 1.0))
        high = np.where(mask, logs, -np.inf).max(axis=-1, keepdims=True)
        low = np.where(mask, logs, np.inf).min(axis=-1, keepdims=True)
        return np.where(mask, logs - (high + low) / 2, 0.0)

    def _nearest_vector(self, logs: FloatArray) -> IntArray:
        vectors = np.log(np.array(self.options.ratios, dtype=float))[self._levels]
        offset = logs[..., None, :] - vectors
        offset = offset - offset.mean(axis=-1, keepdims=True)
        nearest: IntArray = np.where(self.topology.mask[:, None, :], offset**2, 0.0).sum(axis=-1).argmin(axis=-1)
        return nearest

    def _ratio_shares(self, action: NDArray[Any]) -> FloatArray:
        chosen = self.vectors_of(action).astype(np.int64)
        shares: FloatArray = np.array(self.options.ratios, dtype=float)[self._levels[chosen]]
        return shares

    def _keep(self, new: IntArray, present: FloatArray | IntArray) -> NDArray[np.bool_]:
        old = np.maximum(present, 1) / np.maximum(present.max(axis=-1, keepdims=True), 1)
        wanted = np.maximum(new, 1) / np.maximum(new.max(axis=-1, keepdims=True), 1)
        moved = np.abs(np.log(wanted / old)) > np.log1p(self.options.dead_band)
        keep: NDArray[np.bool_] = ~(moved & self.topology.mask).any(axis=-1, keepdims=True)
        return keep
