"""What env runners give: those that simulate on this machine's cores, and any number whose testbeds only wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ray.rllib.algorithms.algorithm import Algorithm
from ray.tune.registry import register_env

from envs.environment.problem import DecisionProblem
from envs.environment.vector_env import SimulatedVectorEnv
from envs.scenarios.lookup import scenario, training_mixture
from rayjobs.bench.parts.control_step import ray_memory_gib
from rayjobs.bench.parts.fake_nodes import FakeNodes
from tuning.learning.algorithm import Setting, algorithm_config
from tuning.learning.scripts import ScriptSource
from tuning.live.vector_env import make_environment
from tuning.options import AlgorithmOptions, ModelOptions, RunnerOptions

_SIMULATED, _WAITING = "deepsched-bench-simulated", "deepsched-bench-waiting"
ENVIRONMENTS, FRAGMENT = 24, 50
"""Of each env runner that simulates, and their steps in an iteration."""
_WAITED_STEPS = 8
_TINY_CPUS = 0.01


@dataclass(frozen=True)
class RunnersPace:
    """Of all env runners together.

    Attributes:
        steps_per_s: environment steps per second of whole iterations, learning included.
        sampled_per_s: the same of sampling alone, median.
        share: `sampled_per_s` over testbeds / interval; nan where nothing waits.
        start_s: from the algorithm's configuration to all env runners being ready.
        memory_gib: of this process and all of the Ray.
    """

    steps_per_s: float
    sampled_per_s: float
    share: float
    start_s: float
    memory_gib: float


def simulated_pace(problem: DecisionProblem, runners: int, iterations: int, folder: Path) -> RunnersPace:
    """PPO on simulated testbeds with that many env runners; 0 steps them in the training process.

    Args:
        folder: of the Ray.
    """
    register_env(_SIMULATED, _make)
    env_config = {"problem": problem, "next_script": ScriptSource(training_mixture(("S2",)), problem.topology)}
    return _pace(problem, _SIMULATED, env_config, runners, ENVIRONMENTS, FRAGMENT, 0.0, iterations, folder)


def waiting_pace(problem: DecisionProblem, runners: int, each: int, iterations: int, folder: Path) -> RunnersPace:
    """PPO with that many env runners of `each` waiting testbeds, at an interval of 1 s."""
    register_env(_WAITING, make_environment)
    env_config = {
        "problem": problem, "leaser": FakeNodes(each, relayed=False), "interval_s": 1.0, "episode_steps": 10_000,
        "scenario": scenario("demo", work_scale=2.0, duration_s=3600.0),
    }  # fmt: skip
    return _pace(problem, _WAITING, env_config, runners, each, _WAITED_STEPS, 1.0, iterations, folder)


def _pace(
    problem: DecisionProblem,
    environment: str,
    env_config: dict[str, Any],
    runners: int,
    environments: int,
    fragment: int,
    interval_s: float,
    iterations: int,
    folder: Path,
) -> RunnersPace:
    setting = Setting(
        environment=environment, env_config=env_config, groups=problem.topology.shape[0], num_envs=environments,
        native_vector=True, interval_s=interval_s, seed=1, action=problem.options.action,
        runners=RunnerOptions(num_env_runners=runners, num_cpus_per_env_runner=_TINY_CPUS),
    )  # fmt: skip
    batch = fragment * setting.environments
    options = AlgorithmOptions(batch_steps=batch, minibatch_steps=batch, epochs=1 if interval_s else 10)
    began_s = time.perf_counter()
    algo = algorithm_config(options, ModelOptions(), setting).build_algo()
    start_s = time.perf_counter() - began_s
    try:
        algo.train()
        whole_s = [_seconds(algo.train) for _ in range(iterations)]
        sampled_s = [_seconds(lambda: _sample(algo, fragment * environments)) for _ in range(iterations)]
        memory_gib = ray_memory_gib(folder)
    finally:
        algo.stop()
    sampled_per_s = batch / float(np.median(sampled_s))
    ideal_per_s = setting.environments / interval_s if interval_s else float("nan")
    return RunnersPace(
        batch / float(np.median(whole_s)), sampled_per_s, sampled_per_s / ideal_per_s, start_s, memory_gib
    )


def _sample(algo: Algorithm, steps: int) -> None:
    """A fragment of every env runner."""
    group = algo.env_runner_group
    assert group is not None
    if group.num_remote_env_runners() == 0:
        algo.env_runner.sample(num_timesteps=steps)
    else:
        group.foreach_env_runner(lambda runner: len(runner.sample(num_timesteps=steps)), local_env_runner=False)


def _seconds(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def _make(context: dict[str, Any]) -> SimulatedVectorEnv:
    config = dict(context)
    return SimulatedVectorEnv(config.pop("problem"), config.pop("num_envs"), config.pop("next_script"), **config)
