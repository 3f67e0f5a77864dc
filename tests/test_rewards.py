"""Rewards: the terms are what they say, a failure never pays, silence is neutral."""

from __future__ import annotations

import numpy as np
import pytest
from windows import window

from envs.rewards import reward, reward_terms

DEADLINES_S = np.array([0.1, 0.05, 0.05])


def test_terms_of_a_known_window() -> None:
    one = window(np.array([[50.0], [20.0], [10.0]]), np.array([[100], [200], [300]]))
    terms = reward_terms(one, DEADLINES_S)
    seconds = one.response_ms_sum.sum(axis=1) / 1e3
    assert terms["relative_latency"] == pytest.approx((seconds / DEADLINES_S).sum() / 1800)
    assert terms["requests"] == 1800
    assert terms["error_ratio"] == 0


@pytest.mark.parametrize("name", ["log_latency", "art"])
def test_failing_a_slow_request_never_pays(name: str) -> None:
    slow = window(900.0, 100, spread=0.1)
    failed = window(np.array([[1.0]]), 100, errors=100)
    values = [float(reward(name, reward_terms(w, DEADLINES_S))) for w in (slow, failed)]  # type: ignore[arg-type]
    assert values[1] <= values[0]


def test_faster_is_better_and_silence_is_neutral() -> None:
    values = [float(reward("log_latency", reward_terms(window(ms), DEADLINES_S))) for ms in (40.0, 20.0, 10.0)]
    assert values == sorted(values)
    assert float(reward("log_latency", reward_terms(window(10.0, 0), DEADLINES_S))) == 0.0
