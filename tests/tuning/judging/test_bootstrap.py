"""Intervals over seeds and rounds cover the truth as often as they say, whatever the seeds add.

Seeds are fixed and the clock plays no part: a comparison with a threshold repeats exactly, its error rate is 0.
"""

from __future__ import annotations

import numpy as np
import pytest

from tuning.judging.statistics import interval, spread_parts


def coverage(seeds: int, rounds: int, seed_spread: float, repeats: int = 200) -> float:
    """How often the interval of a mean of log-normal rounds covers its true value."""
    rng = np.random.default_rng(5)
    parts = spread_parts(tuple(number for number in range(seeds) for _ in range(rounds)), 1)
    hits = 0
    for _ in range(repeats):
        own = np.repeat(rng.normal(size=seeds), rounds)
        values = np.exp(0.05 * (seed_spread * own + rng.normal(size=seeds * rounds)))
        draws = [part.draws @ values / part.draws.sum(axis=1) for part in parts]
        low, high = interval(float(values.mean()), draws, parts)
        assert low is not None
        assert high is not None
        hits += low <= 1.0 <= high
    return hits / repeats


@pytest.mark.parametrize(
    ("seeds", "rounds", "seed_spread"), [(1, 8, 0.0), (3, 4, 0.0), (3, 4, 1.0), (4, 1, 1.0), (2, 4, 1.0)]
)
def test_intervals_cover_the_truth(seeds: int, rounds: int, seed_spread: float) -> None:
    assert coverage(seeds, rounds, seed_spread) >= 0.87


def test_rounds_that_share_a_seed_count_for_less_than_as_many_seeds() -> None:
    values = np.repeat(np.exp([0.1, -0.1, 0.05, -0.05]), 4)

    def width(run_seeds: tuple[int, ...]) -> float:
        parts = spread_parts(run_seeds, 1)
        draws = [part.draws @ values / part.draws.sum(axis=1) for part in parts]
        low, high = interval(float(values.mean()), draws, parts)
        assert low
        assert high
        return high / low

    assert width(tuple(np.repeat(range(4), 4))) > 1.5 * (width((0,) * 16) - 1) + 1


def test_one_round_has_no_interval_and_one_round_per_seed_has_one() -> None:
    assert spread_parts((1,), 1) == []
    assert [part.freedom for part in spread_parts((1, 2, 3), 1)] == [2]
