"""Every algorithm trains on our environments and exports a network that acts; the array runner changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from actuators.contract.topology import social_network
from actuators.errors import CapacityError, ConfigError
from envs.environment.actions import ActionOptions
from envs.environment.problem import DecisionOptions, DecisionProblem
from envs.scenarios.catalogue import Mixture
from envs.scenarios.lookup import scenario, training_mixture
from envs.study.judge import judge
from envs.study.rules import RULES
from tests.support.problems import observed
from tuning.learning.algorithm import Setting, algorithm_config
from tuning.learning.recordings import from_simulation, from_windows, write_transitions
from tuning.learning.scripts import ScriptSource
from tuning.learning.study import TrainingArm, train
from tuning.learning.trainer import Trainer
from tuning.options import OFFLINE, AlgorithmOptions, HeldOutOptions, ModelOptions, RunnerOptions, TrainingOptions
from tuning.policy.bundle import Bundle, load_bundle
from tuning.policy.network import best_action

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray")]


def problem_with(**action: object) -> DecisionProblem:
    return replace(observed().problem, options=DecisionOptions(action=ActionOptions(**action)))  # type: ignore[arg-type]


def mixture() -> Mixture:
    return training_mixture(("S2",), duration_s=12.0)


def options(name: str, steps: int, **more: object) -> TrainingOptions:
    algorithm = AlgorithmOptions.model_validate(
        {"name": name, "batch_steps": 96, "minibatch_steps": 48, "replay_steps": 2000, "recorded_steps": 200, **more}
    )
    held_out = HeldOutOptions(every_steps=0)
    return TrainingOptions(steps=steps, environments=8, episode_steps=10, algorithm=algorithm, held_out=held_out)


def trained(problem: DecisionProblem, chosen: TrainingOptions, folder: Path, seed: int = 1) -> Trainer:
    trainer = Trainer(problem, chosen, folder, seed)
    trainer.train_simulated(mixture())
    return trainer


@pytest.mark.parametrize(
    ("name", "action", "steps"),
    [
        ("ppo", {"kind": "ratios"}, 192),
        pytest.param("appo", {"kind": "continuous"}, 192, marks=pytest.mark.slow),
        ("sac", {"kind": "increments"}, 160),
        pytest.param("dqn", {"kind": "ratios", "joint": True}, 160, marks=pytest.mark.slow),
    ],
)
def test_algorithms_train_and_their_bundles_act(
    name: str, action: dict[str, object], steps: int, tmp_path: Path
) -> None:
    problem = problem_with(**action)
    trainer = trained(problem, options(name, steps, updates_per_step=0.02, learning_starts_steps=100), tmp_path)
    assert trainer.curve[-1].step >= steps
    assert any(np.isfinite(row.episode_return) for row in trainer.curve)
    Bundle(trainer.net(), problem, trainer.options.model, {}).save(tmp_path / "bundle")
    policy, observer = load_bundle(tmp_path / "bundle").policy(), problem.observer()
    controls = {policy.act(observer.observe_window(window)) for window in observed().windows.exploring[:10]}
    assert controls


@pytest.mark.slow
def test_offline_training_learns_what_was_recorded(tmp_path: Path) -> None:
    """BC on records of the observed windows and of a simulated baseline comes near to the baseline's actions."""
    problem, chosen = problem_with(kind="continuous"), options("bc", 96 * 60, learning_rate=3e-3)
    source = ScriptSource(mixture(), problem.topology)
    records = [
        *from_windows(observed().windows.exploring, problem, "seen"),
        *from_simulation(problem, source, chosen, 1),
    ]
    assert write_transitions(iter(records), tmp_path / "records") == len(records) > 200
    algorithm = chosen.algorithm.model_copy(update={"transitions": tmp_path / "records"})
    trainer = trained(problem, chosen.model_copy(update={"algorithm": algorithm}), tmp_path)
    rows = np.array([one.observation for one in records])
    wanted = np.array([one.action for one in records])
    done = best_action(trainer.net(), trainer.net().outputs(rows))
    assert ((done - wanted) ** 2).mean() < 0.7 * (wanted**2).mean()


@pytest.mark.parametrize(
    "name", ["bc", pytest.param("marwil", marks=pytest.mark.slow), pytest.param("cql", marks=pytest.mark.slow)]
)
def test_offline_training_keeps_the_network_that_held_out_episodes_chose(name: str, tmp_path: Path) -> None:
    problem, chosen = problem_with(kind="continuous"), options(name, 96 * 20, imitated_updates=5, discount=0.5)
    source = ScriptSource(mixture(), problem.topology)
    write_transitions(from_simulation(problem, source, chosen, 1), tmp_path / "records")
    algorithm = chosen.algorithm.model_copy(update={"transitions": tmp_path / "records"})
    held_out = HeldOutOptions(every_steps=960, episodes=1)
    trainer = trained(problem, chosen.model_copy(update={"algorithm": algorithm, "held_out": held_out}), tmp_path)
    assert any(np.isfinite(row.held_out) for row in trainer.curve)
    assert all(np.isfinite(array).all() for array in trainer.net().arrays().values())


@pytest.mark.parametrize("name", OFFLINE)
def test_offline_algorithms_fit_the_usual_length_of_a_training(name: str) -> None:
    usual = TrainingOptions(algorithm=AlgorithmOptions.model_validate({"name": name}))
    assert usual.steps / usual.algorithm.batch_steps > 2 * usual.algorithm.imitated_updates


def test_the_array_runner_learns_exactly_what_the_default_one_does(tmp_path: Path) -> None:
    """Equal seeds: the same steps, losses, returns and networks, so collecting by arrays is no other algorithm."""
    curves, nets = [], []
    for array_runner in (True, False):
        folder = tmp_path / str(array_runner)
        folder.mkdir()
        trainer = trained(observed().problem, options("ppo", 192, array_runner=array_runner), folder)
        curves.append([(r.step, r.episode_return, r.policy_loss, r.value_loss) for r in trainer.curve])
        nets.append(trainer.net().state_dict())
    assert np.allclose(curves[0], curves[1], rtol=1e-4, atol=1e-5, equal_nan=True)
    for name, tensor in nets[0].items():
        assert tensor.allclose(nets[1][name], atol=1e-4), name


@pytest.mark.slow
def test_a_stopped_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    chosen = options("ppo", 192).model_copy(update={"checkpoint_steps": 96})
    first = trained(observed().problem, chosen, tmp_path)
    longer = chosen.model_copy(update={"steps": 384})
    second = trained(observed().problem, longer, tmp_path)
    assert [row.step for row in second.curve] == [96, 192, 288, 384]
    assert second.curve[:2] == first.curve
    seeds = [line for line in (tmp_path / "episodes.jsonl").read_text().splitlines() if '"seed"' in line]
    assert len(seeds) == len(set(seeds))


def test_early_stopping_keeps_the_best_network(tmp_path: Path) -> None:
    """With a ruinous step size nothing beats the start, so training stops early and the start is kept."""
    held_out = HeldOutOptions(every_steps=96, patience=2, episodes=4)
    chosen = options("ppo", 960, learning_rate=0.5).model_copy(update={"held_out": held_out})
    trainer = trained(observed().problem, chosen, tmp_path)
    assert trainer.curve[-1].step < 960
    looks = [row.held_out for row in trainer.curve if not np.isnan(row.held_out)]
    assert len(looks) >= 2
    last_layer = trainer.net().action[-1]
    assert all(bool((parameter == 0).all()) for parameter in last_layer.parameters())


@pytest.mark.slow
def test_a_policy_trained_with_three_servers_serves_five_and_twelve(tmp_path: Path) -> None:
    """Not worse than the baseline there, on the same arrivals."""
    arm = TrainingArm(
        "small", DecisionOptions(action=ActionOptions(floor=1, dead_band=0.0)), "least_conn", ("S2", "S3"), 3600
    )
    small = train(arm, observed().problem.topology, 1, tmp_path)
    for servers in (5, 12):
        topology = social_network(tuple(f"server-{number}:80" for number in range(servers)))
        learned, baseline = (
            judge(rule, scenario("S2", 60.0), topology, (101,))
            for rule in (small.rule_on(topology), RULES["inverse_latency"])
        )
        ratio = learned.over(baseline)
        assert ratio.mean_ms < 1.02
        assert ratio.index < 1.03


def test_a_batch_that_the_environments_cannot_collect_is_refused(tmp_path: Path) -> None:
    chosen = options("ppo", 96).model_copy(update={"environments": 1000})
    with pytest.raises(ConfigError, match="1000 environments cannot collect a batch of 96 steps"):
        trained(observed().problem, chosen, tmp_path)


@pytest.mark.parametrize(
    ("name", "action", "words"),
    [
        ("dqn", {}, "dqn needs joint ratio actions"),
        ("sac", {"kind": "ratios"}, "sac cannot choose among ratios"),
        ("ppo", {"kind": "ratios", "joint": True}, "does not take joint ratios"),
        ("bc", {}, "needs recorded transitions"),
    ],
)
def test_a_wrong_match_is_refused_at_once(name: str, action: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        Trainer(problem_with(**action), options(name, 96), tmp_path, 1)


@pytest.mark.slow
def test_remote_env_runners_and_a_learner_train_the_same_network(tmp_path: Path) -> None:
    runners = RunnerOptions(num_env_runners=2, num_cpus_per_env_runner=0.5, num_learners=1)
    chosen = options("ppo", 192).model_copy(update={"runners": runners})
    trainer = Trainer(problem_with(kind="continuous"), chosen, tmp_path, 1)
    before = {name: value.clone() for name, value in trainer.net().state_dict().items()}
    trainer.train_simulated(mixture())
    assert trainer.curve[-1].step >= 192
    assert any(not value.equal(before[name]) for name, value in trainer.net().state_dict().items())
    episodes = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    assert {episode["worker"] for episode in episodes} == {1, 2}
    # They play different scripts.
    assert len({episode["seed"] for episode in episodes}) == len(episodes)


def test_more_processes_than_fit_are_refused_before_the_start(tmp_path: Path) -> None:
    chosen = options("ppo", 192).model_copy(update={"runners": RunnerOptions(num_env_runners=64)})
    with pytest.raises(CapacityError, match=r"need 64 CPUs, the cluster has 3 \(training\.runners\)"):
        trained(problem_with(kind="continuous"), chosen, tmp_path)


def test_the_batch_is_divided_among_env_runners() -> None:
    def config(**runners: object) -> AlgorithmConfig:
        setting = Setting(
            "none", {}, 3, 8, True, 0.0, 1, ActionOptions(), runners=RunnerOptions.model_validate(runners)
        )
        return algorithm_config(AlgorithmOptions(batch_steps=96), ModelOptions(), setting)

    found = config(num_env_runners=2, num_cpus_per_env_runner=0.5, num_learners=1, num_gpus_per_learner=1)
    assert found.num_env_runners == 2
    assert found.num_cpus_per_env_runner == 0.5
    assert found.num_learners == 1
    assert found.num_gpus_per_learner == 1
    assert found.rollout_fragment_length == 6
    assert config().rollout_fragment_length == 12
    with pytest.raises(ConfigError, match="72 environments cannot collect a batch of 96"):
        algorithm_config(
            AlgorithmOptions(batch_steps=96), ModelOptions(),
            Setting("none", {}, 3, 8, True, 0.0, 1, ActionOptions(), runners=RunnerOptions(num_env_runners=9)),
        )  # fmt: skip
