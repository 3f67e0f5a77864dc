"""Park's rules: the heuristics give the study's means, and the gym environment plays by the same rules."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs.study.park import SCORER_SIZE, STUDY_MEAN_JOB_TIME, Jobs, ParkEnv, ParkOptions, mean_job_times

EPISODES = 120


@pytest.mark.parametrize("policy", ["random", "round_robin", "shortest_queue", "least_work"])
def test_heuristics_give_the_studys_mean_job_times(policy: str) -> None:
    times = mean_job_times(policy, range(EPISODES))
    mean, error = STUDY_MEAN_JOB_TIME[policy]
    own_error = times.std(ddof=1) / np.sqrt(EPISODES)
    assert abs(times.mean() - mean) < 3 * np.hypot(own_error, error)


def test_the_environment_passes_gymnasiums_check() -> None:
    check_env(ParkEnv(ParkOptions(jobs=20)), skip_render_check=True)


def test_the_environments_return_is_the_sum_of_the_job_times() -> None:
    """Round robin through the environment and through the compiled player, on the same jobs."""
    env = ParkEnv()
    _, info = env.reset(seed=3)
    total, over = 0.0, False
    for job in range(env.options.jobs):
        _, reward, over, _, _ = env.step(job % env.options.servers)
        total += reward
    assert over
    (mean,) = mean_job_times("round_robin", range(info["seed"], info["seed"] + 1))
    assert total == pytest.approx(-mean * env.options.jobs / 1000)


def test_the_observation_is_the_unscaled_load() -> None:
    env = ParkEnv(ParkOptions(jobs=3))
    _, info = env.reset(seed=1)
    jobs = Jobs.draw(env.options, info["seed"])
    seen, *_ = env.step(0)
    rate, now = env.options.rates[0], jobs.arrivals[1]
    done = jobs.arrivals[0] + np.floor(jobs.sizes[0] / rate)
    assert seen[0] == pytest.approx(max(done - now, 0) * rate, rel=1e-5)
    assert seen[-1] == jobs.sizes[1]
    assert (seen[1:-1] == 0).all()


def test_an_untrained_scorer_already_knows_the_rates_and_beats_the_shortest_queue() -> None:
    scorer = np.zeros(SCORER_SIZE)
    learned, queue = (mean_job_times(p, range(40), None, scorer).mean() for p in ("learned", "shortest_queue"))
    assert learned < queue
