"""Ratios of rules under the same arrivals: means, intervals, the worst scenario; seeds that stand in no file.

Seeds are fixed and the clock plays no part: a comparison with a threshold repeats exactly, its error rate is 0.
"""

from __future__ import annotations

import math

import pytest

from actuators.contract.topology import social_network
from envs.scenarios.lookup import scenario
from envs.study.judge import Score, judge, judge_each
from envs.study.rules import RULES
from rayjobs.bench.parts.ratios import PUBLISHED_SEEDS, Judged, Ratios, evaluation_seeds

TOPOLOGY = social_network()


def score(mean_ms: float) -> Score:
    return Score(mean_ms, 2 * mean_ms, 0.5, 1.0, 0.0, 1000)


def ratios(**means: tuple[float, ...]) -> Ratios:
    base = {name: [score(10.0)] * len(row) for name, row in means.items()}
    return Ratios.of({name: [score(mean) for mean in row] for name, row in means.items()}, base)


def test_means_are_geometric_and_the_worst_scenario_is_named() -> None:
    found = ratios(S1=(8.0, 5.0), S2=(20.0, 5.0))
    assert found.geometric("mean_ms") == pytest.approx((0.8 * 0.5 * 2.0 * 0.5) ** 0.25)
    assert found.geometric("p99_ms", ("S2",)) == pytest.approx(1.0)
    assert found.worst("mean_ms") == (pytest.approx(1.0), "S2")
    assert found.best("mean_ms") == (pytest.approx(math.sqrt(0.4)), "S1")


def test_an_interval_spans_seeds_and_needs_two() -> None:
    assert ratios(S1=(9.0,)).interval("mean_ms") == ""
    # Student's t for two seeds is 12.706; the logarithms lie 0.02 around their mean.
    found = ratios(S1=(10 * math.exp(-0.12), 10 * math.exp(-0.08)))
    low, high = math.exp(-0.1 - 12.706 * 0.02), math.exp(-0.1 + 12.706 * 0.02)
    assert found.interval("mean_ms") == f"95 %: {low:.3f} to {high:.3f}"


def test_trainings_are_averaged_seed_by_seed() -> None:
    together = Ratios.mean([ratios(S1=(4.0, 9.0)), ratios(S1=(9.0, 4.0))])
    assert [cell.mean_ms for cell in together.scores["S1"]] == pytest.approx([0.6, 0.6])


def test_drawn_seeds_follow_from_the_runs_own() -> None:
    assert evaluation_seeds(1, 3) == evaluation_seeds(1, 3) != evaluation_seeds(2, 3)
    assert evaluation_seeds(1, 3)[:4] == PUBLISHED_SEEDS
    assert len(set(evaluation_seeds(1, 3))) == 7


def test_scores_per_seed_are_those_of_each_alone() -> None:
    played, rule = scenario("S2", 30.0), RULES["inverse_latency"]
    each = judge_each(rule, played, TOPOLOGY, (1, 2))
    assert each == tuple(judge(rule, played, TOPOLOGY, (seed,)) for seed in (1, 2))
    judged = Judged(TOPOLOGY, (1, 2)).over(rule, RULES["least_conn"], [played])
    assert judged.geometric("mean_ms") < 1.0
