"""What one control step of a live testbed costs, part by part; for the bench `scaling`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from actuators.control import Weights
from actuators.parts import LiveOptions, start_local_testbed
from actuators.priority import going_first
from actuators.snapshots import SnapshotWriter
from actuators.topology import social_network
from envs.decision import DecisionProblem
from envs.scenarios import scenario
from rayjobs.stalls import StallWatch
from tuning.options import ModelOptions
from tuning.policy import LearnedPolicy, net_for

PARTS = ("collect", "encode", "act", "apply", "record")
SWING = 0.3
"""Added to every action, with changing sign: an untrained network would never change a weight."""


class Stopwatch:
    """Milliseconds by part and step, and when the steps worked.

    Attributes:
        spans: per step the times, (start, end) in seconds of `time.monotonic`, in which it did not only wait.
    """

    def __init__(self) -> None:
        self._taken_ms: dict[str, list[float]] = {}
        self.spans: list[tuple[tuple[float, float], ...]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Times the block as one step's part."""
        began_s = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - began_s)

    def add(self, name: str, seconds: float) -> None:
        """One step's part, timed elsewhere."""
        self._taken_ms.setdefault(name, []).append(seconds * 1e3)

    def ms(self, name: str) -> NDArray[np.float64]:
        """``[steps]`` of one part."""
        return np.array(self._taken_ms[name])

    def whole_ms(self) -> NDArray[np.float64]:
        """``[steps]``, all parts together."""
        whole: NDArray[np.float64] = np.sum([self.ms(name) for name in self._taken_ms], axis=0)
        return whole


def undisturbed(spans: Sequence[tuple[tuple[float, float], ...]], stalls: StallWatch) -> NDArray[np.bool_]:
    """``[steps]``: those in whose work no core stood still."""
    return np.array([not any(stalls.stalled(*span) for span in of_step) for of_step in spans])


def untrained_policy(problem: DecisionProblem) -> Callable[[NDArray[np.float32]], NDArray[Any]]:
    """Rows → action, ``[..., servers, row_size]`` → ``[..., groups * servers]``, another one at every call."""
    torch.set_num_threads(1)
    policy = LearnedPolicy(net_for(problem, ModelOptions()), problem)
    calls = 0

    def act(rows: NDArray[np.float32]) -> NDArray[Any]:
        nonlocal calls
        calls += 1
        action: NDArray[Any] = policy.action(rows) + SWING * (-1) ** calls
        return action

    return act


def local_steps(
    problem: DecisionProblem, work_scale: float, steps: int, interval_s: float, work_dir: Path, seed: int
) -> tuple[Stopwatch, NDArray[np.bool_]]:
    """A live testbed whose parts are objects of this process, steered for `steps` intervals: every part timed.

    Also which of the steps were `undisturbed`.

    Collecting is what passes between the interval's end and its window; encoding includes the network's input
    and the reward; acting is the network and its action as weights.
    """
    watch, act, observer = Stopwatch(), untrained_policy(problem), problem.observer()
    played = scenario("demo", work_scale=work_scale, duration_s=(steps + 20) * interval_s * 2)
    with (
        start_local_testbed(social_network(), LiveOptions(), work_dir, seed) as testbed,
        SnapshotWriter(work_dir / "snapshots.json") as writer,
        StallWatch() as stalls,
    ):
        testbed.set_method("least_conn")
        testbed.reset(played, seed)
        testbed.advance(interval_s)
        for _ in range(steps):
            with going_first():  # as a conductor does
                window = testbed.advance(interval_s)
                watch.add("collect", time.monotonic() - testbed.due_s)
                with watch.part("encode"):
                    observation = observer.observe_window(window)
                    problem.reward(window, observation)
                    rows = problem.array(observation)
                with watch.part("act"):
                    weights = Weights(testbed.topology, problem.weights(act(rows), observation))
                with watch.part("apply"):
                    testbed.apply(weights)
                with watch.part("record"):
                    snapshot = testbed.latest_snapshot()
                    assert snapshot is not None
                    writer.write(snapshot)
            watch.spans.append(((testbed.due_s, time.monotonic()),))
    return watch, undisturbed(watch.spans, stalls)
