"""The gymnasium environment of one testbed, live or simulated. `envs.environment.vector_env` has the batched one.

docs/environments.md tells what seeds, `info` and the ends of episodes mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from actuators.contract.control import BalancingMethod
from actuators.contract.script import Scenario
from actuators.contract.testbed import Testbed
from actuators.contract.window import Fault, Window
from actuators.errors import ActuationError, TestbedError
from envs.environment.picture import RenderMode, check_render_mode, rendered
from envs.environment.problem import DecisionProblem
from envs.environment.rewards import Ledger
from envs.observation.observer import Observation

BEGINS = 5
"""Attempts to begin an episode, of which a fault on a live testbed may spoil some."""


class BalancingEnv(gym.Env[NDArray[np.float32], NDArray[Any]]):
    """Sets weights once per control interval; an episode is a fixed number of intervals.

    Observation ``[servers, row_size]`` float32, action as `envs.environment.actions` has it. Episodes end
    by truncation only: after `episode_steps`, or at once with `info["fault"]` when the window of a step is not
    usable or a control could not be applied (reward 0: a fault never becomes a number).

    Args:
        make_testbed: called once, at the first reset.
        next_scenario: episode seed → scenario.
        interval_s: control interval in seconds.
        closes_testbed: whether `close` closes the testbed too.
        flat: observations are ``[servers * row_size]``.
        seed: of the episodes until `reset` is given one; random when None.
        render_mode: what `render` returns of the last window: `ansi` a text, `rgb_array` a picture.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}

    def __init__(
        self,
        problem: DecisionProblem,
        make_testbed: Callable[[], Testbed],
        next_scenario: Callable[[int], Scenario],
        *,
        method: BalancingMethod = "least_conn",
        interval_s: float = 1.0,
        episode_steps: int = 100,
        closes_testbed: bool = True,
        flat: bool = False,
        seed: int | None = None,
        render_mode: RenderMode | None = None,
    ) -> None:
        self.problem, self.render_mode = problem, check_render_mode(render_mode)
        self.observation_space = problem.flat_observation_space if flat else problem.observation_space
        self.action_space = problem.action_space
        if seed is not None:
            self.np_random = np.random.default_rng(seed)
        self._make_testbed, self._next_scenario, self._method = make_testbed, next_scenario, method
        self._interval_s, self._episode_steps = interval_s, episode_steps
        self._closes_testbed = closes_testbed
        self._testbed: Testbed | None = None
        self._observer = problem.observer()
        self.ledger = Ledger()
        self._observation: Observation | None = None
        self._window: Window | None = None
        self._step = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Starts the next scenario under equal weights or service times and observes one interval of it.

        A fault in that interval begins the episode anew, so that every episode starts from numbers.

        Args:
            seed: restarts the sequence of episodes.
            options: `{"episode_seed": n}` plays the episode of that seed; those from 2³¹ on are never drawn.

        Raises:
            TestbedError: the first interval had a fault in each of `BEGINS` attempts.
        """
        super().reset(seed=seed)
        if self._testbed is None:
            self._testbed = self._opened()
        drawn = int(self.np_random.integers(2**31))
        episode_seed = int((options or {}).get("episode_seed", drawn))
        scenario = self._next_scenario(episode_seed)
        window = self._begun(self._testbed, scenario, episode_seed)
        self.ledger.start(0, scenario.name, episode_seed)
        self._observer.reset()
        self._step = 0
        return self._see(window), {"episode_seed": episode_seed}

    def step(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Applies the action's weights, waits one interval; `info` has the reward's terms."""
        if self._testbed is None or self._observation is None:
            raise gym.error.ResetNeeded("call reset before step")
        control = self.problem.control(action, self._observation)
        self._step += 1
        try:
            self._testbed.apply(control)
        except ActuationError as error:
            return self._shaped(self._observation), 0.0, False, True, {"fault": str(error)}
        window = self._testbed.advance(self._interval_s)
        array = self._see(window)
        if not window.usable:
            return array, 0.0, False, True, _fault(window.faults)
        value, terms = self.problem.reward(window, self._observation)
        self.ledger.add(terms)
        info = {"terms": {name: float(term) for name, term in terms.items()}, "weights": control.as_weights().values}
        return array, float(value), False, self._step >= self._episode_steps, info

    def render(self) -> str | NDArray[np.uint8] | None:
        """The last window: shares, queues and latencies; None without a render mode."""
        if self.render_mode is None:
            return None
        if self._window is None:
            raise gym.error.ResetNeeded("call reset before render")
        return rendered(self._window, self.problem.deadlines_s, self.render_mode)

    def close(self) -> None:
        """Releases the testbed, and closes it if `closes_testbed`; idempotent."""
        if self._testbed is not None and self._closes_testbed:
            self._testbed.close()
        self._testbed = None

    def _opened(self) -> Testbed:
        """A testbed with the method in force; one that refuses it is not kept: the next episode would play another."""
        testbed = self._make_testbed()
        try:
            testbed.set_method(self._method)
        except BaseException:
            if self._closes_testbed:
                testbed.close()
            raise
        return testbed

    def _begun(self, testbed: Testbed, scenario: Scenario, seed: int) -> Window:
        """The first window of an episode, usable."""
        why = ""
        for _ in range(BEGINS):
            try:
                testbed.reset(scenario, seed)
                if self.problem.options.action.estimator is not None:
                    testbed.apply(self.problem.first_control())
            except ActuationError as error:
                why = str(error)
                continue
            window = testbed.advance(self._interval_s)
            if window.usable:
                return window
            why = _fault(window.faults)["fault"]
        remedy = "look for the cause, then build a new testbed"
        raise TestbedError(f"no episode began in {BEGINS} attempts: {why}", where="environment", remedy=remedy)

    def _see(self, window: Window) -> NDArray[np.float32]:
        self._window, self._observation = window, self._observer.observe_window(window)
        return self._shaped(self._observation)

    def _shaped(self, observation: Observation) -> NDArray[np.float32]:
        return self.problem.array(observation).reshape(self.observation_space.shape)


def _fault(faults: tuple[Fault, ...]) -> dict[str, str]:
    blocking = [fault for fault in faults if fault.kind != "reload"]
    return {"fault": "; ".join(f"{fault.kind}: {fault.detail}" for fault in blocking)} if blocking else {}
