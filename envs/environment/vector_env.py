"""Many simulated testbeds as one native gymnasium vector environment for training.

`SteeredBatch` is the part without gymnasium's interface; `envs.environment.rollout` plays it as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray
from actuators.contract.control import BalancingMethod
from actuators.contract.script import Script
from actuators.contract.window import Window
from actuators.errors import ConfigError
from envs.environment.picture import RenderMode, check_render_mode, rendered
from envs.environment.problem import DecisionProblem
from envs.environment.rewards import Ledger
from envs.estimators.base import FIRST_GUESS_S
from envs.observation.observer import Observation, equal_weights
from envs.simulator.batch import SimulatedBatch, SimulationOptions
from envs.simulator.window_batch import WindowBatch


class SteeredBatch:
    """`size` simulated testbeds steered by one problem's actions; each plays its script from `restart` on.

    A problem that knows no workers believes in those of each script.

    Attributes:
        observation: of the last interval, None before the first.
    """

    def __init__(
        self,
        problem: DecisionProblem,
        size: int,
        method: BalancingMethod,
        simulation: SimulationOptions | None,
        threads: int = 1,
    ) -> None:
        self.problem = problem
        self.observation: Observation | None = None
        self._windows: WindowBatch | None = None
        in_memory = problem.options.action.estimator is not None
        # The workers of one NGINX share what `expected_delay` counts.
        fitting = SimulationOptions(workers_sharing_memory=2) if in_memory else SimulationOptions()
        self._batch = SimulatedBatch(problem.topology, size, method, options=simulation or fitting, threads=threads)
        self._observer = problem.observer((size,))
        self._weights = equal_weights(problem.topology, (size,))
        self._tau_s = np.full(self._weights.shape, FIRST_GUESS_S)
        self._workers = np.ones((size, problem.topology.shape[1]))

    def restart(self, index: int, script: Script) -> None:
        """Starts a script on one testbed under equal weights or service times and forgets what was observed there."""
        self._batch.reset(index, script)
        self._observer.reset(index)
        self._weights[index] = equal_weights(self.problem.topology)
        self._tau_s[index] = FIRST_GUESS_S
        believed = self.problem.workers
        self._workers[index] = [float(each.workers) for each in script.servers] if believed is None else believed

    def act(self, actions: NDArray[Any], observation: Observation) -> None:
        """Puts the actions on this observation in force from the next `advance` on."""
        if observation.tau_s is None:
            self._weights = self.problem.weights(actions, observation)
        else:
            self._tau_s = self.problem.service_times(actions, observation)

    def advance(self, interval_s: float) -> tuple[FloatArray, dict[str, FloatArray]]:
        """One interval of all: the rewards ``[size]`` and their terms."""
        if self.problem.options.action.estimator is None:
            self._batch.set_weights(self._weights)
        else:
            self._batch.set_service_times(self._tau_s, self._workers)
        self._windows = windows = self._batch.advance(interval_s)
        self.observation = self._observer.observe(windows, interval_s, self._weights)
        return self.problem.reward(windows, self.observation)

    def window(self, index: int) -> Window:
        """The last window of one testbed. Raises ResetNeeded before the first."""
        if self._windows is None:
            raise gym.error.ResetNeeded("call reset first")
        return self._windows.window(index)


NextScript = Callable[[np.random.Generator], Script]


class SimulatedVectorEnv(gym.vector.VectorEnv[NDArray[np.float32], NDArray[Any], NDArray[Any]]):
    """`num_envs` independent simulated testbeds, advanced together; their episodes begin and end together.

    Observation ``[num_envs, servers, row_size]``, action ``[num_envs, …]`` as `envs.environment.actions` has it.
    NEXT_STEP: the step after the last one of an episode ignores its action, starts a new script and returns its first
    observation. SAME_STEP: the last step itself does, and `info["final_obs"]` has the last observation.

    Args:
        next_script: draws the script of an episode, for example a randomised scenario.
        interval_s: simulated seconds per step.
        seed: of the scripts until `reset` is given one; random when None.
        paired: the baseline, a residual of 0, plays every script as well, and its reward is subtracted: the difference
            is due to the actions, because both share the random draws.
        threads: threads that simulate; the results do not depend on it.
        flat: observations are ``[num_envs, servers * row_size]``.
        explains: `info["terms"]` has the terms of the rewards; RLlib would copy them for every environment.
        render_mode: what `render` returns of every testbed's last window: `ansi` a text, `rgb_array` a picture.
    """

    def __init__(
        self,
        problem: DecisionProblem,
        num_envs: int,
        next_script: NextScript,
        *,
        method: BalancingMethod = "least_conn",
        interval_s: float = 1.0,
        episode_steps: int = 100,
        seed: int | None = 0,
        simulation: SimulationOptions | None = None,
        paired: bool = False,
        threads: int = 1,
        flat: bool = False,
        explains: bool = False,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: RenderMode | None = None,
    ) -> None:
        if autoreset_mode not in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
            what = f"autoreset mode {autoreset_mode.value}"
            raise ConfigError(what, where="vector environment", remedy="use NEXT_STEP or SAME_STEP")
        self.problem, self.num_envs, self.render_mode = problem, num_envs, check_render_mode(render_mode)
        self.metadata = {
            "autoreset_mode": autoreset_mode, "render_modes": ["ansi", "rgb_array"], "render_fps": 4,
        }  # fmt: skip
        self.single_observation_space = problem.flat_observation_space if flat else problem.observation_space
        self.single_action_space = problem.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._next_script, self._interval_s, self._episode_steps = next_script, interval_s, episode_steps
        self._own = SteeredBatch(problem, num_envs, method, simulation, threads)
        self._twin = SteeredBatch(problem, num_envs, method, simulation, threads) if paired else None
        self._explains, self._same_step = explains, autoreset_mode is AutoresetMode.SAME_STEP
        self._terms: dict[str, FloatArray] = {}
        self.ledger = Ledger()
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._done = np.zeros(num_envs, dtype=bool)
        self._generator = np.random.default_rng(seed)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Restarts every episode; a seed restarts the sequence of scripts.

        Raises ConfigError for an `episode_seed`, which single environments take.
        """
        if options and "episode_seed" in options:
            what = "an episode_seed is of one episode"
            raise ConfigError(what, where="options", remedy="give it to gymnasium.make(…).reset")
        if seed is not None:
            self._generator = np.random.default_rng(seed if isinstance(seed, int) else [s or 0 for s in seed])
        self._done[:] = False
        return self._first(), {}

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """One interval of every testbed."""
        restarted = self._done.copy()
        self._own.act(actions, self._seen())
        if self._twin is not None and self._twin.observation is not None:
            self._twin.act(np.zeros((self.num_envs, self.problem.action_codec.size)), self._twin.observation)
        for index in np.flatnonzero(restarted):
            self._restart(int(index))
        self._steps[~restarted] += 1
        arrays, rewards = self._advance(~restarted)
        rewards[restarted] = 0.0
        over = self._steps >= self._episode_steps
        info = _of_all("terms", self._terms, ~restarted) if self._explains else {}
        if self._same_step and over.any():
            # Episodes begin and end together, so that one interval more is the first of all new ones.
            finals = np.empty(self.num_envs, dtype=object)
            finals[:] = list(arrays)
            info = {**_of_all("final_info", info, over), "final_obs": finals, "_final_obs": over}
            arrays = self._first()
        self._done = np.zeros_like(over) if self._same_step else over
        return arrays, rewards, np.zeros(self.num_envs, dtype=bool), over.copy(), info

    def render(self) -> tuple[Any, ...] | None:
        """The last window of every testbed: shares, queues and latencies; None without a render mode."""
        if self.render_mode is None:
            return None
        mode, deadlines_s = self.render_mode, self.problem.deadlines_s
        return tuple(rendered(self._own.window(index), deadlines_s, mode) for index in range(self.num_envs))

    def baseline_shares(self) -> NDArray[np.float64]:
        """Shares that the baseline would set now, ``[num_envs, groups, servers]``; largest of a group 1."""
        return self.problem.base_shares(self._seen())

    def action_for(self, shares: NDArray[np.float64]) -> NDArray[Any]:
        """The action that comes nearest to these shares in the present state."""
        return self.problem.action_codec.action_of(shares, self.baseline_shares(), self._seen().weights)

    def _seen(self) -> Observation:
        if self._own.observation is None:
            raise gym.error.ResetNeeded("call reset first")
        return self._own.observation

    def _first(self) -> NDArray[np.float32]:
        """Restarts all; the observation after their first interval, which no action decided."""
        for index in range(self.num_envs):
            self._restart(index)
        return self._advance(np.zeros(self.num_envs, dtype=bool))[0]

    def _restart(self, index: int) -> None:
        script = self._next_script(self._generator)
        self.ledger.start(index, script.name, script.seed)
        self._own.restart(index, script)
        if self._twin is not None:
            self._twin.restart(index, script)
        self._steps[index] = 0

    def _advance(self, counted: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        rewards, self._terms = self._own.advance(self._interval_s)
        self.ledger.add(self._terms, counted)
        if self._twin is not None:
            rewards = rewards - self._twin.advance(self._interval_s)[0]
        return self.problem.array(self._seen()).reshape(self.observation_space.shape), rewards


def _of_all(name: str, values: dict[str, Any], rows: NDArray[np.bool_]) -> dict[str, Any]:
    """One entry of a vector environment's `info`, which holds for these rows."""
    return {name: values, f"_{name}": rows}
