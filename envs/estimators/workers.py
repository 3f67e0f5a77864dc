"""Learns the workers c of a server (requests served at once) from response times against requests in flight."""

from __future__ import annotations

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.topology import Topology

CANDIDATES = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)
CAUTION = 0.6
"""Factor on a learned c when the queueing discipline is unknown: under processor sharing the learner overestimates c,
which is dangerous, while an underestimate costs little (docs/studies.md#workers-per-server)."""

_KEPT_PER_S = 0.98
_BETTER = 0.002
_LEAST_ANSWERS = 200.0


class WorkersLearner:
    """Workers per server: the candidate c whose predicted wait fits the response times best (least squares).

    For each c: response / τ ≈ a · (1 + wait_c / τ) with the wait of `expected_delay`'s rule and a free scale a,
    weights 1/(1 + n)² for n in flight, sums forgotten by 2 %/s, half pooled over the servers; it switches to a
    c whose residual is 0.2 % lower. Right for FIFO workers; elsewhere multiply by `CAUTION`.

    Args:
        start: initial c; when in doubt too low.
    """

    def __init__(self, topology: Topology, batch: tuple[int, ...] = (), start: float = 1.0) -> None:
        self._sums: FloatArray | None = None
        closest = int(np.abs(np.log(np.array(CANDIDATES) / start)).argmin())
        self._present = np.full((*batch, topology.shape[1]), closest)

    def update(self, by_in_flight: FloatArray | None, duration_s: float) -> FloatArray:
        """``[..., servers]`` after a window's `DelayWindow.by_in_flight`; None is ignored."""
        if by_in_flight is not None:
            kept = 0.0 if self._sums is None else _KEPT_PER_S**duration_s * self._sums
            self._sums = kept + by_in_flight
            self._choose(self._sums)
        workers: FloatArray = np.array(CANDIDATES)[self._present]
        return workers

    def _choose(self, sums: FloatArray) -> None:
        own = residuals(sums)
        error = 0.5 * own + 0.5 * own.mean(axis=-2, keepdims=True)
        best = error.argmin(axis=-1)
        least = np.take_along_axis(error, best[..., None], axis=-1)[..., 0]
        present = np.take_along_axis(error, self._present[..., None], axis=-1)[..., 0]
        enough = sums[..., 0].sum(axis=-1) >= _LEAST_ANSWERS
        self._present = np.where(enough & (least < (1.0 - _BETTER) * present), best, self._present)


def residuals(sums: FloatArray) -> FloatArray:
    """Weighted mean squared residual of each candidate, ``[..., servers, len(CANDIDATES)]``, of `by_in_flight` sums."""
    n = np.arange(sums.shape[-2], dtype=float)
    weight = 1.0 / (1.0 + n) ** 2
    candidates = np.array(CANDIDATES)[:, None]
    # Factor of q in 1 + wait / τ: the wait of the rule is (W/n) (n - c + 1) / c for n ≥ c, else 0.
    k = np.where(n >= candidates, (n - candidates + 1.0) / candidates, 0.0)
    count, q, qq, y, yy, qy = (sums[..., None, :, column] for column in range(6))
    xx = (weight * (count + 2.0 * k * q + k * k * qq)).sum(axis=-1)
    xy = (weight * (y + k * qy)).sum(axis=-1)
    total = (weight * count).sum(axis=-1)
    squares = (weight * yy).sum(axis=-1) - xy**2 / np.maximum(xx, 1e-12)
    mean: FloatArray = squares / np.maximum(total, 1e-12)
    return mean
