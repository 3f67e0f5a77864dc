"""What collecting costs with the array runner and with RLlib's own, by turns in one process, on fake testbeds."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.tune.registry import register_env

from envs.environment.problem import DecisionProblem
from envs.scenarios.lookup import scenario
from rayjobs.bench.parts.fake_nodes import FakeNodes
from tuning.learning.algorithm import Setting, algorithm_config
from tuning.live.vector_env import make_environment
from tuning.options import AlgorithmOptions, ModelOptions

_ENVIRONMENT, _STEPS = "deepsched-bench-runners", 4


@dataclass(frozen=True)
class RunnerCost:
    """Of one interval of all testbeds, medians over turns: CPU time of the process, and wall time.

    The first interval of a turn is over when the turn begins, in which the other runner worked: both get the same.
    """

    cpu_ms: float
    wall_ms: float


def runner_costs(
    problem: DecisionProblem, testbeds: int, per_node: int, turns: int, interval_s: float
) -> tuple[RunnerCost, RunnerCost]:
    """The array runner's and RLlib's."""
    torch.set_num_threads(1)
    register_env(_ENVIRONMENT, make_environment)
    algos = [_algorithm(problem, testbeds, per_node, interval_s, array_runner) for array_runner in (True, False)]
    taken: list[list[tuple[float, float]]] = [[], []]
    try:
        for algo in algos:
            algo.env_runner.sample(num_timesteps=testbeds)
        for _ in range(turns):
            for algo, own in zip(algos, taken, strict=True):
                began_s, cpu_s = time.perf_counter(), time.process_time()
                algo.env_runner.sample(num_timesteps=_STEPS * testbeds)
                own.append((time.process_time() - cpu_s, time.perf_counter() - began_s))
    finally:
        for algo in algos:
            algo.stop()
    medians = [np.median(own, axis=0) * 1e3 / _STEPS for own in taken]
    array, default = (RunnerCost(float(cpu_ms), float(wall_ms)) for cpu_ms, wall_ms in medians)
    return array, default


def _algorithm(
    problem: DecisionProblem, testbeds: int, per_node: int, interval_s: float, array_runner: bool
) -> Algorithm:
    played = scenario("demo", work_scale=2.0, duration_s=3600.0)
    env_config = {
        "problem": problem, "leaser": FakeNodes(per_node), "scenario": played, "interval_s": interval_s,
        "episode_steps": 10_000,
    }  # fmt: skip
    setting = Setting(
        environment=_ENVIRONMENT, env_config=env_config, groups=problem.topology.shape[0], num_envs=testbeds,
        native_vector=True, interval_s=interval_s, seed=1, action=problem.options.action,
    )  # fmt: skip
    batch = _STEPS * testbeds
    options = AlgorithmOptions(batch_steps=batch, minibatch_steps=batch, epochs=1, array_runner=array_runner)
    return algorithm_config(options, ModelOptions(), setting).build_algo()
