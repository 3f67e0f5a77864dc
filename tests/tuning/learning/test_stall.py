"""Slow env runners get the time that their steps may take, and a training that no step reaches ends in one line."""

from __future__ import annotations

import pytest
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.tune.registry import register_env

from actuators.errors import TestbedError
from envs.environment.actions import ActionOptions
from envs.environment.vector_env import SimulatedVectorEnv
from envs.scenarios.lookup import training_mixture
from tests.support.problems import problem
from tuning.learning import stall
from tuning.learning.algorithm import Setting, algorithm_config
from tuning.learning.scripts import ScriptSource
from tuning.options import AlgorithmOptions, ModelOptions, RunnerOptions

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray")]


def config(name: str, simulated_s: float = 1.0, seed: int = 1, env_runners: int = 1) -> AlgorithmConfig:
    source = ScriptSource(training_mixture(("S2",), duration_s=12.0), problem().topology)
    env_config = {"problem": problem(), "next_script": source, "episode_steps": 10, "interval_s": simulated_s}
    register_env("stall", lambda context: SimulatedVectorEnv(**context))
    algorithm = AlgorithmOptions.model_validate({"name": name, "batch_steps": 96, "minibatch_steps": 48})
    runners = RunnerOptions(num_env_runners=env_runners, num_cpus_per_env_runner=0.5)
    setting = Setting(
        "stall", env_config, 3, 8, True, 0.0, seed, ActionOptions(), runners=runners, simulated_s=simulated_s
    )
    return algorithm_config(algorithm, ModelOptions(), setting)


def test_longer_intervals_and_batches_have_a_longer_timeout() -> None:
    """A runner that simulates 12 steps of 8 testbeds, ten times slower than any that was measured, is not late."""
    second, minute = (float(config("ppo", simulated_s).sample_timeout_s) for simulated_s in (1.0, 60.0))
    assert second > 60
    assert minute > 12 * 8 * 60.0 * 0.01 * 10
    assert minute > 10 * second


def test_env_runners_of_neighbouring_runs_have_different_seeds() -> None:
    def seeds(run: int) -> set[int]:
        first = config("ppo", seed=run, env_runners=3).seed
        return {first + index for index in range(1, 4)}

    assert len(set().union(*map(seeds, range(50)))) == 3 * 50
    assert seeds(1) == seeds(1)
    assert [config("ppo", seed=run, env_runners=0).seed for run in (1, 2)] == [1, 2]


@pytest.mark.parametrize("name", ["ppo", pytest.param("sac", marks=pytest.mark.slow)])
def test_a_training_that_no_step_reaches_ends(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stall, "STALL_SLACK_S", 0.0)
    # No env runner is as fast, so that RLlib drops what it sends.
    algo = config(name).env_runners(sample_timeout_s=1e-9).build_algo()
    try:
        with pytest.raises(TestbedError, match=r"^no step arrived from the env runners for \d+ s \(training\.runners"):
            algo.train()
    finally:
        algo.stop()
