"""Systems that are steered window by window, as a native gymnasium vector environment: what learned admission and
learned late binding share.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from actuators.contract.arrays import BoolArray, FloatArray
from actuators.contract.script import Script
from envs.environment.rewards import Ledger
from envs.environment.vector_env import NextScript

ACTION = 3.0
"""Bound of an action, before tanh."""


class WindowedVectorEnv(gym.vector.VectorEnv[NDArray[np.float32], NDArray[Any], NDArray[Any]], ABC):
    """`num_envs` systems, advanced and restarted together; NEXT_STEP autoreset.

    Observation ``[num_envs, rows, row_size]``, action ``[num_envs, actions]``, any real numbers within ±3.

    Args:
        next_script: draws the script of an episode; all must be as long as an episode at least.
        seed: of the scripts until `reset` is given one.
    """

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}

    def __init__(
        self,
        num_envs: int,
        next_script: NextScript,
        shape: tuple[int, int],
        actions: int,
        episode_steps: int,
        seed: int,
    ) -> None:
        self.num_envs = num_envs
        self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
        self.single_action_space = gym.spaces.Box(-ACTION, ACTION, (actions,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.ledger = Ledger()
        self._next_script, self._episode_steps = next_script, episode_steps
        self._generator = np.random.default_rng(seed)
        self._steps = 0

    @abstractmethod
    def begin(self, scripts: Sequence[Script]) -> NDArray[np.float32]:
        """Starts a script in every system and plays a window without actions; its rows."""

    @abstractmethod
    def play(self, actions: NDArray[Any]) -> tuple[NDArray[np.float32], FloatArray, dict[str, FloatArray]]:
        """One window under these actions: its rows, the rewards ``[num_envs]``, and what the ledger keeps."""

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
        self._steps += 1
        rows, rewards, terms = self.play(actions)
        self.ledger.add(terms)
        return rows, rewards, none, np.full(self.num_envs, self._steps == self._episode_steps), {}

    def _restart(self) -> NDArray[np.float32]:
        scripts = [self._next_script(self._generator) for _ in range(self.num_envs)]
        for index, script in enumerate(scripts):
            self.ledger.start(index, script.name, script.seed)
        self._steps = 0
        return self.begin(scripts)
