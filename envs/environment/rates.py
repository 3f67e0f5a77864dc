"""Token buckets whose rates follow lateness, per type: an experiment beside admission, which NGINX does not have.

Learned rates stand on them (docs/admission-learning.md#token-buckets).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from actuators.contract.arrays import FloatArray
from envs.simulator.window_batch import AttemptCounts

LEAST_RATE = 0.05
"""Smallest rate, of the nominal one."""


@dataclass(frozen=True)
class RateNumbers:
    """How a rate follows the late share of its type, once in each window.

    Attributes:
        late_share: above which the rate falls.
        cut: factor then; growth: factor otherwise; rise: added then, as a share of the nominal rate.
        most: bound, as a multiple of what is offered or, if that is more, of the nominal rate.
        burst_s: seconds of tokens that a bucket holds.
    """

    late_share: float
    cut: float
    rise: float = 0.0
    growth: float = 1.0
    most: float = 1.1
    burst_s: float = 0.1

    def first(self, nominal_rps: FloatArray) -> FloatArray:
        """Rates before the first window, ``[n, groups]``."""
        return self.most * nominal_rps

    def after(
        self, rates_rps: FloatArray, counts: AttemptCounts, nominal_rps: FloatArray, window_s: float
    ) -> FloatArray:
        """Rates after one more window, ``[n, groups]``."""
        stuck = (counts.finished == 0) & (counts.inside > 0)
        bad = counts.late + counts.failed
        late = np.where(counts.finished > 0, bad / np.maximum(counts.finished, 1), stuck)
        risen = self.growth * rates_rps + self.rise * nominal_rps
        wanted = np.where(late > self.late_share, self.cut * rates_rps, risen)
        most_rps = self.most * np.maximum(counts.offered / window_s, nominal_rps)
        return np.clip(wanted, LEAST_RATE * nominal_rps, most_rps)
