"""What follows from a prediction, and how a prediction is made from simulated measurements."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actuators.contract.histogram import midpoints_s
from envs.calibration.result import MEAN_BAR, P99_BAR, Calibration
from envs.study.judge import Totals
from envs.study.promise import METRICS, Comparison, Interval, LoadPromise, Plan, conclude, figures, promise, widened
from envs.study.promise_options import PromiseOptions

NONE = Interval(value=0.0, low=0.0, high=0.0)


def predicted(mean: Interval | None, p99: Interval | None) -> LoadPromise:
    ratios = {"mean_ms": mean, "p99_ms": p99, "late_per_hour": None}
    rows = tuple(Comparison(metric=metric, today=NONE, new=NONE, ratio=ratios[metric]) for metric in METRICS)
    return LoadPromise(load=1.0, all=rows, groups={})


def interval(low: float, value: float, high: float) -> Interval:
    return Interval(value=value, low=low, high=high)


@pytest.mark.parametrize(
    ("mean", "p99", "conclusion", "said"),
    [
        (interval(0.72, 0.75, 0.78), interval(0.5, 0.6, 0.7), "change", "falls by 22% to 28%"),
        (interval(0.90, 0.98, 1.02), interval(0.9, 1.0, 1.1), "stay", "no gain of at least 3%"),
        (interval(0.96, 0.98, 0.99), interval(0.9, 1.0, 1.1), "stay", "no gain of at least 3%"),
        (interval(0.80, 0.85, 0.90), interval(1.05, 1.2, 1.3), "stay", "99th percentile would rise"),
        (interval(0.70, 0.85, 0.95), interval(0.5, 0.6, 0.7), "watch_longer", "anything from 0.70 to 0.95"),
        (None, None, "watch_longer", "No request was answered"),
    ],
    ids=["gain", "none", "too small", "harms the tail", "too wide", "no answers"],
)
def test_what_follows_from_a_prediction(
    mean: Interval | None, p99: Interval | None, conclusion: str, said: str
) -> None:
    found, (reason,) = conclude(predicted(mean, p99), 600.0)
    assert found == conclusion
    assert said in reason


def test_nothing_is_promised_of_a_simulator_that_was_compared_with_nothing() -> None:
    gain = predicted(interval(0.72, 0.75, 0.78), interval(0.5, 0.6, 0.7))
    known = Calibration.load(Path("tests/data/runs/calibration.json"))
    compared, blind = (
        promise("expected_delay", (gain,), Plan(each, each.topology, PromiseOptions(), seed=1))
        for each in (known, known.changed({"held_out": ()}))
    )
    assert compared.conclusion == "change"
    assert compared.errors["mean_ms"] < MEAN_BAR
    assert blind.conclusion == "watch_longer"
    assert "Too few held-out requests" in blind.reasons[0]
    assert blind.errors == {"mean_ms": MEAN_BAR, "p99_ms": P99_BAR, "late_per_hour": P99_BAR}


def test_an_interval_that_ends_at_nothing_is_widened_upwards() -> None:
    found = widened(np.array([0.0, 0.0, *[0.5] * 38]), 0.2)
    assert (found.value, found.low) == (0.5, 0.0)
    assert found.high > 0.6


def test_figures_of_two_measurements_by_hand() -> None:
    """One group of 4 requests, of which one is late and one failed; one without answers."""
    bins = midpoints_s()
    fast, slow = int(np.searchsorted(bins, 0.01)), int(np.searchsorted(bins, 1.0))
    counts = np.zeros((1, 2, len(bins)))
    counts[0, 0, fast], counts[0, 0, slow] = 3, 1
    totals = Totals(counts=counts, seconds=np.array([[1.03, 0.0]]), failed=np.array([[1.0, 0.0]]))
    found = figures(totals, np.array([0.5, 0.5]), measure_s=60.0)
    assert found["mean_ms"][0, :2] == pytest.approx([257.5, 257.5])
    assert np.isnan(found["mean_ms"][0, 2])
    assert found["late_per_hour"][0].tolist() == [120.0, 120.0, 0.0]
    assert found["p99_ms"][0, 0] == pytest.approx(1000.0, rel=0.1)
