"""The decision problem in one value: what is observed, how an action becomes a control, what is rewarded.

Environments, controllers and bundles share it, so that a policy acts on a live NGINX exactly as in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from actuators.contract.arrays import FloatArray
from actuators.contract.control import Control, ServiceTimes, Weights
from actuators.contract.topology import Topology
from actuators.options import NOT_GIVEN, Only, Options
from envs.environment.actions import ActionCodec, ActionOptions
from envs.environment.rewards import RewardName, rank_term, reward, reward_terms
from envs.estimators.registry import estimator_named, first_control
from envs.observation.encoder import Encoder
from envs.observation.features import Counters, inverse_latency_shares
from envs.observation.observer import Observation, ObservationName, Observer, as_array, frame_row, observation_size

if TYPE_CHECKING:
    from gymnasium import spaces


class DecisionOptions(Options):
    """What the policy sees, does and is paid for."""

    observation: ObservationName = "posterior+features"
    """`posterior` of the mixture, `label` (its likeliest cluster, one-hot), `fisher` (offsets from every
    cluster's mean), `features`, or `posterior+features`."""
    frames: int = Field(default=1, ge=1, le=1000)
    """Intervals that one observation spans; 8 let a policy anticipate periodic interference."""
    reward: Annotated[RewardName, Only(reward_mix=NOT_GIVEN)] = "log_latency"
    """`log_latency`, `art`, `p99` or `cluster_rank` (the plan's first idea, for comparison)."""
    reward_mix: dict[RewardName, float] = Field(default_factory=dict)
    """Weighted sum of rewards, for example {log_latency: 1, p99: 0.5}; takes the place of `reward` when given."""
    action: ActionOptions = ActionOptions()
    """How an action becomes weights."""


@dataclass(frozen=True, eq=False)
class DecisionProblem:
    """Everything but the network.

    Attributes:
        deadlines_s: ``[groups]``.
        workers: ``[servers]``, requests that each server serves at once; None means 1 each, which is safe and costs
            some of the gain; in training on simulated testbeds, those of each script.
    """

    topology: Topology
    deadlines_s: FloatArray
    encoder: Encoder
    options: DecisionOptions
    workers: FloatArray | None = None

    @cached_property
    def codec(self) -> ActionCodec:
        """How shares become weights, for heuristics: with the floor and dead band of the policy."""
        return ActionCodec(self.topology, self.options.action.model_copy(update={"kind": "residual", "joint": False}))

    @cached_property
    def action_codec(self) -> ActionCodec:
        """How the policy's actions become weights."""
        return ActionCodec(self.topology, self.options.action)

    @property
    def row_size(self) -> int:
        """Features in a server's row of the network's input."""
        return observation_size(self.topology, self.encoder, self.options.observation, self.options.frames)

    @property
    def observation_space(self) -> spaces.Box:
        """``[servers, row_size]`` within ±10."""
        from gymnasium import spaces  # noqa: PLC0415 - `--help` reads the options above and must answer at once

        return spaces.Box(-10.0, 10.0, (self.topology.shape[1], self.row_size), np.float32)

    @property
    def flat_observation_space(self) -> spaces.Box:
        """``[servers * row_size]`` within ±10: the rows of `observation_space` one after the other."""
        from gymnasium import spaces  # noqa: PLC0415

        return spaces.Box(-10.0, 10.0, (self.topology.shape[1] * self.row_size,), np.float32)

    @property
    def action_space(self) -> spaces.Space[Any]:
        """``[groups * servers]`` within ±1, group by group; for `ratios` an index per group or one for all."""
        return self.action_codec.space

    @property
    def reward_mix(self) -> dict[RewardName, float]:
        """Weight of each reward by name."""
        return self.options.reward_mix or {self.options.reward: 1.0}

    def observer(self, batch: tuple[int, ...] = ()) -> Observer:
        """A fresh observer; `batch` gives its leading axes."""
        name = self.options.action.estimator
        estimator = None if name is None else estimator_named(name)(self.topology, batch)
        return Observer(
            self.topology, self.deadlines_s, self.encoder, batch, self.options.frames, self._frame_row, estimator
        )

    def array(self, observation: Observation) -> NDArray[np.float32]:
        """The network's input, ``[..., servers, row_size]``."""
        return as_array(observation, self.encoder, self.base_shares(observation), self.options.observation)

    def base_shares(self, observation: Observation) -> FloatArray:
        """What the baseline would do, ``[..., groups, servers]``, largest of a group 1."""
        return inverse_latency_shares(observation.latency_s if observation.tau_s is None else observation.tau_s)

    def control(self, action: NDArray[Any], observation: Observation) -> Control:
        """What an action on this observation of one testbed puts in force."""
        if observation.tau_s is None:
            return Weights(self.topology, self.weights(action, observation))
        return ServiceTimes(self.topology, self.service_times(action, observation), self.believed_workers)

    def first_control(self) -> Control:
        """Before anything was seen: equal weights, or equal service times."""
        if self.options.action.estimator is None:
            return Weights.equal(self.topology)
        return first_control(self.topology, self.believed_workers)

    @property
    def believed_workers(self) -> FloatArray:
        """`workers`, or 1 each."""
        return np.ones(self.topology.shape[1]) if self.workers is None else self.workers

    def weights(self, action: NDArray[Any], observation: Observation) -> NDArray[np.int64]:
        """Integer weights ``[..., groups, servers]`` of an action taken on this observation."""
        return self.action_codec.weights(action, self.base_shares(observation), observation.weights)

    def service_times(self, action: NDArray[Any], observation: Observation) -> FloatArray:
        """Seconds ``[..., groups, servers]`` of an action on this observation, which an estimator must have seen."""
        assert observation.tau_s is not None, "the observer has no estimator"
        return self.action_codec.service_times(action, observation.tau_s)

    def reward(
        self, counters: Counters, observation: Observation | None = None
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        """Reward and its terms, each ``[...]``; with the window's observation also the term `cluster_rank`."""
        terms = reward_terms(counters, self.deadlines_s)
        if observation is not None:
            terms["cluster_rank"] = rank_term(observation.posterior, self._ranks, terms["error_ratio"])
        return reward(self.reward_mix, terms), terms

    @cached_property
    def _ranks(self) -> FloatArray:
        return self.encoder.ranks()

    def _frame_row(self, observation: Observation) -> NDArray[np.float32]:
        return frame_row(observation, self.encoder, self.options.observation)
