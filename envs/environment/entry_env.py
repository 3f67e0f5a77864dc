"""Learned admission as a native gymnasium vector environment for training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray
from actuators.contract.script import Script
from envs.environment.entry import WINDOW_S, EntryTask, LearnedEntry
from envs.environment.study_setup import PLAIN
from envs.environment.vector_env import NextScript
from envs.environment.windowed_env import WindowedVectorEnv
from envs.observation.entry import row_size
from envs.simulator.batch import SimulatedBatch
from envs.simulator.window_batch import WindowBatch

REWARD_SCALE = 0.1
"""Of goodput less 1, so that values are of the order of 1: RLlib's PPO learns nothing from larger errors of them."""


class EntryVectorEnv(WindowedVectorEnv):
    """`num_envs` systems under learned admission.

    Observation ``[num_envs, groups, row]``, action ``[num_envs, groups]``. The reward of a window is what was answered
    in time over what comes at nominal rates, both weighted by importance, less 1 and scaled.

    Args:
        threads: threads that simulate; the results do not depend on it.
    """

    def __init__(
        self, task: EntryTask, num_envs: int, next_script: NextScript, *, episode_steps: int = 99, seed: int = 0,
        threads: int = 1,
    ) -> None:  # fmt: skip
        groups = len(task.topology.groups)
        super().__init__(num_envs, next_script, (groups, row_size(task.encoder)), groups, episode_steps, seed)
        self.task = task
        self._batch = SimulatedBatch(task.topology, num_envs, "least_conn", options=PLAIN, threads=threads)

    def begin(self, scripts: Sequence[Script]) -> NDArray[np.float32]:
        for index, script in enumerate(scripts):
            self._batch.reset(index, script)
        self._entry = LearnedEntry(self.task, scripts)
        self._entry.begin(self._batch)
        believed = [self.task.admission(script) for script in scripts]
        self._weights = np.array([one.weights() for one in believed])
        self._expected = WINDOW_S * np.array([(one.weights() * one.rates_rps).sum() for one in believed])
        return self._entry.observe(self._batch.advance(WINDOW_S))

    def play(self, actions: NDArray[Any]) -> tuple[NDArray[np.float32], FloatArray, dict[str, FloatArray]]:
        self._entry.act(self._batch, actions)
        window = self._batch.advance(WINDOW_S)
        rewards = self._reward(window)
        offered = np.maximum(window.attempts.offered.sum(axis=1), 1)
        terms = {"goodput": 1 + rewards / REWARD_SCALE, "refused": window.attempts.refused.sum(axis=1) / offered}
        return self._entry.observe(window), rewards, terms

    def _reward(self, window: WindowBatch) -> FloatArray:
        good: FloatArray = (self._weights * window.attempts.good).sum(axis=1) / self._expected
        return REWARD_SCALE * (good - 1.0)
