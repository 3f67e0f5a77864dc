"""Many live testbeds as one native gymnasium vector environment: the intervals of all testbeds run in parallel.

One process drives them, with a message per node and arrays over all testbeds, and holds its leases from the first reset
to `close`. Forked environments (`gym_env_vectorize_mode="async"`) would inherit Ray's connection and hang.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

import gymnasium as gym
import numpy as np
import ray
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from actuators.contract.arrays import BoolArray, FloatArray, IntArray
from actuators.contract.script import Scenario
from actuators.contract.window_stack import WindowStack
from actuators.errors import TestbedError
from actuators.processes.system import realtime_priority
from envs.environment.problem import DecisionProblem
from envs.environment.rewards import Ledger
from envs.observation.observer import Observation
from tuning.live.metrics import SteppedWindows, TestbedMetrics
from tuning.live.relay import Channel, Orders, repair_limit_s

RETRY_S = 0.5
PARTS = ("collect", "encode", "apply", "record")
"""Timed parts of a step: reading the windows, encoding the observations, applying the controls, and recording the
metrics of the previous windows (during the interval)."""

_Reset = tuple[NDArray[np.float32], dict[str, Any]]
_Step = tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]


class Leasing(Protocol):
    """Where an environment gets its testbeds from: `tuning.live.leases.Leaser`."""

    def lease(self, count: int) -> dict[str, Any]:
        """Name → conductor of `count` testbeds. Raises CapacityError."""

    def channels(self, leased: Mapping[str, Any]) -> tuple[list[Channel], dict[str, str]]:
        """Ways to these testbeds, and name → address of its node. Raises TestbedError."""

    def release(self) -> None:
        """Returns the testbeds."""


class LiveVectorEnv(gym.vector.VectorEnv[NDArray[np.float32], NDArray[Any], NDArray[Any]]):
    """`num_envs` leased testbeds, stepped together; NEXT_STEP autoreset.

    Observation ``[num_envs, servers, row_size]``. An episode ends by truncation only: after `episode_steps`,
    or at once, with reward 0 and ``infos["fault"]``, when its window is not usable, its control could not be
    applied or its testbed broke; the other episodes continue. The next step resets this testbed, after a repair
    if one is needed, while the others wait (docs/scale.md#failures).

    Args:
        leaser: leases the testbeds at the first reset; `close` returns them.
        scenario: played in every episode, each time with a new seed.
        interval_s: control interval in real seconds.
        episode_steps: control intervals per episode.
        seed: seed of the episodes' seeds, until `reset` gets another one.

    Raises:
        CapacityError: from the first reset, when too few testbeds are free.
        TestbedError: when a broken testbed could not be repaired in time (`relay.repair_limit_s`).
    """

    real_time: ClassVar[bool] = True
    """Tells `tuning.learning.env_runner` to run the policy at real-time priority: the testbeds do not wait for it."""
    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}

    def __init__(
        self,
        problem: DecisionProblem,
        num_envs: int,
        leaser: Leasing,
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
        self._nodes: list[_Node] = []
        self._names: list[str] = []
        self._observer = problem.observer((num_envs,))
        self._observation: Observation | None = None
        self._rows = np.zeros(self.observation_space.shape or (), np.float32)
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._seeds = np.zeros(num_envs, dtype=np.int64)
        self._done = np.zeros(num_envs, dtype=bool)
        self._metrics: TestbedMetrics | None = None
        self._unpublished: Callable[[], None] | None = None
        self.ledger = Ledger()
        self.steps_taken = 0
        """Intervals of all testbeds so far, lost ones included; begins of episodes are none."""
        self.last_work_s = 0.0
        """Duration of the last step without the wait for the end of the interval; includes calls between processes."""
        self.last_parts_s = dict.fromkeys(PARTS, 0.0)
        """Seconds of each of `PARTS` in the last step; of `collect` and `apply` the maximum over the testbeds."""
        self._generator = np.random.default_rng(seed)

    def reset(self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None) -> _Reset:
        """Starts a new episode on every testbed; the first call leases and starts the testbeds."""
        if seed is not None:
            self._generator = np.random.default_rng(seed if isinstance(seed, int) else [s or 0 for s in seed])
        if not self._nodes:
            self._open()
        self._done[:] = True
        self._run(None, BatchResult.empty(self.num_envs))
        return self._rows.copy(), {}

    def step(self, actions: Sequence[Any] | NDArray[Any]) -> _Step:
        """Runs one interval on every testbed: sends all controls, then waits for all windows."""
        if not self._nodes:
            raise gym.error.ResetNeeded("call reset before step")
        began_s = time.monotonic()
        result = BatchResult.empty(self.num_envs)
        with realtime_priority():
            rewards = self._run(np.asarray(actions), result)
        self.last_work_s = time.monotonic() - began_s - float(result.waited_s.max())
        self.last_parts_s |= {"collect": float(result.collect_s.max()), "apply": float(result.apply_s.max())}
        done = self._done.copy()
        faults = result.fault
        infos = {"fault": faults, "_fault": faults != ""} if (faults != "").any() else {}
        return self._rows.copy(), rewards, np.zeros_like(done), done, infos

    def close_extras(self, **kwargs: Any) -> None:
        """Returns the testbeds; `Testbeds` closes them."""
        self._publish()
        nodes, self._nodes = self._nodes, []
        if nodes and ray.is_initialized():
            for node in nodes:
                node.channel.close()
            self._leaser.release()

    def _open(self) -> None:
        leased = self._leaser.lease(self.num_envs)
        channels, places = self._leaser.channels(leased)
        self._names = list(leased)
        row_of = {name: row for row, name in enumerate(self._names)}
        self._nodes = [_Node(channel, np.array([row_of[name] for name in channel.names])) for channel in channels]
        nodes = [places[name] for name in self._names]
        self._metrics = TestbedMetrics(nodes, [group.name for group in self.problem.topology.groups])

    def _run(self, actions: NDArray[Any] | None, result: BatchResult) -> FloatArray:
        """One interval: testbeds whose episode is over begin another, the others go on; the rewards ``[num_envs]``."""
        resets = self._done.copy()
        self._draw(resets)
        values, workers = self._controls(actions)
        for node in self._nodes:
            node.send(self._orders(node, resets, values, workers))
        # The interval is running: this does not delay a control.
        self._publish()
        parts = [part for node in self._nodes for part in node.receive(result)]
        parts += self._repaired(resets & (result.fault != ""), result)
        began_s = time.monotonic()
        rewards = self._take(parts, resets, result)
        self.last_parts_s["encode"] = time.monotonic() - began_s
        return rewards

    def _controls(self, actions: NDArray[Any] | None) -> tuple[NDArray[Any], FloatArray | None]:
        """Weights or service times of all rows, and with the latter the workers that are believed."""
        seen = self._observation
        if seen is None or actions is None:
            return np.ones((self.num_envs, *self.problem.topology.shape), np.int64), None
        if seen.tau_s is None:
            return self.problem.weights(actions, seen), None
        return self.problem.service_times(actions, seen), self.problem.believed_workers

    def _orders(self, node: _Node, resets: BoolArray, values: NDArray[Any], workers: FloatArray | None) -> Orders:
        stepping = node.rows[~resets[node.rows]]
        beginning = node.rows[resets[node.rows]]
        node.order = np.concatenate([stepping, beginning])
        return Orders(
            self._interval_s, self.problem.topology, self._scenario, tuple(self._names[row] for row in stepping),
            values[stepping], workers, tuple((self._names[row], int(self._seeds[row])) for row in beginning),
        )  # fmt: skip

    def _draw(self, begins: BoolArray) -> None:
        """Seeds of the episodes that begin."""
        for row in np.flatnonzero(begins):
            self._seeds[row] = self._generator.integers(2**31)
            self.ledger.start(int(row), self._scenario.name, int(self._seeds[row]))

    def _repaired(self, failed: BoolArray, result: BatchResult) -> list[Part]:
        """Repeats the begin of these episodes until their first windows are usable. Raises TestbedError."""
        parts: list[Part] = []
        deadline_s = time.monotonic() + repair_limit_s(int(failed.sum()))
        while failed.any():
            if time.monotonic() > deadline_s:
                row = int(np.flatnonzero(failed)[0])
                limit_s = repair_limit_s(int(failed.sum()))
                raise TestbedError(f"{self._names[row]} could not be repaired for {limit_s:g} s: {result.fault[row]}")
            time.sleep(RETRY_S)
            result.fault[failed] = ""
            nobody, _ = self._controls(None)
            trying = [node.only(failed) for node in self._nodes if failed[node.rows].any()]
            for node in trying:
                node.send(self._orders(node, failed, nobody, None))
            parts += [part for node in trying for part in node.receive(result)]
            failed = failed & (result.fault != "")
        return parts

    def _take(self, parts: Sequence[Part], resets: BoolArray, result: BatchResult) -> FloatArray:
        """Windows → observations, rewards and ends of episodes."""
        usable = result.fault == ""
        rewards = np.zeros(self.num_envs)
        self._steps = np.where(resets, 0, self._steps + 1)
        self.steps_taken += int((~resets).sum())
        self._done = ~usable | (self._steps >= self._episode_steps)
        assert self._metrics is not None
        lost, late = ~usable & ~resets, result.late & ~resets
        if not parts:
            self._metrics.lose(lost, late)
            return rewards
        windows = WindowStack.spread(self.num_envs, parts)
        for row in np.flatnonzero(resets):
            self._observer.reset(int(row))
        seen = self._observer.observe(windows, windows.duration_s, windows.weight)
        self._rows = np.where(usable[:, None, None], self.problem.array(seen), self._rows)
        self._observation = seen
        values, terms = self.problem.reward(windows, seen)
        counted = usable & ~resets
        self.ledger.add(terms, counted)
        stepped = SteppedWindows(windows, seen, counted, lost, late, result.changed, terms["art"], values)
        self._unpublished = partial(self._metrics.record, stepped)
        return np.where(counted, values, rewards)

    def _publish(self) -> None:
        """Records the metrics of the last windows, once."""
        publish, self._unpublished = self._unpublished, None
        if publish is not None:
            began_s = time.monotonic()
            publish()
            self.last_parts_s["record"] = time.monotonic() - began_s


def make_environment(context: dict[str, Any]) -> LiveVectorEnv:
    """Builds the environment for RLlib's registry from `env_config`, to which RLlib adds `num_envs`."""
    config = dict(context)
    return LiveVectorEnv(config.pop("problem"), config.pop("num_envs"), **config)


Part = tuple[IntArray, WindowStack]
"""Rows of the environment, and their windows."""


@dataclass(frozen=True, eq=False)
class BatchResult:
    """What came of an interval, filled while the answers arrive. Leading axis ``[num_envs]``.

    Attributes:
        fault: why the interval does not count, empty where it does.
        late: whose answer came too late and was not used.
    """

    fault: NDArray[Any]
    late: BoolArray
    changed: BoolArray
    waited_s: FloatArray
    apply_s: FloatArray
    collect_s: FloatArray

    @classmethod
    def empty(cls, size: int) -> BatchResult:
        fault = np.full(size, "", dtype=object)
        late, changed = np.zeros((2, size), dtype=bool)
        return cls(fault, late, changed, *np.zeros((3, size)))


class _Node:
    """A channel, and which rows of the environment its testbeds are."""

    def __init__(self, channel: Channel, rows: IntArray) -> None:
        self.channel, self.rows = channel, rows
        self.order: IntArray = rows[:0]

    def only(self, chosen: BoolArray) -> _Node:
        """The same, for some of its rows."""
        return _Node(self.channel, self.rows[chosen[self.rows]])

    def send(self, orders: Orders) -> None:
        self.channel.send(orders)

    def receive(self, result: BatchResult) -> list[Part]:
        """Fills the result; the usable windows. Raises TestbedError when a conductor cannot be started."""
        answers = self.channel.receive()
        if answers.fatal:
            raise TestbedError("a testbed's conductor could not be started", evidence=answers.fatal)
        result.changed[self.order], result.waited_s[self.order] = answers.changed, answers.waited_s
        result.apply_s[self.order], result.collect_s[self.order] = answers.apply_s, answers.collect_s
        for index, fault in answers.faults.items():
            result.fault[self.order[index]] = fault
        for index in answers.late:
            result.late[self.order[index]] = True
        return [] if answers.windows is None else [(self.order[answers.with_window], answers.windows)]
