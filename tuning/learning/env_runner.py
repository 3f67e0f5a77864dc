"""An env runner that builds episodes from arrays; RLlib's default runner loops over the environments in Python.

For native vector environments with NEXT_STEP autoreset. It calls `on_sample_end`, but neither connectors nor the
callbacks of single steps. tests/tuning/learning/test_algorithms.py compares the two runners step by step.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.core import DEFAULT_AGENT_ID, DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer
from ray.rllib.utils import force_list
from ray.rllib.utils.metrics import (
    EPISODE_LEN_MAX,
    EPISODE_LEN_MEAN,
    EPISODE_LEN_MIN,
    EPISODE_RETURN_MAX,
    EPISODE_RETURN_MEAN,
    EPISODE_RETURN_MIN,
    NUM_AGENT_STEPS_SAMPLED,
    NUM_AGENT_STEPS_SAMPLED_LIFETIME,
    NUM_ENV_STEPS_SAMPLED,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_EPISODES,
    NUM_EPISODES_LIFETIME,
    NUM_MODULE_STEPS_SAMPLED,
    NUM_MODULE_STEPS_SAMPLED_LIFETIME,
    SAMPLE_TIMER,
)

from actuators.processes.system import realtime_priority

Array = NDArray[Any]


class ArrayEnvRunner(SingleAgentEnvRunner):
    """Collects the steps of all environments as arrays; supports Box, Discrete and MultiDiscrete actions.

    It overrides public methods only. Whole episodes and random actions are left to RLlib's runner.
    """

    _begun: bool
    _now: Array
    _over: Array
    _lengths: Array
    _returns: Array

    def make_env(self) -> None:
        """As RLlib's; the next sample begins with a reset that gets the seed of this runner."""
        super().make_env()
        self._begun = False

    def sample(
        self,
        *,
        num_timesteps: int | None = None,
        num_episodes: int | None = None,
        explore: bool | None = None,
        random_actions: bool = False,
        force_reset: bool = False,
    ) -> list[SingleAgentEpisode]:
        """As RLlib's: `num_timesteps` steps, or a fragment of every environment."""
        whole = num_episodes is not None or self.config.batch_mode != "truncate_episodes"
        if self.env is None or whole or random_actions:
            self._begun = False
            return super().sample(  # type: ignore[no-any-return]
                num_timesteps=num_timesteps,
                num_episodes=num_episodes,
                explore=explore,
                random_actions=random_actions,
                force_reset=force_reset,
            )
        if num_timesteps is None:
            num_timesteps = self.config.get_rollout_fragment_length(self.worker_index) * self.num_envs
        with self.metrics.log_time(SAMPLE_TIMER):
            episodes = self._collected(num_timesteps, self.config.explore if explore is None else explore, force_reset)
            self._call_back(episodes)
        return episodes

    def _collected(self, num_timesteps: int, explore: bool, force_reset: bool) -> list[SingleAgentEpisode]:
        if force_reset or not self._begun:
            self._begin()
        rollout = _Rollout([self._now])
        counted = 0
        while counted < num_timesteps:
            counted += self._step(rollout, explore)
        self._now = rollout.observations[-1]
        episodes = self._episodes(rollout)
        self._count(counted, sum(episode.is_done for episode in episodes))
        return episodes

    def _begin(self) -> None:
        # As in RLlib, only the first reset of an environment gets the seed of this runner.
        self._now, _ = self.env.reset(seed=None if self._begun else _seed(self.config, self.worker_index))
        self._over = np.zeros(self.num_envs, dtype=bool)
        self._lengths, self._returns = np.zeros(self.num_envs, dtype=int), np.zeros(self.num_envs)
        self._begun = True

    def _call_back(self, episodes: list[SingleAgentEpisode]) -> None:
        make_callback(
            "on_sample_end",
            callbacks_objects=[kind() for kind in force_list(self.config.callbacks_class)],
            callbacks_functions=self.config.callbacks_on_sample_end,
            kwargs={"env_runner": self, "metrics_logger": self.metrics, "samples": episodes},
        )

    def _count(self, steps: int, finished: int) -> None:
        """Logs what RLlib's runner logs of a sample."""
        for name, lifetime, value in (
            (NUM_ENV_STEPS_SAMPLED, NUM_ENV_STEPS_SAMPLED_LIFETIME, steps),
            ((NUM_AGENT_STEPS_SAMPLED, DEFAULT_AGENT_ID), (NUM_AGENT_STEPS_SAMPLED_LIFETIME, DEFAULT_AGENT_ID), steps),
            (
                (NUM_MODULE_STEPS_SAMPLED, DEFAULT_MODULE_ID),
                (NUM_MODULE_STEPS_SAMPLED_LIFETIME, DEFAULT_MODULE_ID),
                steps,
            ),
            (NUM_EPISODES, NUM_EPISODES_LIFETIME, finished),
        ):
            self.metrics.log_value(name, value, reduce="sum")
            throughput = lifetime == NUM_ENV_STEPS_SAMPLED_LIFETIME
            self.metrics.log_value(lifetime, value, reduce="lifetime_sum", with_throughput=throughput)

    def _step(self, rollout: _Rollout, explore: bool) -> int:
        """Steps all environments; returns how many of them did not reset in this step."""
        # Until the next control is applied, the old one stays in force.
        real_time = getattr(self.env.unwrapped, "real_time", False)
        with realtime_priority() if real_time else contextlib.nullcontext():
            action, extras = self._act(self._now, explore)
            space = self.env.single_action_space
            sent = np.clip(action, space.low, space.high) if isinstance(space, gym.spaces.Box) else action
            observations, rewards, terminated, truncated, _ = self.env.step(sent)
        valid = ~self._over
        self._over = terminated | truncated
        for name, value in (
            ("observations", observations), ("actions", action), ("rewards", rewards.astype(np.float32)),
            ("done", self._over), ("terminated", terminated), ("counted", valid),
        ):  # fmt: skip
            getattr(rollout, name).append(value)
        for name, value in extras.items():
            rollout.extras.setdefault(name, []).append(value)
        self._now = observations
        self._lengths += valid
        self._returns += np.where(valid, rewards, 0.0)
        self._note_ends()
        return int(valid.sum())

    def _act(self, observations: Array, explore: bool) -> tuple[Array, dict[str, Array]]:
        batch = {Columns.OBS: torch.from_numpy(observations)}
        with torch.no_grad():
            if not explore:
                out = self.module.forward_inference(batch)
            else:
                out = self.module.forward_exploration(batch, t=self.num_env_steps_sampled_lifetime)
            if Columns.ACTIONS in out:
                return out[Columns.ACTIONS].numpy(), {}
            kind = (
                self.module.get_exploration_action_dist_cls()
                if explore
                else self.module.get_inference_action_dist_cls()
            )
            distribution = kind.from_logits(out[Columns.ACTION_DIST_INPUTS])
            chosen = (distribution if explore else distribution.to_deterministic()).sample()
            extras = {Columns.ACTION_DIST_INPUTS: out[Columns.ACTION_DIST_INPUTS].numpy()}
            if explore:
                extras[Columns.ACTION_LOGP] = distribution.logp(chosen).numpy()
            return chosen.numpy(), extras

    def _note_ends(self) -> None:
        window = -(-self.config.metrics_num_episodes_for_smoothing // (self.config.num_env_runners or 1))
        for row in np.flatnonzero(self._over):
            length, episode_return = int(self._lengths[row]), float(self._returns[row])
            for name, value in (
                (EPISODE_LEN_MEAN, length),
                (EPISODE_RETURN_MEAN, episode_return),
                (("agent_episode_return_mean", DEFAULT_AGENT_ID), episode_return),
                (("module_episode_return_mean", DEFAULT_MODULE_ID), episode_return),
            ):
                self.metrics.log_value(name, value, window=window)
            for low, high, value in (
                (EPISODE_LEN_MIN, EPISODE_LEN_MAX, length),
                (EPISODE_RETURN_MIN, EPISODE_RETURN_MAX, episode_return),
            ):
                self.metrics.log_value(low, value, reduce="min", window=window)
                self.metrics.log_value(high, value, reduce="max", window=window)
            self._lengths[row], self._returns[row] = 0, 0.0

    def _episodes(self, rollout: _Rollout) -> list[SingleAgentEpisode]:
        stacked = {
            name: np.stack(getattr(rollout, name)) for name in ("observations", "actions", "rewards", "terminated")
        }
        done, counted = np.stack(rollout.done), np.stack(rollout.counted)
        extras = {name: np.stack(values) for name, values in rollout.extras.items()}
        stretches = [
            (bool(done[stop - 1, row]), row, start, stop)
            for row in range(self.num_envs)
            for start, stop in _stretches(counted[:, row], done[:, row])
        ]
        # In the order of RLlib's runner, finished episodes first, so that equal seeds give equal minibatches.
        stretches.sort(key=lambda s: (not s[0], s[3] if s[0] else 0, s[1]))
        return [_episode(stacked, extras, *stretch) for stretch in stretches]


def _seed(config: Any, worker_index: int | None) -> int | None:
    """The seed of a runner's environments, as RLlib counts it: evaluation is a million apart."""
    if config.seed is None:
        return None
    return int(config.seed) + (worker_index or 0) + 1_000_000 * int(config.in_evaluation)


@dataclass
class _Rollout:
    """Collected steps: lists with an array ``[envs, …]`` per step; `observations` has one more entry."""

    observations: list[Array]
    actions: list[Array] = field(default_factory=list)
    rewards: list[Array] = field(default_factory=list)
    done: list[Array] = field(default_factory=list)
    terminated: list[Array] = field(default_factory=list)
    counted: list[Array] = field(default_factory=list)
    extras: dict[str, list[Array]] = field(default_factory=dict)


def _stretches(counted: Array, done: Array) -> list[tuple[int, int]]:
    """Half-open step ranges [start, stop) of one environment, one per episode."""
    stretches, start = [], None
    for step in range(len(counted)):
        if counted[step] and start is None:
            start = step
        if start is not None and (done[step] or step == len(counted) - 1):
            stretches.append((start, step + 1))
            start = None
    return stretches


def _episode(
    stacked: dict[str, Array], extras: dict[str, Array], done: bool, row: int, start: int, stop: int
) -> SingleAgentEpisode:
    def buffer(values: Any) -> InfiniteLookbackBuffer:
        return InfiniteLookbackBuffer(values, lookback=0)

    terminated = bool(stacked["terminated"][stop - 1, row])
    return SingleAgentEpisode(
        observations=buffer(stacked["observations"][start : stop + 1, row]),
        infos=buffer([{} for _ in range(stop - start + 1)]),
        actions=buffer(stacked["actions"][start:stop, row]),
        rewards=buffer(stacked["rewards"][start:stop, row]),
        terminated=terminated,
        truncated=done and not terminated,
        t_started=0,
        len_lookback_buffer=0,
        extra_model_outputs={name: buffer(values[start:stop, row]) for name, values in extras.items()},
    )
