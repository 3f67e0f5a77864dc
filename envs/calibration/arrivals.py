"""Arrivals from windows: piecewise constant rates per group, and the distribution of the gaps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.script import ArrivalDistribution
from actuators.contract.window import Window

DISPERSIONS: dict[ArrivalDistribution, float] = {"fixed": 0.02, "normal": 0.24, "exponential": 1.0, "zipf": 28.0}
"""Squared coefficient of variation of the gaps; the count of a long window has it as variance / mean. `fixed` is not 0
because service times blur the counted answers. `zipf`: exponent 2, cut at 1000."""

_CUT, _MEAN_BELOW_CUT = 14.6, 0.925
"""1 % of squared normal deviates exceed 14.6 times their median; the mean of the others is 0.925."""
_CHANGE_SIGMAS = 4.0
_LONGEST_STEP_S = 10.0
_LEAST_COUNT = 5.0


def dispersion(counts: FloatArray, durations_s: FloatArray) -> float:
    """Variance / mean of a window's count, from differences of neighbours, so that slow or rare changes drop out.

    The expectation of half the squared difference of two Poisson counts is their mean. The few pairs far above the
    median, which surround a change of rate, are left out. 1 when fewer than five pairs have five requests or more.
    """
    even = counts * durations_s.mean() / durations_s
    pairs = even[:-1] + even[1:]
    seen = pairs >= 2 * _LEAST_COUNT
    if seen.sum() < 5:
        return 1.0
    squares = np.diff(even)[seen] ** 2 / pairs[seen]
    return float(squares[squares <= _CUT * np.median(squares)].mean() / _MEAN_BELOW_CUT)


def nearest_distribution(dispersion: float) -> ArrivalDistribution:
    """The distribution of gaps whose dispersion is nearest on a logarithmic scale."""
    return min(DISPERSIONS, key=lambda kind: abs(np.log(DISPERSIONS[kind] / max(dispersion, 1e-3))))


def rate_steps(counts: FloatArray, durations_s: FloatArray, spread: float = 1.0) -> tuple[tuple[float, float], ...]:
    """Steps (start in s, requests/s), at most 10 s long; windows whose counts differ only by chance share a step.

    Args:
        counts, durations_s: ``[windows]``, consecutive.
        spread: the counts' `dispersion`.
    """
    steps: list[tuple[float, float]] = []
    start_s = end_s = count = 0.0
    for here, duration_s in zip(counts, durations_s, strict=True):
        length_s = end_s - start_s
        if length_s > 0:
            expected = count / length_s * duration_s
            sigma = np.sqrt(max(spread, 1.0) * max(expected, 1.0) * (1 + duration_s / length_s))
            if abs(here - expected) > _CHANGE_SIGMAS * sigma or length_s + duration_s > _LONGEST_STEP_S:
                steps.append((start_s, float(count / length_s)))
                start_s, count = float(end_s), 0.0
        count, end_s = count + here, end_s + duration_s
    if end_s > start_s:
        steps.append((start_s, float(count / (end_s - start_s))))
    return tuple(steps)


def counts_of(windows: Sequence[Window]) -> tuple[FloatArray, FloatArray]:
    """ReplayCounts per window and group ``[windows, groups]``, and the windows' lengths in seconds ``[windows]``."""
    counts = np.array([window.requests.sum(axis=1) for window in windows], float)
    return counts, np.array([window.duration_s for window in windows])
