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
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer

from actuators.processes.system import realtime_priority

Array = NDArray[Any]


class ArrayEnvRunner(SingleAgentEnvRunner):
    """Collects the steps of all environments as arrays; supports Box, Discrete and MultiDiscrete actions."""

    _needs_initial_reset: bool
    _now: Array
    _over: Array
    _lengths: Array
    _returns: Array

    def _sample(
        self,
        *,
        num_timesteps: int | None = None,
        num_episodes: int | None = None,
        explore: bool,
        random_actions: bool = False,
        force_reset: bool = False,
    ) -> list[SingleAgentEpisode]:
        if num_episodes is not None or random_actions:
            return super()._sample(  # type: ignore[no-any-return]
                num_timesteps=num_timesteps,
                num_episodes=num_episodes,
                explore=explore,
                random_actions=random_actions,
                force_reset=force_reset,
            )
        if force_reset or self._needs_initial_reset:
            self._begin()
        rollout = _Rollout([self._now])
        counted = 0
        while counted < (num_timesteps or 0):
            counted += self._step(rollout, explore)
        self._now = rollout.observations[-1]
        episodes = self._episodes(rollout)
        finished = sum(episode.is_done for episode in episodes)
        self._log_env_steps(metric=self._metrics_num_env_steps_sampled, num_steps=counted)
        self._increase_sampled_metrics(counted, finished)
        return episodes

    def _begin(self) -> None:
        # As in RLlib, only the first reset of an environment gets the seed of this runner.
        seed = self._seed if self._needs_initial_reset else None
        self._now, _ = self.env.reset(seed=seed)
        self._over = np.zeros(self.num_envs, dtype=bool)
        self._lengths, self._returns = np.zeros(self.num_envs, dtype=int), np.zeros(self.num_envs)
        self._needs_initial_reset = False

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
        for row in np.flatnonzero(self._over):
            self._log_episode_metrics(int(self._lengths[row]), float(self._returns[row]), 0.0)
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
