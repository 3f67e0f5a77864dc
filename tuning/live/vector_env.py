"""Many live testbeds as one native gymnasium vector environment: the intervals of all testbeds run in parallel.

One process drives them through asynchronous actor calls and holds its leases from the first reset to `close`.
Forked environments (`gym_env_vectorize_mode="async"`) would inherit Ray's connection and hang.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import ray
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from actuators.contract.script import Scenario
from actuators.errors import DeepSchedError, TestbedError
from actuators.processes.system import realtime_priority
from envs.environment.problem import DecisionProblem
from envs.environment.rewards import Ledger
from envs.observation.observer import Observation
from tuning.live.conductor import Stepped
from tuning.live.leases import Leaser
from tuning.live.metrics import TestbedMetrics

REPAIR_TIMEOUT_S = 180.0
"""Time limit for the repair of a broken testbed; after it the run fails."""
ANSWER_SLACK_S = 30.0
RETRY_S = 0.5
PARTS = ("collect", "encode", "apply", "record")
"""Timed parts of a step: reading the window, encoding the observation, applying the control, and recording the metrics
of the previous window (during the interval)."""

_Reset = tuple[NDArray[np.float32], dict[str, Any]]
_Step = tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]


class LiveVectorEnv(gym.vector.VectorEnv[NDArray[np.float32], NDArray[Any], NDArray[Any]]):
    """`num_envs` leased testbeds, stepped together; NEXT_STEP autoreset.

    Observation ``[num_envs, servers, row_size]``. An episode ends by truncation only: after `episode_steps`,
    or at once, with reward 0 and ``infos["fault"]``, when its window is not usable, its control could not be
    applied or its testbed broke; the other episodes continue. The next step resets this testbed, after a repair
    if one is needed, while the others wait.

    Args:
        leaser: leases the testbeds at the first reset; `close` returns them.
        scenario: played in every episode, each time with a new seed.
        interval_s: control interval in real seconds.
        episode_steps: control intervals per episode.
        seed: seed of the episodes' seeds, until `reset` gets another one.

    Raises:
        CapacityError: from the first reset, when too few testbeds are free.
        TestbedError: when a broken testbed could not be repaired within 180 s.
    """

    real_time: ClassVar[bool] = True
    """Tells `tuning.learning.env_runner` to run the policy at real-time priority: the testbeds do not wait for it."""
    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}

    def __init__(
        self,
        problem: DecisionProblem,
        num_envs: int,
        leaser: Leaser,
        scenario: Scenario,
        *,
        interval_s: float = 1.0,
        episode_steps: int = 100,
        seed: int = 0,
    ) -> None:
        self.problem, self.num_envs = problem, num_envs
        self.single_observation_space, self.single_action_space = problem.observation_space, problem.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._leaser, self._scenario = leaser, scenario
        self._interval_s, self._episode_steps = interval_s, episode_steps
        self._testbeds: dict[str, Any] = {}
        self._lanes: list[_Lane] = []
        self.ledger = Ledger()
        self.last_work_s = 0.0
        """Duration of the last step without the wait for the end of the interval; includes calls between processes."""
        self.last_parts_s = dict.fromkeys(PARTS, 0.0)
        """Seconds of each of `PARTS` in the last step: the maximum over the testbeds."""
        self._generator = np.random.default_rng(seed)

    def reset(self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None) -> _Reset:
        """Starts a new episode on every testbed; the first call leases and starts the testbeds."""
        if seed is not None:
            self._generator = np.random.default_rng(seed if isinstance(seed, int) else [s or 0 for s in seed])
        if not self._lanes:
            self._testbeds = self._leaser.lease(self.num_envs)
            self._lanes = [_Lane(name, c, self.problem) for name, c in self._testbeds.items()]
        for row in range(self.num_envs):
            self._begin_reset(row)
        return np.stack([lane.finish_reset(self._interval_s) for lane in self._lanes]), {}

    def step(self, actions: Sequence[Any] | NDArray[Any]) -> _Step:
        """Runs one interval on every testbed: sends all controls, then waits for all windows."""
        if not self._lanes:
            raise gym.error.ResetNeeded("call reset before step")
        began_s = time.monotonic()
        resetting = [lane.done for lane in self._lanes]
        rewards = np.zeros(self.num_envs)
        with realtime_priority():
            for row, (lane, action) in enumerate(zip(self._lanes, actions, strict=True)):
                if lane.done:
                    self._begin_reset(row)
                else:
                    lane.begin_step(action, self._interval_s)
            for index, lane in enumerate(self._lanes):
                if resetting[index]:
                    lane.finish_reset(self._interval_s)
                else:
                    rewards[index], terms = lane.finish_step(self._interval_s, self._episode_steps)
                    if terms:
                        self.ledger.add(terms)
        done = np.array([lane.done for lane in self._lanes])
        self.last_work_s = time.monotonic() - began_s - max(lane.waited_s for lane in self._lanes)
        self.last_parts_s = {part: max(lane.parts_s[part] for lane in self._lanes) for part in PARTS}
        return np.stack([lane.row for lane in self._lanes]), rewards, np.zeros_like(done), done, self._infos()

    def close_extras(self, **kwargs: Any) -> None:
        """Returns the testbeds; `Testbeds` closes them."""
        leased, lanes, self._lanes = bool(self._lanes), self._lanes, []
        for lane in lanes:
            lane.publish()
        if leased and ray.is_initialized():
            self._leaser.release()

    def _begin_reset(self, row: int) -> None:
        seed = int(self._generator.integers(2**31))
        self.ledger.start(row, self._scenario.name, seed)
        self._lanes[row].begin_reset(self._scenario, seed, self._interval_s)

    def _infos(self) -> dict[str, Any]:
        faults = np.array([lane.fault for lane in self._lanes], dtype=object)
        return {"fault": faults, "_fault": faults != ""} if faults.any() else {}


def make_environment(context: dict[str, Any]) -> LiveVectorEnv:
    """Builds the environment for RLlib's registry from `env_config`, to which RLlib adds `num_envs`."""
    config = dict(context)
    return LiveVectorEnv(config.pop("problem"), config.pop("num_envs"), **config)


class _Lane:
    """One testbed of the vector and its current observation."""

    def __init__(self, name: str, conductor: Any, problem: DecisionProblem) -> None:
        self._conductor, self._problem = conductor, problem
        self._observer = problem.observer()
        self._observation: Observation | None = None
        self._metrics = TestbedMetrics(name)
        self._unpublished: Callable[[], None] | None = None
        self._name = name
        self._pending: Any = None
        self._again: Callable[[], Any] = lambda: None
        self._steps = 0
        self.row = np.zeros(problem.observation_space.shape or (), np.float32)
        self.done = False
        self.fault = ""
        self.waited_s = 0.0
        self.parts_s = dict.fromkeys(PARTS, 0.0)

    def begin_reset(self, scenario: Scenario, seed: int, interval_s: float) -> None:
        self._again = lambda: self._conductor.reset.remote(scenario, seed, interval_s)
        self._pending = self._again()

    def finish_reset(self, interval_s: float) -> NDArray[np.float32]:
        """The first observation of an episode; repeats the reset until its window is usable."""
        deadline_s = time.monotonic() + REPAIR_TIMEOUT_S
        while True:
            stepped, trouble = _answer(self._pending, interval_s + REPAIR_TIMEOUT_S)
            if stepped is not None and stepped.window is not None and stepped.window.usable:
                self._observer.reset()
                self._steps, self.done, self.fault = 0, False, ""
                self._see(stepped)
                return self.row
            trouble = trouble or (stepped.fault if stepped else "")
            if time.monotonic() > deadline_s:
                raise TestbedError(f"{self._name} could not be repaired for {REPAIR_TIMEOUT_S:g} s: {trouble}")
            time.sleep(RETRY_S)
            self._pending = self._again()

    def begin_step(self, action: Any, interval_s: float) -> None:
        assert self._observation is not None
        self._pending = self._conductor.step.remote(self._problem.control(action, self._observation), interval_s)
        # The interval is running: this does not delay a control.
        self.publish()

    def publish(self) -> None:
        """Records the metrics of the last window, once."""
        publish, self._unpublished = self._unpublished, None
        if publish is not None:
            began_s = time.monotonic()
            publish()
            self.parts_s["record"] = time.monotonic() - began_s

    def finish_step(self, interval_s: float, episode_steps: int) -> tuple[float, dict[str, Any]]:
        """Reward and its terms; a fault gives 0 and no terms and ends the episode."""
        stepped, trouble = _answer(self._pending, interval_s + ANSWER_SLACK_S)
        self._steps += 1
        answered = stepped or Stepped(None)
        self.waited_s = answered.waited_s
        self.parts_s |= {"apply": answered.apply_s, "collect": answered.collect_s}
        self.fault = trouble or (stepped.fault if stepped is not None else "")
        self.done = bool(self.fault) or self._steps >= episode_steps
        if stepped is None or stepped.window is None or self.fault:
            self._metrics.fault()
            return 0.0, {}
        began_s = time.monotonic()
        self._see(stepped)
        assert self._observation is not None
        value, terms = self._problem.reward(stepped.window, self._observation)
        self.parts_s["encode"] = time.monotonic() - began_s
        self._unpublished = partial(
            self._metrics.window, stepped.window, self._observation, terms, float(value), changed=stepped.changed
        )
        if self.done:
            self.publish()
        return float(value), terms

    def _see(self, stepped: Stepped) -> None:
        assert stepped.window is not None
        self._observation = self._observer.observe_window(stepped.window)
        self.row = self._problem.array(self._observation)


def _answer(reference: Any, timeout_s: float) -> tuple[Stepped | None, str]:
    """The answer of a conductor, or None and the reason why there is none."""
    try:
        return Stepped.load(ray.get(reference, timeout=timeout_s)), ""
    except ray.exceptions.ActorDiedError as error:
        # Ray restarts a conductor that dies later; this one failed in its constructor.
        raise TestbedError("a testbed's conductor could not be started", evidence=_last_line(error)) from error
    except ray.exceptions.RayActorError:
        return None, "the testbed's conductor died and is being restarted"
    except ray.exceptions.GetTimeoutError:
        return None, f"the testbed's conductor did not answer within {timeout_s:g} s"
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, DeepSchedError):
            return None, str(error.cause)
        raise


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
