"""Park's rules: the heuristics give the study's means, and job times follow from the queues.

Seeds are fixed and the clock plays no part: a comparison with a threshold repeats exactly, its error rate is 0.
"""

from __future__ import annotations

import numpy as np
import pytest

from envs.study.park import RATES, SCORER_SIZE, STUDY_MEAN_JOB_TIME, Jobs, mean_job_times

pytestmark = pytest.mark.thorough

EPISODES = 120


@pytest.mark.parametrize("policy", ["random", "round_robin", "shortest_queue", "least_work"])
def test_heuristics_give_the_studys_mean_job_times(policy: str) -> None:
    times = mean_job_times(policy, range(EPISODES))
    mean, error = STUDY_MEAN_JOB_TIME[policy]
    own_error = times.std(ddof=1) / np.sqrt(EPISODES)
    assert abs(times.mean() - mean) < 3 * np.hypot(own_error, error)


def test_round_robin_takes_as_long_as_the_queues_say() -> None:
    """The compiled player against the queues' own recursion: done = max(arrival, done of the one before) + work."""
    jobs, free = Jobs.draw(3), np.zeros(len(RATES))
    total = 0.0
    for job, (arrival, size) in enumerate(zip(jobs.arrivals, jobs.sizes, strict=True)):
        server = job % len(RATES)
        free[server] = max(free[server], arrival) + np.floor(size / RATES[server])
        total += free[server] - arrival
    assert mean_job_times("round_robin", range(3, 4)) == pytest.approx(total / len(jobs.arrivals))


def test_an_untrained_scorer_already_knows_the_rates_and_beats_the_shortest_queue() -> None:
    scorer = np.zeros(SCORER_SIZE)
    learned, queue = (mean_job_times(p, range(40), scorer).mean() for p in ("learned", "shortest_queue"))
    assert learned < queue
