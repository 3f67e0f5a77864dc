"""Whether response times follow the load: the slope behind a group's verdict."""

from __future__ import annotations

import numpy as np
import pytest

from actuators.contract.arrays import FloatArray
from actuators.contract.topology import Group, Topology
from envs.calibration.verdict import BATCH_S, LEAST_BATCHES, Slope, load_slopes

TOPOLOGY = Topology((Group("app", "app", "GET", "/app", 2.0, ("10.0.0.1:80", "10.0.0.2:80")),))
BATCHES = 40


def slope(rates_rps: FloatArray, mean_s: FloatArray) -> Slope | None:
    """One window per batch, half of the requests on either server."""
    requests = np.repeat(rates_rps[:, None, None] * BATCH_S / 2, 2, axis=2)
    (found,) = load_slopes(requests, 1e3 * requests * mean_s[:, None, None], np.full(len(rates_rps), BATCH_S), TOPOLOGY)
    return found


def test_queueing_shows_as_a_slope_above_zero() -> None:
    """Response times 1 / (1 - load) around a load of one half: d log(T) / d log(load) = load / (1 - load) = 1."""
    loads = np.linspace(0.45, 0.55, BATCHES)
    found = slope(100 * loads, 0.01 / (1 - loads))
    assert found is not None
    assert abs(found.value - 1.0) < 0.02
    assert found.low > 0
    assert abs(found.variation - np.std(loads) / np.mean(loads)) < 1e-9


def test_a_slope_is_told_as_the_change_at_twice_the_load() -> None:
    """Response times exp(load / mean load) grow by the factor e, which is 172 %, not 100 %."""
    loads = np.linspace(0.5, 1.5, BATCHES)
    found = slope(100 * loads, 0.01 * np.exp(loads / np.mean(loads)))
    assert found is not None
    assert found.when_doubled() == pytest.approx((np.e - 1,) * 3, abs=1e-6)
    assert Slope(-np.log(2), -np.log(4), 0.0, 0.1).when_doubled() == pytest.approx((-0.5, -0.75, 0.0))


def test_response_times_without_queueing_have_a_slope_of_zero() -> None:
    loads = np.linspace(0.3, 0.6, BATCHES)
    scatter = 1 + 0.05 * np.tile([1, -1, -1, 1], BATCHES // 4)
    found = slope(100 * loads, 0.01 * scatter)
    assert found is not None
    assert found.low <= 0 <= found.high
    assert found.high < 0.5


def test_nothing_is_said_without_variation_or_with_few_batches() -> None:
    assert slope(np.full(BATCHES, 50.0), np.full(BATCHES, 0.01)) is None
    few = np.linspace(40, 60, LEAST_BATCHES - 1)
    assert slope(few, few / 5000) is None
