"""The environments: gymnasium's own check, episodes, faults, and that the batched one equals single ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from actuators.contract.control import BalancingMethod, Control, Weights
from actuators.contract.script import Scenario, Script
from actuators.contract.testbed import Applied
from actuators.contract.window import Fault, Window
from actuators.errors import ActuationError, TestbedError
from envs.environment.actions import ActionOptions
from envs.environment.env import BalancingEnv
from envs.environment.problem import DecisionOptions, DecisionProblem
from envs.environment.vector_env import SimulatedVectorEnv
from envs.simulator.testbed import SimulatedTestbed
from tests.support.problems import TOPOLOGY, demo_scenario, problem


class Faulty(SimulatedTestbed):
    """A simulated testbed whose n-th window or n-th control goes wrong."""

    bad_window = bad_control = -1
    windows = controls = 0

    def advance(self, interval_s: float) -> Window:
        window = super().advance(interval_s)
        self.windows += 1
        if self.windows - 1 == self.bad_window:
            return replace(window, faults=(Fault("restart", "nginx restarted"),))
        return window

    def apply(self, control: Control) -> Applied:
        self.controls += 1
        if self.controls - 1 == self.bad_control:
            raise ActuationError("nginx refused", where="test")
        return super().apply(control)


def make(testbed: SimulatedTestbed | None = None, steps: int = 5) -> BalancingEnv:
    return BalancingEnv(
        problem(), lambda: testbed or SimulatedTestbed(TOPOLOGY), lambda seed: demo_scenario(), episode_steps=steps
    )


@pytest.fixture
def env() -> Iterator[BalancingEnv]:
    made = make()
    yield made
    made.close()


class Refusing(SimulatedTestbed):
    """Refuses its method, or to begin, as often as asked."""

    refusals = resets = 0
    chosen: tuple[BalancingMethod, ...] = ()

    def set_method(self, method: BalancingMethod) -> None:
        if self.refusals:
            self.refusals -= 1
            raise ActuationError("nginx refused", where="test")
        super().set_method(method)
        self.chosen += (method,)

    def reset(self, scenario: Scenario, seed: int) -> None:
        if self.resets:
            self.resets -= 1
            raise ActuationError("nginx refused", where="test")
        super().reset(scenario, seed)


def test_a_method_that_was_refused_is_set_before_an_episode_is_played() -> None:
    testbeds = [Refusing(TOPOLOGY, "round_robin") for _ in range(2)]
    testbeds[0].refusals, left = 1, iter(testbeds)
    env = BalancingEnv(problem(), lambda: next(left), lambda seed: demo_scenario(), method="least_conn")
    with pytest.raises(ActuationError):
        env.reset()
    with pytest.raises(TestbedError, match="is closed"):
        testbeds[0].advance(1.0)
    env.reset()
    assert [testbed.chosen for testbed in testbeds] == [(), ("least_conn",)]


@pytest.mark.parametrize("refused", [2, 1000])
def test_an_episode_that_cannot_begin_is_tried_again(refused: int) -> None:
    testbed = Refusing(TOPOLOGY)
    testbed.resets = refused
    env = make(testbed)
    if refused > 100:
        with pytest.raises(TestbedError, match=r"5 attempts: nginx refused"):
            env.reset()
    else:
        env.reset()


def test_gymnasium_accepts_it(env: BalancingEnv) -> None:
    check_env(env, skip_render_check=True)


def test_an_episode_is_truncated_after_its_steps_and_rewards_are_explained(env: BalancingEnv) -> None:
    array, info = env.reset(seed=3)
    assert env.observation_space.contains(array)
    assert info["episode_seed"] >= 0
    for step in range(5):
        array, reward, terminated, truncated, info = env.step(np.zeros(9, dtype=np.float32))
        assert not terminated
        assert truncated == (step == 4)
        assert reward == pytest.approx(-np.log(info["terms"]["relative_latency"] + 0.01))
        assert set(info["terms"]) == {
            "relative_latency", "relative_p99", "art", "error_ratio", "requests", "cluster_rank",
        }  # fmt: skip
    assert env.observation_space.contains(array)


def test_equal_seeds_give_equal_episodes(env: BalancingEnv) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 9)).astype(np.float32)
    runs = []
    for _ in range(2):
        env.reset(seed=7)
        runs.append([env.step(action) for action in actions])
    for one, other in zip(*runs, strict=True):
        assert np.array_equal(one[0], other[0])
        assert one[1] == other[1]


def test_a_faulty_window_truncates_and_is_no_number() -> None:
    testbed = Faulty(TOPOLOGY)
    testbed.bad_window = 2
    env = make(testbed)
    env.reset(seed=1)
    assert not env.step(np.zeros(9, dtype=np.float32))[3]
    _, reward, terminated, truncated, info = env.step(np.zeros(9, dtype=np.float32))
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert "restart" in info["fault"]


def test_an_episode_whose_first_window_is_faulty_begins_anew() -> None:
    testbed, sound = Faulty(TOPOLOGY), make()
    testbed.bad_window = 0
    env = make(testbed)
    array, info = env.reset(seed=1)
    assert "fault" not in info
    assert testbed.windows == 2
    assert np.array_equal(array, sound.reset(seed=1)[0])
    assert not env.step(np.zeros(9, dtype=np.float32))[3]
    assert [episode.seed for episode in env.ledger.take_episodes()] == [info["episode_seed"]]


def test_an_episode_that_never_begins_is_an_error() -> None:
    class Broken(SimulatedTestbed):
        def advance(self, interval_s: float) -> Window:
            return replace(super().advance(interval_s), faults=(Fault("restart", "nginx restarted"),))

    with pytest.raises(TestbedError, match="no episode began in 5 attempts: restart: nginx restarted"):
        make(Broken(TOPOLOGY)).reset(seed=1)


def test_a_control_that_is_refused_truncates() -> None:
    testbed = Faulty(TOPOLOGY)
    testbed.bad_control = 1
    env = make(testbed)
    env.reset(seed=1)
    env.step(np.ones(9, dtype=np.float32))
    _, reward, _, truncated, info = env.step(-np.ones(9, dtype=np.float32))
    assert (reward, truncated) == (0.0, True)
    assert "nginx refused" in info["fault"]


def script_source(generator: np.random.Generator) -> Script:
    return demo_scenario().script(TOPOLOGY, int(generator.integers(2**31)))


def test_vector_env_resets_a_finished_row_in_the_next_step() -> None:
    env = SimulatedVectorEnv(problem(), 3, script_source, episode_steps=2)
    arrays, _ = env.reset(seed=5)
    assert env.observation_space.contains(arrays)
    actions = np.zeros((3, 9), dtype=np.float32)
    assert not env.step(actions)[3].any()
    assert env.step(actions)[3].all()
    arrays, rewards, terminated, truncated, _ = env.step(actions)
    assert (rewards == 0).all()
    assert not terminated.any()
    assert not truncated.any()
    assert env.observation_space.contains(arrays)
    assert (env.step(actions)[1] != 0).all()


VARIANTS = {
    "residual": DecisionOptions(),
    "fisher, 3 frames, increments": DecisionOptions(
        observation="fisher", frames=3, action=ActionOptions(kind="increments", dead_band=0.0)
    ),
    "label, ratios": DecisionOptions(observation="label", reward="p99", action=ActionOptions(kind="ratios")),
    "posterior, joint ratios": DecisionOptions(
        observation="posterior", reward="cluster_rank", action=ActionOptions(kind="ratios", joint=True)
    ),
    "features, 2 frames, continuous": DecisionOptions(
        observation="features", frames=2, reward_mix={"log_latency": 1.0, "art": 0.5},
        action=ActionOptions(kind="continuous"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_a_sound_environment(name: str) -> None:
    chosen = replace(problem(), options=VARIANTS[name])
    env = BalancingEnv(chosen, lambda: SimulatedTestbed(TOPOLOGY), lambda seed: demo_scenario(), episode_steps=5)
    check_env(env, skip_render_check=True)
    env.close()


@pytest.mark.parametrize("name", VARIANTS)
def test_rows_of_a_vector_env_equal_single_testbeds(name: str) -> None:
    """Training sees what a single testbed would show, number for number, over the end of an episode too."""
    chosen = replace(problem(), options=VARIANTS[name])
    scripts = np.random.default_rng(5)
    seeds = [scripts.integers(2**31, size=3) for _ in range(2)]
    env = SimulatedVectorEnv(chosen, 3, script_source, episode_steps=3)
    arrays, _ = env.reset(seed=5)
    env.action_space.seed(1)
    for episode in range(2):
        actions = [env.action_space.sample() for _ in range(3)]
        steps = [env.step(action) for action in actions]
        for row, seed in enumerate(seeds[episode]):
            _compare_with_a_testbed(chosen, int(seed), row, arrays, actions, steps)
        # The step after the last one starts the next episode.
        arrays = env.step(env.action_space.sample())[0]
    assert env.ledger.take_means()["requests"] > 0
    assert [episode.seed for episode in env.ledger.take_episodes()][:6] == [*seeds[0], *seeds[1]]


def _compare_with_a_testbed(
    chosen: DecisionProblem, seed: int, row: int, arrays: np.ndarray, actions: list[np.ndarray], steps: list[tuple]
) -> None:
    with SimulatedTestbed(TOPOLOGY) as testbed:
        testbed.reset(demo_scenario(), seed)
        observer = chosen.observer()
        observation = observer.observe_window(testbed.advance(1.0))
        assert np.array_equal(chosen.array(observation), arrays[row])
        for action, step in zip(actions, steps, strict=True):
            testbed.apply(Weights(TOPOLOGY, chosen.weights(action[row], observation)))
            window = testbed.advance(1.0)
            observation = observer.observe_window(window)
            assert np.array_equal(chosen.array(observation), step[0][row])
            assert float(chosen.reward(window, observation)[0]) == step[1][row]
