"""A residual on an estimator of service times: 0 is the estimator itself, in simulation, in a judge and as a bundle.

Seeds are fixed and the clock plays no part: a comparison with a threshold repeats exactly, its error rate is 0.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actuators.contract.control import ServiceTimes
from actuators.contract.window import Window
from actuators.errors import ConfigError
from envs.environment.actions import ActionOptions
from envs.environment.env import BalancingEnv
from envs.environment.problem import DecisionOptions, DecisionProblem
from envs.environment.vector_env import SimulatedVectorEnv
from envs.heuristics.controllers import EstimatorController
from envs.scenarios.lookup import scenario, training_mixture
from envs.simulator.testbed import SimulatedTestbed
from envs.study.judge import judge
from envs.study.rules import Learning
from rayjobs.cli.config import load_options
from rayjobs.train import TrainOptions
from tests.support.problems import TOPOLOGY, demo_scenario, observed
from tuning.judging.contenders import Arena, contender, learned_controller, parse_policies
from tuning.learning.proof import REACHES, prove_some
from tuning.learning.study import Trained, TrainingArm
from tuning.options import ModelOptions, TrainingOptions
from tuning.policy.bundle import Bundle
from tuning.policy.model import net_for

WORKERS = np.full(3, 4.0)


def problem(**action: object) -> DecisionProblem:
    chosen = DecisionOptions(action=ActionOptions.model_validate({"baseline": "idle", **action}))
    return replace(observed().problem, options=chosen, workers=WORKERS)


def windows_of(controller: EstimatorController, seed: int = 3, count: int = 12) -> list[tuple[Window, ServiceTimes]]:
    found = []
    with SimulatedTestbed(TOPOLOGY, "expected_delay") as testbed:
        testbed.reset(demo_scenario(), seed)
        testbed.apply(controller.begin(TOPOLOGY))
        for _ in range(count):
            window = testbed.advance(1.0)
            decision = controller.decide(window)
            assert isinstance(decision, ServiceTimes)
            testbed.apply(decision)
            found.append((window, decision))
    return found


@pytest.mark.parametrize("name", ["idle", "ratio"])
def test_an_untrained_policy_is_its_estimator(name: str, tmp_path: Path) -> None:
    """As a controller made from a bundle: the same service times after every window."""
    own = problem(baseline=name)
    Bundle(net_for(own, ModelOptions()), own, ModelOptions(), {}).save(tmp_path / "bundle")
    (spec,) = parse_policies([str(tmp_path / "bundle")])
    learned = contender(spec, Arena(observed().problem, "least_conn", WORKERS))
    estimator = EstimatorController(TOPOLOGY, name, WORKERS)
    assert learned.method == "expected_delay"
    first, plain = learned.begin(TOPOLOGY), estimator.begin(TOPOLOGY)
    assert isinstance(first, ServiceTimes)
    assert isinstance(plain, ServiceTimes)
    assert np.array_equal(first.tau_s, plain.tau_s)
    for window, wanted in windows_of(estimator):
        decision = learned.decide(window)
        assert isinstance(decision, ServiceTimes)
        assert np.array_equal(decision.tau_s, wanted.tau_s)
        assert np.array_equal(decision.workers, WORKERS)


def test_in_the_study_an_untrained_policy_scores_as_its_estimator() -> None:
    own = problem()
    arm = TrainingArm("nothing", own.options, "expected_delay")
    rule = Trained(arm, own, net_for(own, ModelOptions()), ()).rule
    for name in ("S3", "S9"):
        played = scenario(name, 30.0)
        assert judge(rule, played, TOPOLOGY, (5,)) == judge(Learning("idle").rule(), played, TOPOLOGY, (5,))


def test_a_positive_action_sends_more_within_the_bound() -> None:
    codec = problem(bound=0.5).action_codec
    base_s = np.full(TOPOLOGY.shape, 0.004)
    times_s = codec.service_times(np.array([9.0, -9.0, np.nan] * 3), base_s)
    assert times_s[:, 0] == pytest.approx(0.004 * np.exp(-0.5))
    assert times_s[:, 1] == pytest.approx(0.004 * np.exp(0.5))
    assert times_s[:, 2] == pytest.approx(0.004)


def env(*, paired: bool, steps: int = 6) -> SimulatedVectorEnv:
    def script(generator: np.random.Generator) -> object:
        return scenario("S3", 60.0).script(TOPOLOGY, int(generator.integers(2**31)))

    return SimulatedVectorEnv(
        problem(),
        3,
        script,
        method="expected_delay",
        episode_steps=steps,
        seed=7,
        paired=paired,  # type: ignore[arg-type]
    )


def test_a_paired_reward_is_what_the_actions_changed() -> None:
    """Nothing for a residual of 0, also after restarts; else the difference of the two rewards."""
    generator = np.random.default_rng(1)
    at_rest, paired, alone = env(paired=True), env(paired=True), env(paired=False)
    calm = env(paired=False)
    for each in (at_rest, paired, alone, calm):
        each.reset(seed=7)
    for _ in range(15):
        zeros, moves = np.zeros((3, 9)), generator.uniform(-1, 1, (3, 9))
        assert not at_rest.step(zeros)[1].any()
        own, base = alone.step(moves)[1], calm.step(zeros)[1]
        assert paired.step(moves)[1] == pytest.approx(own - base)


def test_the_batch_equals_single_testbeds() -> None:
    """The environment of one testbed, which is also the live one, and a row of the batch see and pay alike."""
    own = problem()
    batch = SimulatedVectorEnv(
        own, 1, lambda generator: demo_scenario().script(TOPOLOGY, 11), method="expected_delay", episode_steps=9
    )
    single = BalancingEnv(
        own, lambda: SimulatedTestbed(TOPOLOGY), lambda seed: Fixed(), method="expected_delay", episode_steps=9
    )
    rows, _ = batch.reset(seed=1)
    row, _ = single.reset(seed=1)
    generator = np.random.default_rng(2)
    for _ in range(8):
        action = generator.uniform(-1, 1, 9)
        rows, rewards, *_ = batch.step(action[None])
        row, reward, *_, info = single.step(action)
        assert reward == pytest.approx(float(rewards[0]))
        assert info["weights"].min() >= 1
    assert np.allclose(rows[0], row, atol=1e-5)
    single.close()


class Fixed:
    """The demo's script 11, whatever seed is asked for."""

    name = "demo"

    def script(self, topology: object, seed: int) -> object:
        return demo_scenario().script(TOPOLOGY, 11)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="set method=expected_delay"):
        TrainingOptions(decision=problem().options)
    with pytest.raises(ValueError, match=r"decision\.action\.baseline=levelled"):
        TrainingOptions(method="expected_delay")
    with pytest.raises(ValueError, match="paired and proof_episodes need a baseline"):
        TrainingOptions(paired=True, decision=DecisionOptions(action=ActionOptions(kind="increments")))
    with pytest.raises(ConfigError, match=r"^baseline idle sets service times: set method=expected_delay \(--set"):
        load_options(TrainOptions, assignments=["training.decision.action.baseline=idle"])


def test_a_learned_controller_keeps_what_it_learned_over_a_block() -> None:
    own = problem()
    controller = learned_controller(
        "x", "least_conn", Bundle(net_for(own, ModelOptions()), own, ModelOptions(), {}).policy(), own
    )
    window, decided = windows_of(EstimatorController(TOPOLOGY, "idle", WORKERS), count=1)[0]
    controller.decide(window)
    assert np.array_equal(controller.begin(TOPOLOGY).tau_s, decided.tau_s)  # type: ignore[union-attr]


@pytest.mark.parametrize("harmful", [False, True])
def test_a_residual_that_does_nothing_or_harm_proves_nothing(harmful: bool) -> None:
    """One that always favours whom it sees slowest is caught; one that does nothing gains exactly nothing."""
    own = problem()
    torch.manual_seed(1)
    net = net_for(own, ModelOptions())
    if harmful:
        torch.nn.init.normal_(net.action[-1].weight, std=2.0)  # type: ignore[arg-type]
    options = TrainingOptions(method="expected_delay", decision=own.options, proof_episodes=6, episode_steps=15)
    left, proof = prove_some(net, own, training_mixture(("S2", "S3"), 20.0), options)
    assert not proof.holds
    assert set(proof.scenarios) == {"S2", "S3"}
    assert (proof.overall.mean < -0.01) if harmful else (proof.overall.mean == 0.0)
    array = np.ones((1, 3, own.row_size), dtype=np.float32)
    assert proof.reach == REACHES[-1]
    assert not left.outputs(array).any()
    assert json.loads(json.dumps(proof.to_json()))["holds"] is False
