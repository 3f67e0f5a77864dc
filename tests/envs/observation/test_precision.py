"""The stopping rule of a watch: intervals of the ratio estimator on windows whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from actuators.contract.topology import Group, Topology
from actuators.contract.window import DEFAULT_BOUNDS_MS, Fault, Window
from envs.observation.precision import WatchOptions, expected_s, is_enough, precision, ratio_half_width

TOPOLOGY = Topology((Group("a.b", "a.b", "GET", "/", 2.0, ("one:1", "two:2", "spare:3")),))
OPTIONS = WatchOptions(half_width=0.05, least_s=100.0, most_s=1000.0)


def window(start_s: float, requests: list[int], response_ms: list[float], *faults: Fault) -> Window:
    empty = np.zeros(TOPOLOGY.shape, np.int64)
    return Window(
        TOPOLOGY, start_s, start_s + 1.0, np.array([requests]), empty, empty, np.zeros((*TOPOLOGY.shape, 5), np.int64),
        np.array([response_ms]).astype(np.int64), DEFAULT_BOUNDS_MS,
        np.zeros((*TOPOLOGY.shape, len(DEFAULT_BOUNDS_MS) + 1), np.int64), empty, empty.astype(bool), faults=faults,
    )  # fmt: skip


def watched(seconds: int, seed: int = 1, rate: float = 20.0) -> list[Window]:
    """Exponential response times of 100 and 40 ms; the third server gets nothing."""
    generator = np.random.default_rng(seed)
    found = []
    for second in range(seconds):
        counts = [*generator.poisson(rate, 2).tolist(), 0]
        times = [generator.exponential(mean, n).sum() for n, mean in zip(counts, (100.0, 40.0, 1.0), strict=True)]
        found.append(window(float(second), counts, times))
    return found


def test_95_percent_of_the_intervals_hold_the_truth() -> None:
    inside = 0
    for seed in range(200):
        known = precision(watched(120, seed))
        inside += int((abs(known.mean_ms[0, :2] / [100.0, 40.0] - 1) <= known.half_width[0, :2]).sum())
    assert 0.92 * 400 <= inside <= 0.98 * 400


def test_a_server_without_requests_is_not_waited_for_and_a_silent_system_is_never_known() -> None:
    known = precision(watched(200))
    assert known.counted.tolist() == [[True, True, False]]
    assert np.isinf(known.half_width[0, 2])
    assert np.isfinite(known.widest)
    silent = precision([window(float(s), [0, 0, 0], [0, 0, 0]) for s in range(50)])
    assert np.isinf(silent.widest)
    assert not is_enough(silent, OPTIONS)


def test_a_window_with_a_fault_does_not_count() -> None:
    windows = watched(100)
    spoiled = [*windows, window(100.0, [10**6, 10**6, 10**6], [1e9, 1e9, 1e9], Fault("restart", "it was"))]
    assert precision(spoiled).seconds == 100.0
    assert precision(spoiled).widest == precision(windows).widest


def test_the_watch_ends_when_all_is_known_but_not_before_its_least_time() -> None:
    short = WatchOptions(half_width=0.5, least_s=100.0, most_s=1000.0)
    assert not is_enough(precision(watched(60)), short)
    assert is_enough(precision(watched(101)), short)
    assert not is_enough(precision(watched(101)), WatchOptions(half_width=0.001, least_s=100.0, most_s=1000.0))


def test_the_expected_time_is_about_what_it_takes() -> None:
    some = precision(watched(100))
    expected = expected_s(some, OPTIONS)
    needed = next(s for s in range(100, 1000, 20) if precision(watched(s)).widest <= OPTIONS.half_width)
    assert expected == pytest.approx(needed, rel=0.5)
    assert expected_s(precision(watched(100, rate=0.05)), OPTIONS) == OPTIONS.most_s


def test_neighbours_that_depend_on_each_other_widen_the_interval() -> None:
    """A disturbance of 20 s raises the mean of 20 windows together: batches see that, windows alone would not."""
    generator = np.random.default_rng(3)
    level = np.repeat(generator.choice([60.0, 140.0], 60), 20)
    windows = []
    for second, mean in enumerate(level):
        counts = [20, 20, 0]
        windows.append(window(float(second), counts, [mean * 20, 40.0 * 20, 0]))
    alone = ratio_half_width(
        np.array([w.requests for w in windows], float), np.array([w.response_ms_sum for w in windows], float)
    )
    assert precision(windows).half_width[0, 0] > 3 * alone[0, 0]
