"""Learned admission as a native gymnasium vector environment for training."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from actuators.contract.arrays import BoolArray, FloatArray
from envs.environment.entry import ACTION, WINDOW_S, EntryTask, LearnedEntry
from envs.environment.rewards import Ledger
from envs.environment.vector_env import NextScript
from envs.observation.entry import row_size
from envs.simulator.batch import SimulatedBatch, SimulationOptions
from envs.simulator.window_batch import WindowBatch

PLAIN = SimulationOptions(retry_post=True)
REWARD_SCALE = 0.1
"""Of goodput less 1, so that values are of the order of 1: RLlib's PPO learns nothing from larger errors of them."""


class EntryVectorEnv(gym.vector.VectorEnv[NDArray[np.float32], NDArray[Any], NDArray[Any]]):
    """`num_envs` systems under learned admission, advanced and restarted together; NEXT_STEP autoreset.

    Observation ``[num_envs, groups, row]``, action ``[num_envs, groups]``. The reward of a window is what was answered
    in time over what comes at nominal rates, both weighted by importance, less 1 and scaled.

    Args:
        next_script: draws the script of an episode; all must be as long as an episode at least.
        threads: threads that simulate; the results do not depend on it.
    """

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}

    def __init__(
        self, task: EntryTask, num_envs: int, next_script: NextScript, *, episode_steps: int = 99, seed: int = 0,
        threads: int = 1,
    ) -> None:  # fmt: skip
        groups = len(task.topology.groups)
        self.task, self.num_envs = task, num_envs
        self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, (groups, row_size(task.encoder)), np.float32)
        self.single_action_space = gym.spaces.Box(-ACTION, ACTION, (groups,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.ledger = Ledger()
        self._next_script, self._episode_steps = next_script, episode_steps
        self._batch = SimulatedBatch(task.topology, num_envs, "least_conn", options=PLAIN, threads=threads)
        self._generator = np.random.default_rng(seed)
        self._steps = 0

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Restarts every episode; a seed restarts the sequence of scripts."""
        if seed is not None:
            self._generator = np.random.default_rng(seed if isinstance(seed, int) else [s or 0 for s in seed])
        return self._restart(), {}

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[np.float32], FloatArray, BoolArray, BoolArray, dict[str, Any]]:
        """One window of every system; the step after an episode's last one begins another and ignores its action."""
        none = np.zeros(self.num_envs, dtype=bool)
        if self._steps == self._episode_steps:
            return self._restart(), np.zeros(self.num_envs), none, none.copy(), {}
        self._entry.act(self._batch, actions)
        window = self._batch.advance(WINDOW_S)
        self._steps += 1
        rewards = self._reward(window)
        offered = np.maximum(window.attempts.offered.sum(axis=1), 1)
        self.ledger.add(
            {"goodput": 1 + rewards / REWARD_SCALE, "refused": window.attempts.refused.sum(axis=1) / offered}
        )
        over = np.full(self.num_envs, self._steps == self._episode_steps)
        return self._entry.observe(window), rewards, none, over, {}

    def _restart(self) -> NDArray[np.float32]:
        scripts = [self._next_script(self._generator) for _ in range(self.num_envs)]
        for index, script in enumerate(scripts):
            self.ledger.start(index, script.name, script.seed)
            self._batch.reset(index, script)
        self._entry = LearnedEntry(self.task, scripts)
        self._entry.begin(self._batch)
        believed = [self.task.admission(script) for script in scripts]
        self._weights = np.array([one.weights() for one in believed])
        self._expected = WINDOW_S * np.array([(one.weights() * one.rates_rps).sum() for one in believed])
        self._steps = 0
        return self._entry.observe(self._batch.advance(WINDOW_S))

    def _reward(self, window: WindowBatch) -> FloatArray:
        good: FloatArray = (self._weights * window.attempts.good).sum(axis=1) / self._expected
        return REWARD_SCALE * (good - 1.0)
