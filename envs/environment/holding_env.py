"""Learned late binding as a native gymnasium vector environment for training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray
from actuators.contract.histogram import midpoints_s
from actuators.contract.script import Script
from envs.environment.holding import WINDOW_S, HoldingTask, LearnedHolding
from envs.environment.study_setup import SHARED_MEMORY
from envs.environment.vector_env import NextScript
from envs.environment.windowed_env import WindowedVectorEnv
from envs.observation.deadlines import failure_s
from envs.observation.holding import MOVES, row_size
from envs.simulator.batch import SimulatedBatch
from envs.simulator.window_batch import WindowBatch

MOST_REWARD = 1.0
_LEAST_COST = 0.1


class HoldingVectorEnv(WindowedVectorEnv):
    """`num_envs` systems under learned late binding.

    Observation ``[num_envs, groups, row]``, action ``[num_envs, 4 * groups]``. The reward of a window is
    log((0.1 + cost without actions) / (0.1 + cost)), within ±1, where the cost is response time over deadline and
    relative tardiness per request (docs/glossary.md#j): the rule without actions plays every script as well, with the
    same random draws.

    Args:
        threads: threads that simulate; the results do not depend on it.
    """

    def __init__(
        self, task: HoldingTask, num_envs: int, next_script: NextScript, *, episode_steps: int = 99, seed: int = 0,
        threads: int = 1,
    ) -> None:  # fmt: skip
        groups = len(task.topology.groups)
        shape = (groups, row_size(task.encoder))
        super().__init__(num_envs, next_script, shape, MOVES * groups, episode_steps, seed)
        self.task = task
        self._own, self._twin = (
            SimulatedBatch(task.topology, num_envs, "late_binding", options=SHARED_MEMORY, threads=threads)
            for _ in range(2)
        )
        self._cost_of = cost_table(task.deadlines_s)

    def begin(self, scripts: Sequence[Script]) -> NDArray[np.float32]:
        for batch in (self._own, self._twin):
            for index, script in enumerate(scripts):
                batch.reset(index, script)
        self._moved, self._plain = LearnedHolding(self.task, scripts), LearnedHolding(self.task, scripts)
        self._moved.begin(self._own)
        self._plain.begin(self._twin)
        self._plain.observe(self._twin, self._twin.advance(WINDOW_S))
        return self._moved.observe(self._own, self._own.advance(WINDOW_S))

    def play(self, actions: NDArray[Any]) -> tuple[NDArray[np.float32], FloatArray, dict[str, FloatArray]]:
        self._moved.act(self._own, actions)
        window, plain = self._own.advance(WINDOW_S), self._twin.advance(WINDOW_S)
        self._plain.observe(self._twin, plain)
        cost, without = (_LEAST_COST + self._cost(each) for each in (window, plain))
        rewards = np.clip(np.log(without / cost), -MOST_REWARD, MOST_REWARD)
        failed = window.failed.sum(axis=1) / np.maximum(window.planned.sum(axis=1), 1)
        return self._moved.observe(self._own, window), rewards, {"cost": cost, "failed": failed}

    def _cost(self, window: WindowBatch) -> FloatArray:
        """``[n]``: per request."""
        good, of_failure = self._cost_of
        requests = window.latency_counts.sum(axis=(1, 2)) + window.failed.sum(axis=1)
        total = np.einsum("ngk,gk->n", window.latency_counts, good) + window.failed @ of_failure
        cost: FloatArray = total / np.maximum(requests, 1)
        return cost


def cost_table(deadlines_s: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Cost of an answer by the bucket of its response time, ``[groups, SIZE]``, and of a failure, ``[groups]``."""
    relative, failed = midpoints_s() / deadlines_s[:, None], failure_s(deadlines_s) / deadlines_s
    return relative + np.maximum(relative - 1, 0.0), failed + np.maximum(failed - 1, 0.0)
