"""Rewards: the terms are what they say, a failure never pays, silence is neutral."""

from __future__ import annotations

import numpy as np
import pytest

from envs.environment.rewards import KEPT_EPISODES, Ledger, RewardName, rank_term, reward, reward_terms
from tests.support.windows import window

DEADLINES_S = np.array([0.1, 0.05, 0.05])


def test_terms_of_a_known_window() -> None:
    one = window(np.array([[50.0], [20.0], [10.0]]), np.array([[100], [200], [300]]))
    terms = reward_terms(one, DEADLINES_S)
    seconds = one.response_ms_sum.sum(axis=1) / 1e3
    assert terms["relative_latency"] == pytest.approx((seconds / DEADLINES_S).sum() / 1800)
    assert terms["requests"] == 1800
    assert terms["error_ratio"] == 0


@pytest.mark.parametrize("name", ["log_latency", "art", "p99"])
def test_failing_a_slow_request_never_pays(name: RewardName) -> None:
    slow = window(600.0, 100, spread=0.1)
    failed = window(np.array([[1.0]]), 100, errors=100)
    values = [float(reward({name: 1.0}, reward_terms(w, DEADLINES_S))) for w in (slow, failed)]
    assert values[1] <= values[0]


def test_faster_is_better_and_silence_is_neutral() -> None:
    values = [float(reward({"log_latency": 1.0}, reward_terms(window(ms), DEADLINES_S))) for ms in (40.0, 20.0, 10.0)]
    assert values == sorted(values)
    assert float(reward({"log_latency": 1.0}, reward_terms(window(10.0, 0), DEADLINES_S))) == 0.0


def test_an_error_costs_as_much_as_the_slowest_answer() -> None:
    """With answers of 8 s about, failing must not be the cheap way out of them."""
    answers = window(8000.0, 50, spread=0.01)
    failing = window(8000.0, 100, spread=0.01, errors=50)
    one, other = (reward_terms(w, DEADLINES_S) for w in (answers, failing))
    for name in ("relative_latency", "relative_p99", "art"):
        assert other[name] >= one[name] * 0.99


def test_a_mix_is_the_weighted_sum() -> None:
    terms = reward_terms(window(20.0), DEADLINES_S)
    parts = [float(reward({name: 1.0}, terms)) for name in ("log_latency", "art", "p99")]  # type: ignore[dict-item]
    mixed = reward({"log_latency": 1.0, "art": 0.5, "p99": 2.0}, terms)
    assert float(mixed) == pytest.approx(parts[0] + 0.5 * parts[1] + 2 * parts[2])


def test_the_rank_term_prefers_fast_clusters_and_never_failures() -> None:
    ranks = np.array([1.0, 0.0, 0.5])
    fast, slow = np.array([[0.0, 1.0, 0.0]] * 3), np.array([[1.0, 0.0, 0.0]] * 3)
    none, half = np.array(0.0), np.array(0.5)
    assert rank_term(fast, ranks, none) < rank_term(slow, ranks, none) == 1.0
    assert rank_term(fast, ranks, half) == 0.5


def test_a_ledger_without_a_reader_stays_bounded() -> None:
    ledger = Ledger()
    for seed in range(KEPT_EPISODES + 10):
        ledger.start(0, "S1", seed)
    kept = ledger.take_episodes()
    assert [kept[0].seed, kept[-1].seed, len(kept)] == [10, KEPT_EPISODES + 9, KEPT_EPISODES]
    assert ledger.take_episodes() == []
