"""What the bench `scaling` measures with: rates of parallel testbeds, the cost of a live step part by part, memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from actuators.contract.control import Weights
from actuators.contract.testbed import Testbed
from actuators.contract.topology import social_network
from actuators.processes.system import realtime_priority
from actuators.statistics.recording import SnapshotWriter
from actuators.testbed.options import LiveOptions
from actuators.testbed.parts import start_local_testbed
from envs.environment.phase import ObserveOptions, fit_problem, watch
from envs.environment.problem import DecisionOptions, DecisionProblem
from envs.observation.encoder import EncoderOptions
from envs.scenarios.lookup import scenario
from envs.simulator.testbed import SimulatedTestbed
from rayjobs.bench.parts.fake_nodes import FakeNodes
from rayjobs.bench.parts.stalls import StallWatch
from rayjobs.bench.parts.waiting_testbed import make_waiting
from tuning.live.testbeds import Testbeds
from tuning.live.vector_env import Leasing, LiveVectorEnv
from tuning.options import ModelOptions
from tuning.policy.learned import LearnedPolicy
from tuning.policy.model import net_for

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
            with realtime_priority():  # as a conductor does
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


EPISODE_STEPS = 10_000


def small_problem(seed: int) -> DecisionProblem:
    """A fitted problem of the social network, from simulated windows."""
    with SimulatedTestbed(social_network()) as testbed:
        windows = watch(testbed, scenario("demo"), "least_conn", ObserveOptions(), seed)
    options = EncoderOptions(clusters=(3,), restarts=1)
    return fit_problem(windows, social_network(), DecisionOptions(), options, seed).problem


@dataclass(frozen=True)
class Pace:
    """How fast a number of testbeds gave windows to an untrained policy that steers them.

    Attributes:
        ideal_per_s: testbeds / interval.
        faults: intervals that were lost.
        whole_ms: milliseconds of every step that were not the wait for the interval's end. ``[steps]``, without
            those that waited for an episode to begin anew after a fault.
        parts_ms: `act` and `LiveVectorEnv`'s parts of them, ``[steps]`` each; the rest are Ray's calls between
            processes.
        undisturbed: which of them the host of this machine did not stop meanwhile.
        cpu_ms: CPU time that this process took for the same steps, Ray's threads included, ``[steps]``.
    """

    steps_per_s: float
    ideal_per_s: float
    faults: int
    whole_ms: NDArray[np.float64]
    parts_ms: dict[str, NDArray[np.float64]]
    undisturbed: NDArray[np.bool_]
    cpu_ms: NDArray[np.float64]

    @property
    def own_ms(self) -> NDArray[np.float64]:
        """``[steps]``, all parts together."""
        own: NDArray[np.float64] = np.sum(list(self.parts_ms.values()), axis=0)
        return own

    @property
    def share(self) -> float:
        return self.steps_per_s / self.ideal_per_s


def waiting_pace(
    problem: DecisionProblem, testbeds: int, steps: int, interval_s: float, folder: Path
) -> tuple[Pace, float]:
    """Testbeds that only wait, driven by one process; also the memory in GiB of the Ray in `folder` meanwhile."""
    makers: dict[str, Callable[[int], Testbed]] = {f"waiting-{number}": make_waiting for number in range(testbeds)}
    with Testbeds(makers, "least_conn") as opened:
        pace = _pace(problem, opened.leaser, testbeds, steps, interval_s)
        return pace, ray_memory_gib(folder)


def fake_pace(problem: DecisionProblem, testbeds: int, per_node: int, steps: int, interval_s: float) -> Pace:
    """Fake conductors behind real relays, `per_node` each, driven by one process."""
    return _pace(problem, FakeNodes(per_node), testbeds, steps, interval_s)


def live_pace(
    problem: DecisionProblem, testbeds: int, rate_scale: float, steps: int, interval_s: float, work_dir: Path
) -> Pace:
    """Live loopback testbeds, driven by one process; `rate_scale` stretches the demo's work (and lowers its rate)."""
    options = LiveOptions()
    with Testbeds.live(testbeds, social_network(), options, work_dir, 1, "least_conn") as opened:
        return _pace(problem, opened.leaser, testbeds, steps, interval_s, work_scale=rate_scale)


def ray_memory_gib(folder: Path) -> float:
    """Memory of this process and of every process of the Ray in that folder; shared pages are counted once."""
    total_kib = 0
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            about = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            if str(folder).encode() in about or process.name == str(os.getpid()):
                total_kib += _pss_kib(process / "smaps_rollup")
        except OSError:
            continue  # it ended while we looked, or belongs to someone else
    return total_kib / 2**20


def _pace(
    problem: DecisionProblem, leaser: Leasing, count: int, steps: int, interval_s: float, work_scale: float = 2.0
) -> Pace:
    played = scenario("demo", work_scale=work_scale, duration_s=(steps + 20) * interval_s * 2)
    env = LiveVectorEnv(problem, count, leaser, played, interval_s=interval_s, episode_steps=EPISODE_STEPS)
    act, watch, whole_ms, cpu_ms, faults = untrained_policy(problem), Stopwatch(), [], [], 0
    try:
        rows, _ = env.reset(seed=1)
        rows, _, _, truncated, _ = env.step(act(rows))
        with StallWatch() as stalls:
            first_s = time.monotonic()
            for _ in range(steps):
                begins_anew = truncated.any()
                with realtime_priority():  # as `tuning.learning.env_runner` does
                    began_s, cpu_s = time.monotonic(), time.process_time()
                    actions = act(rows)
                    acted_s = time.monotonic() - began_s
                    rows, _, _, truncated, _ = env.step(actions)
                    ended_s = time.monotonic()
                faults += int(truncated.sum())
                if not begins_anew:
                    whole_s = acted_s + env.last_work_s
                    whole_ms.append(whole_s * 1e3)
                    cpu_ms.append((time.process_time() - cpu_s) * 1e3)
                    watch.spans.append(((began_s, began_s + whole_s), (ended_s - whole_s, ended_s)))
                    for part, seconds in {"act": acted_s, **env.last_parts_s}.items():
                        watch.add(part, seconds)
            elapsed_s = time.monotonic() - first_s
    finally:
        env.close()
    parts_ms = {part: watch.ms(part) for part in PARTS}
    return Pace(
        count * steps / elapsed_s, count / interval_s, faults, np.array(whole_ms), parts_ms,
        undisturbed(watch.spans, stalls), np.array(cpu_ms),
    )  # fmt: skip


def _pss_kib(path: Path) -> int:
    for line in path.read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0
