"""Features: what they mean, what they do without traffic, and that batches equal single windows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from actuators.contract.window import DEFAULT_BOUNDS_MS
from envs.observation.features import (
    SERVER_FEATURES,
    LatencyMemory,
    group_features,
    quantile_s,
    server_features,
    tail_quantile_s,
)
from tests.support.windows import TOPOLOGY, window

DEADLINES_S = np.array([0.05, 0.02, 0.02])
INDEX = {name: i for i, name in enumerate(SERVER_FEATURES)}


@dataclass
class Stacked:
    requests: NDArray[np.int64]
    responses: NDArray[np.int64]
    response_ms_sum: NDArray[np.int64]
    latency_histogram: NDArray[np.int64]
    bounds_ms: tuple[int, ...] = DEFAULT_BOUNDS_MS


def test_shares_means_and_errors() -> None:
    requests = np.array([[100, 200, 100]] * 3)
    one = window(20.0, requests, errors=np.array([[0, 20, 0]] * 3))
    found = server_features(one, DEADLINES_S, LatencyMemory.empty(TOPOLOGY.shape))
    assert found[..., INDEX["traffic_share"]] == pytest.approx(np.array([[0.25, 0.5, 0.25]] * 3))
    assert found[..., INDEX["error_ratio"]][0] == pytest.approx([0, 20 / 220, 0]), (
        "as if 20 more had been answered well"
    )
    plain = server_features(one, DEADLINES_S, LatencyMemory.empty(TOPOLOGY.shape), version=1)
    assert plain[..., INDEX["error_ratio"]][0] == pytest.approx([0, 0.1, 0])
    expected = np.log(one.mean_response_s() / DEADLINES_S[:, None])
    assert found[..., INDEX["log_mean"]] == pytest.approx(expected)
    assert (found[..., INDEX["log_p90"]] > found[..., INDEX["log_mean"]]).all()


def test_silence_holds_the_slow_average() -> None:
    memory = LatencyMemory.empty(TOPOLOGY.shape)
    for seed in range(30):
        server_features(window(20.0, 300, seed=seed), DEADLINES_S, memory)
    before = memory.fast_s.copy()
    silent = server_features(window(20.0, 0), DEADLINES_S, memory)
    assert np.isfinite(silent).all()
    assert silent[..., INDEX["log_mean"]] == pytest.approx(np.log(0.0195 / DEADLINES_S)[:, None] * np.ones(3), abs=0.1)
    assert (memory.fast_s == before).all()


@pytest.mark.parametrize("good_ms", [20.0, 60.0, 200.0, 2000.0])
@pytest.mark.parametrize("requests", [10, 200])
def test_failing_fast_does_not_look_fast(good_ms: float, requests: int) -> None:
    memory = LatencyMemory.empty(TOPOLOGY.shape)
    latency_ms, errors = np.array([[good_ms, good_ms, 2.0]] * 3), np.array([[0, 0, requests]] * 3)
    for seed in range(5):
        server_features(window(latency_ms, requests, errors=errors, seed=seed), DEADLINES_S, memory)
    assert (memory.fast_s[:, 2] > memory.fast_s[:, 0]).all()


def test_a_batch_equals_its_windows() -> None:
    windows = [window(15.0, 150, seed=s) for s in range(4)]
    batch = Stacked(
        *(np.stack([getattr(w, name) for w in windows])
          for name in ("requests", "responses", "response_ms_sum", "latency_histogram"))
    )  # fmt: skip
    together = server_features(batch, DEADLINES_S, LatencyMemory.empty((4, *TOPOLOGY.shape)))
    for index, one in enumerate(windows):
        alone = server_features(one, DEADLINES_S, LatencyMemory.empty(TOPOLOGY.shape))
        assert np.array_equal(together[index], alone)
        assert np.array_equal(group_features(batch, 1.0)[index], group_features(one, 1.0))


@pytest.mark.parametrize("bounds_ms", [(5, 10, 25, 50, 100, 250, 500), DEFAULT_BOUNDS_MS])
def test_the_tail_of_exponential_times_is_found_between_bounds_that_are_far_apart(bounds_ms: tuple[int, ...]) -> None:
    """At 100 000 samples the 99th percentile has a standard error of 1 %; the bound is five of them."""
    times_ms = np.random.default_rng(1).exponential([[17.0], [30.0], [60.0]], (3, 100_000))
    edges = [0, *bounds_ms, 1e9]
    histogram = np.stack([np.histogram(row, edges)[0] for row in times_ms])
    found_ms = 1e3 * tail_quantile_s(histogram, bounds_ms, 0.99)
    assert found_ms == pytest.approx(np.quantile(times_ms, 0.99, axis=1), rel=0.05)
    assert tail_quantile_s(np.zeros_like(histogram), bounds_ms, 0.99).tolist() == [0.0, 0.0, 0.0]
    assert tail_quantile_s(np.zeros((2, 1), np.int64), (), 0.99).tolist() == [0.0, 0.0]


def test_quantile_of_a_known_histogram() -> None:
    histogram = np.zeros((1, len(DEFAULT_BOUNDS_MS) + 1), dtype=np.int64)
    assert quantile_s(histogram, DEFAULT_BOUNDS_MS, 0.9)[0] == 0.0
    column = DEFAULT_BOUNDS_MS.index(10)
    histogram[0, column] = 100
    assert quantile_s(histogram, DEFAULT_BOUNDS_MS, 0.5)[0] == pytest.approx(0.009)
    histogram[0, 0] = 900
    assert quantile_s(histogram, DEFAULT_BOUNDS_MS, 0.9)[0] <= 0.0081
