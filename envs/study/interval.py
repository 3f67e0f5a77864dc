"""Student's 95 % interval of a mean, for few seeds or systems: there, percentiles of a bootstrap are too narrow.

Paired ratios of policies have their own interval, over seeds and rounds (`tuning.judging.statistics`).
"""

from __future__ import annotations

import math

from scipy.special import stdtrit

from actuators.contract.arrays import FloatArray

_CONFIDENCE = 0.95


def student_interval(values: FloatArray) -> tuple[float, float]:
    """Low and high end around the mean of independent values ``[n]``; nan from one value, which has no spread."""
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    mean = float(values.mean())
    half = float(stdtrit(n - 1, (1 + _CONFIDENCE) / 2) * values.std(ddof=1) / math.sqrt(n))
    return mean - half, mean + half
