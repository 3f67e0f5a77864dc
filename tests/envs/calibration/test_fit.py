"""The search of a fit."""

from __future__ import annotations

import pytest

from envs.calibration.fit import neighbours
from envs.calibration.result import Arrivals, Parameters


def test_a_move_back_to_no_overhead_leaves_no_remainder() -> None:
    """0.1 + 0.2 - 0.3 is 5.6e-17 in floating point, which is no overhead that parameters may have."""
    at = Parameters(service_ms=((1.2,),), workers=2, service_cv=1.0, overhead_ms=0.1 + 0.2)
    places = neighbours(at, 1.0, 1.2, any_workers=True)
    assert min(place.overhead_ms for place in places) == 0.0
    for place in places:
        Parameters(service_ms=at.service_ms, **place._asdict())


def test_a_mean_rate_is_that_of_the_time_and_not_of_the_steps() -> None:
    arrivals = Arrivals(distribution="exponential", dispersion=1.0, steps=((0.0, 50.0), (57.0, 500.0)))
    assert arrivals.mean_rps(60.0) == pytest.approx((57 * 50 + 3 * 500) / 60)
    assert Arrivals(distribution="exponential", dispersion=1.0, steps=((0.0, 50.0),)).mean_rps(0.0) == 50.0
