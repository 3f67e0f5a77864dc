"""Park's environment keeps the rules of `envs.study.park`, and shows its queues."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

import envs
from envs.registered.park import ParkEnv
from envs.study.park import JOBS, RATES, SERVERS, Jobs, mean_job_times

assert envs

ID = "DeepScheduling/Park-v0"


def made(**options: object) -> tuple[gymnasium.Env[np.ndarray, np.int64], ParkEnv]:
    env = gymnasium.make(ID, **options)
    assert isinstance(env.unwrapped, ParkEnv)
    return env, env.unwrapped


def test_the_return_is_minus_the_mean_job_time_of_the_study() -> None:
    """An untrained scorer sends each job where it drains first."""
    env, park = made()
    for seed in (3, 4):
        _, info = env.reset(options={"episode_seed": seed})
        jobs, total, over = Jobs.draw(seed), 0.0, False
        for job in range(JOBS):
            server = np.argmin(np.log1p((park.unfinished() + jobs.sizes[job]) / RATES / 100.0))
            _, reward, over, _, _ = env.step(server)
            total += float(reward)
        assert over
        assert info["episode_seed"] == seed
        assert -total == pytest.approx(mean_job_times("learned", range(seed, seed + 1))[0])


def test_the_observation_shows_queues_and_the_job() -> None:
    env, _ = made()
    env.reset(options={"episode_seed": 1})
    for _ in range(20):
        seen, _, _, _, info = env.step(np.int64(2))
    assert info["job_time"] > 0
    assert np.expm1(seen[2]) >= 10
    assert np.expm1(seen[SERVERS + 2]) > 1
    assert np.flatnonzero(seen[:SERVERS]).tolist() == [2]
    assert seen[-1] == pytest.approx(np.log(Jobs.draw(1).sizes[20] / 100.0), rel=1e-5)


def test_nothing_follows_the_last_job() -> None:
    env, _ = made()
    env.reset(seed=1)
    over = False
    for job in range(JOBS):
        _, _, over, truncated, _ = env.step(np.int64(job % SERVERS))
        assert not truncated
    assert over
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.unwrapped.step(np.int64(0))


def test_it_draws_its_queues() -> None:
    env, _ = made(render_mode="ansi")
    env.reset(seed=1)
    for _ in range(30):
        env.step(np.int64(0))
    text = str(env.render())
    assert text.splitlines()[0].startswith("server 1  ####################")
    assert len(text.splitlines()) == SERVERS
    env, _ = made(render_mode="rgb_array")
    env.reset(seed=1)
    before = np.asarray(env.render())
    env.step(np.int64(0))
    assert before.shape[2] == 3
    assert not np.array_equal(before, np.asarray(env.render()))


def test_make_vec_works_as_for_any_environment() -> None:
    env = gymnasium.make_vec(ID, num_envs=2)
    observations, _ = env.reset(seed=[1, 2])
    assert observations.shape == (2, 2 * SERVERS + 1)
