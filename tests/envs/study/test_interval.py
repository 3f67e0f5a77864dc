"""Student's interval of a mean: as wide as the few values that it rests on require."""

from __future__ import annotations

import math

import numpy as np
import pytest

from envs.study.interval import student_interval


def test_the_interval_is_students() -> None:
    """Student's t of three degrees of freedom is 3.182."""
    values = np.array([0.2, 0.4, 0.6, 0.8])
    half = 3.182 * np.sqrt(0.2 / 3) / 2
    assert student_interval(values) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-3)
    assert student_interval(-values)[1] == pytest.approx(-0.5 + half, abs=1e-3)


def test_one_value_has_no_interval_and_equal_ones_have_no_width() -> None:
    assert all(math.isnan(end) for end in student_interval(np.array([0.5])))
    assert student_interval(np.full(4, 0.25)) == (0.25, 0.25)
