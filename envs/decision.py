"""The decision problem in one value: what is seen, how an action becomes weights, what is rewarded.

Environments, controllers and bundles share it, so that a policy acts in front of a live NGINX
exactly as it did in training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from actuators.options import Options
from actuators.topology import Topology
from envs.actions import ActionCodec, ActionOptions
from envs.baselines import inverse_latency_shares
from envs.encoding import Encoder
from envs.features import Counters
from envs.observation import Observation, ObservationName, Observer, as_array, observation_size
from envs.rewards import RewardName, reward, reward_terms

FloatArray = NDArray[np.float64]


class DecisionOptions(Options):
    """What the policy sees, does and is paid for."""

    observation: ObservationName = "posterior+features"
    """Parts of the observation: the mixture's posterior, the features, or both."""
    reward: RewardName = "log_latency"
    """`log_latency` (default) or `art`."""
    action: ActionOptions = ActionOptions()
    """How an action becomes weights."""


@dataclass(frozen=True, eq=False)
class DecisionProblem:
    """Topology, deadlines ``[groups]`` in seconds, encoder and options; everything but the network."""

    topology: Topology
    deadlines_s: FloatArray
    encoder: Encoder
    options: DecisionOptions

    @property
    def codec(self) -> ActionCodec:
        return ActionCodec(self.topology, self.options.action)

    @property
    def row_size(self) -> int:
        """Features in a server's row of the network's input."""
        return observation_size(self.topology, self.encoder.clusters, self.options.observation)

    @property
    def observation_space(self) -> spaces.Box:
        """``[servers, row_size]`` within ±10."""
        return spaces.Box(-10.0, 10.0, (self.topology.shape[1], self.row_size), np.float32)

    @property
    def action_space(self) -> spaces.Box:
        """``[groups * servers]`` within ±1, group by group."""
        return spaces.Box(-1.0, 1.0, (self.codec.size,), np.float32)

    def observer(self, batch: tuple[int, ...] = ()) -> Observer:
        """A fresh observer; `batch` gives its leading axes."""
        return Observer(self.topology, self.deadlines_s, self.encoder, batch)

    def array(self, observation: Observation) -> NDArray[np.float32]:
        """The network's input, ``[..., servers, row_size]``."""
        shares = inverse_latency_shares(observation.latency_s)
        return as_array(observation, self.encoder, shares, self.options.observation)

    def weights(self, action: NDArray[np.floating], observation: Observation) -> NDArray[np.int64]:
        """Integer weights ``[..., groups, servers]`` of an action taken on this observation."""
        return self.codec.weights(action, inverse_latency_shares(observation.latency_s), observation.weights)

    def reward(self, counters: Counters) -> tuple[FloatArray, dict[str, FloatArray]]:
        """Reward and its terms, each ``[...]``."""
        terms = reward_terms(counters, self.deadlines_s)
        return reward(self.options.reward, terms), terms
