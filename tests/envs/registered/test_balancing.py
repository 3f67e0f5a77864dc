"""The registered environments: the checks of gymnasium and SB3, seeds, ends of episodes, what is drawn."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3

import envs
from actuators.errors import ConfigError
from envs.calibration.result import Calibration
from envs.environment.env import BalancingEnv
from envs.environment.picture import COLOURS, MARGIN, ROW, TITLE, WIDTH
from envs.environment.vector_env import SimulatedVectorEnv
from tests.support.paths import ROOT

assert envs

SOCIAL, SCENARIO = "DeepScheduling/Social-v0", "DeepScheduling/Scenario-v0"
CALIBRATED, PARK = "DeepScheduling/Calibrated-v0", "DeepScheduling/Park-v0"


def balancing(env: gymnasium.Env[Any, Any]) -> BalancingEnv:
    found = env.unwrapped
    assert isinstance(found, BalancingEnv)
    return found


def vector(id_: str = SCENARIO, count: int = 3, **options: Any) -> SimulatedVectorEnv:
    made = gymnasium.make_vec(id_, num_envs=count, **options)
    assert isinstance(made, SimulatedVectorEnv)
    return made


def check_without_a_warning(env: gymnasium.Env[Any, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
        check_env_of_sb3(env)


@pytest.mark.parametrize("render_mode", [None, "ansi", "rgb_array"])
@pytest.mark.parametrize("id_", [SOCIAL, SCENARIO, PARK])
def test_both_checkers_accept_every_id_without_a_warning(id_: str, render_mode: str | None) -> None:
    with gymnasium.make(id_, render_mode=render_mode) as env:
        check_without_a_warning(env)


def test_both_checkers_accept_a_calibration_whose_deadlines_hold() -> None:
    path = ROOT / "tests" / "data" / "runs" / "calibration.json"
    with gymnasium.make(CALIBRATED, calibration=str(path)) as env:
        check_without_a_warning(env)
        recorded = Calibration.load(path)
        assert balancing(env).problem.deadlines_s == pytest.approx(recorded.deadlines_s)
        assert balancing(env).problem.topology == recorded.topology


def test_observations_are_flat_and_by_an_option_a_row_per_server() -> None:
    flat, rows = gymnasium.make(SCENARIO), gymnasium.make(SCENARIO, flat=False)
    first, _ = flat.reset(seed=3)
    second, _ = rows.reset(seed=3)
    assert first.ndim == 1
    assert second.shape == (3, first.size // 3)
    assert np.array_equal(first, second.ravel())


@pytest.mark.parametrize("id_", [SOCIAL, SCENARIO, PARK])
def test_equal_seeds_give_equal_episodes(id_: str) -> None:
    def played() -> list[Any]:
        env = gymnasium.make(id_, seed=5)
        env.action_space.seed(0)
        seen = [env.reset()[0]]
        for _ in range(4):
            seen.extend(env.step(env.action_space.sample())[:2])
        return seen

    for one, other in zip(played(), played(), strict=True):
        assert np.array_equal(one, other)


def test_an_action_of_zeros_is_equal_weights_and_info_tells_the_terms() -> None:
    env = gymnasium.make(SCENARIO)
    env.reset(seed=1)
    _, reward, _, _, info = env.step(np.zeros(9, dtype=np.float32))
    assert len(np.unique(info["weights"])) == 1
    assert reward == pytest.approx(-np.log(info["terms"]["relative_latency"] + 0.01))


def test_an_episode_seed_is_refused_by_a_vector_environment() -> None:
    """It would play other episodes than the held-out ones that somebody asked for."""
    env = gymnasium.make_vec("DeepScheduling/Social-v0", num_envs=2)
    with pytest.raises(ConfigError, match="an episode_seed is of one episode"):
        env.reset(options={"episode_seed": 2**31 + 4})
    env.close()


def test_an_episode_seed_can_be_chosen() -> None:
    env = gymnasium.make(SCENARIO)
    chosen = [env.reset(seed=seed, options={"episode_seed": 2**31 + 4}) for seed in (1, 2)]
    assert [info["episode_seed"] for _, info in chosen] == [2**31 + 4] * 2
    assert np.array_equal(chosen[0][0], chosen[1][0])


def test_the_decision_is_an_option() -> None:
    plain = balancing(gymnasium.make(SCENARIO, decision={"observation": "features", "reward": "art"}))
    assert plain.problem.options.reward == "art"
    assert plain.problem.options.action.kind == "residual"
    with gymnasium.make(
        SCENARIO, method="expected_delay", decision={"action": {"baseline": "idle"}}
    ) as delay:  # fmt: skip
        delay.reset(seed=1)
        assert np.isfinite(delay.step(delay.action_space.sample())[1])


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"scenario": "S33"}, ConfigError, "unknown scenario 'S33'"),
        ({"render_mode": "human"}, ConfigError, "use ansi or rgb_array"),
        ({"method": "late_binding"}, ConfigError, "no method 'late_binding' here"),
        ({"episode_steps": 0}, ConfigError, "both must be positive"),
        ({"method": "expected_delay"}, ValueError, r"set decision\.action\.baseline=levelled"),
        ({"decision": {"reward": "profit"}}, ValueError, "reward"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        gymnasium.make(SCENARIO, **options)


def test_a_calibration_must_be_given() -> None:
    with pytest.raises(ConfigError, match=r"give the calibration\.json"):
        gymnasium.make(CALIBRATED)


def test_make_vec_gives_the_native_environment() -> None:
    env = vector(SOCIAL, 4)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    observations, _ = env.reset(seed=1)
    assert env.observation_space.contains(observations)
    assert observations.shape == (4, env.single_observation_space.shape[0])
    assert env.spec is not None
    assert env.spec.id == SOCIAL


def test_the_vector_environment_plays_what_single_ones_play() -> None:
    """Under the same script an environment of the batch sees and earns what a single one does."""
    many, one = vector(count=1, seed=7, episode_steps=4), gymnasium.make(SCENARIO, episode_steps=4)
    drawn = int(np.random.default_rng(7).integers(2**31))
    observations, _ = many.reset()
    alone, _ = one.reset(options={"episode_seed": drawn})
    assert np.array_equal(observations[0], alone)
    for _ in range(4):
        action = many.action_space.sample()
        observations, rewards, _, over, info = many.step(action)
        alone, reward, _, truncated, told = one.step(action[0])
        assert np.array_equal(observations[0], alone)
        assert rewards[0] == pytest.approx(reward)
        assert info["terms"]["art"][0] == pytest.approx(told["terms"]["art"])
    assert over[0]
    assert truncated


def test_single_and_vector_environments_believe_in_the_same_workers(tmp_path: Path) -> None:
    """Also where the drawn system has others: servers of the ensemble serve 3 requests at once, of the best fit 4."""
    known, path = Calibration.load(ROOT / "tests" / "data" / "runs" / "calibration.json"), tmp_path / "calibration.json"
    assert known.parameters.workers == 4
    known.changed({"ensemble": tuple(member.changed({"workers": 3}) for member in known.ensemble)}).save(path)
    options: dict[str, Any] = {
        "calibration": str(path), "method": "expected_delay", "decision": {"action": {"baseline": "idle"}},
        "episode_steps": 6,
    }  # fmt: skip
    many, one = vector(CALIBRATED, 1, seed=7, **options), gymnasium.make(CALIBRATED, **options)
    drawn = int(np.random.default_rng(7).integers(2**31))
    observations, _ = many.reset()
    alone, _ = one.reset(options={"episode_seed": drawn})
    assert np.allclose(observations[0], alone, atol=1e-5)
    many.action_space.seed(1)
    for _ in range(6):
        action = many.action_space.sample()
        observations, rewards, *_ = many.step(action)
        alone, reward, *_ = one.step(action[0])
        assert np.allclose(observations[0], alone, atol=1e-5)
        assert rewards[0] == pytest.approx(reward)


def test_the_workers_of_a_recorded_nginx_share_what_expected_delay_counts(tmp_path: Path) -> None:
    known, path = Calibration.load(ROOT / "tests" / "data" / "runs" / "calibration.json"), tmp_path / "calibration.json"
    means_ms = []
    for alone in (1, 4):
        known.changed({"load_balancers": alone}).save(path)
        env = gymnasium.make(
            CALIBRATED, calibration=str(path), method="expected_delay", decision={"action": {"baseline": "idle"}},
            episode_steps=5, randomise=False,
        )  # fmt: skip
        env.reset(options={"episode_seed": 7})
        assert env.action_space.shape is not None
        told = [env.step(np.zeros(env.action_space.shape, np.float32))[4]["terms"] for _ in range(5)]
        means_ms.append([terms["art"] for terms in told])
    assert means_ms[0] == means_ms[1]


def test_options_of_vector_environments_are_refused_by_single_ones() -> None:
    for options in ({"autoreset_mode": "SameStep"}, {"threads": 4}):
        with pytest.raises(ConfigError, match="are of make_vec"):
            gymnasium.make(SCENARIO, scenario="S3", **options)


def test_the_seed_of_the_observation_fixes_clusters_and_not_deadlines() -> None:
    first, second = (balancing(gymnasium.make(SCENARIO, scenario="S3", observe_seed=seed)).problem for seed in (1, 2))
    assert first.deadlines_s.tolist() == second.deadlines_s.tolist()
    assert not np.array_equal(first.encoder.scale, second.encoder.scale)


def test_both_ways_to_begin_the_next_episode() -> None:
    """SAME_STEP returns at the end of an episode what NEXT_STEP returns one step later."""
    same, following = (vector(seed=3, episode_steps=2, autoreset_mode=mode) for mode in ("SameStep", "NextStep"))
    assert same.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    actions = [same.action_space.sample() for _ in range(3)]
    first, _ = same.reset()
    assert np.array_equal(first, following.reset()[0])
    for action in actions[:2]:
        after, rewards, _, over, info = same.step(action)
        last, as_much, _, as_well, _ = following.step(action)
        assert np.array_equal(rewards, as_much)
        assert np.array_equal(over, as_well)
    assert over.all()
    assert info["_final_obs"].all()
    assert np.array_equal(np.stack(info["final_obs"]), last)
    assert set(info["final_info"]) == {"terms", "_terms"}
    begun, no_reward, _, over, info = following.step(actions[2])
    assert np.array_equal(after, begun)
    assert not no_reward.any()
    assert not over.any()
    assert not info["_terms"].any()
    # The episode after that is the same one too.
    assert np.array_equal(same.step(actions[2])[0], following.step(actions[2])[0])


def test_no_other_way_is_offered() -> None:
    with pytest.raises(ConfigError, match="use NEXT_STEP or SAME_STEP"):
        vector(autoreset_mode="Disabled")


def test_a_text_shows_shares_queues_and_latency() -> None:
    env = gymnasium.make(SCENARIO, method="round_robin", render_mode="ansi")
    env.reset(seed=1)
    weights = np.full((3, 3), -1.0, dtype=np.float32)
    weights[:, 0] = 1.0
    env.step(weights.ravel())
    text = env.render()
    assert isinstance(text, str)
    lines = text.splitlines()
    assert [line.split(":")[0] for line in lines if "deadline" in line] == ["compose", "home_read", "user_read"]
    rows = [line for line in lines if line.lstrip().startswith("server")]
    shares = [int(row.split("%")[0].split()[-1]) for row in rows]
    assert len(rows) == 9
    assert shares[0] > 80, text
    assert all("in flight" in row and " ms" in row for row in rows)


def picture(env: gymnasium.Env[Any, Any]) -> NDArray[np.uint8]:
    found = env.render()
    assert isinstance(found, np.ndarray)
    return found


def test_a_picture_changes_with_what_is_seen() -> None:
    env = gymnasium.make(SCENARIO, method="round_robin", render_mode="rgb_array")
    env.reset(seed=1)
    env.step(np.zeros(9, dtype=np.float32))
    even = picture(env)
    weights = np.full((3, 3), -1.0, dtype=np.float32)
    weights[:, 0] = 1.0
    env.step(weights.ravel())
    uneven = picture(env)
    assert even.shape == uneven.shape
    assert even.shape[2] == 3
    assert even.dtype == np.uint8
    assert not np.array_equal(even, uneven)
    # The second row of the first panel is the second server, which gets a third and then nearly nothing.
    row = slice(MARGIN + TITLE + ROW + 4, MARGIN + TITLE + 2 * ROW - 4)
    lengths = [(seen[row, : WIDTH // 3] == COLOURS[0]).all(axis=2).any(axis=0).sum() for seen in (even, uneven)]
    assert lengths[0] > 5 * lengths[1] > 0


def test_the_vector_environment_draws_every_testbed() -> None:
    env = vector(render_mode="ansi")
    env.reset(seed=1)
    texts = env.render()
    assert texts is not None
    assert len(set(texts)) == 3


def test_nothing_is_drawn_before_the_first_reset() -> None:
    env = gymnasium.make(SCENARIO, render_mode="ansi")
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.unwrapped.render()
