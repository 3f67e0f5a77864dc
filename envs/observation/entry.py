"""What a learned admission sees of each request type: its last windows, what is in flight, and what it has set itself.

docs/admission-learning.md lists the inputs. The rows of all types look alike, so that one network serves any number of
types.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from actuators.contract.admission import Admission
from actuators.contract.arrays import FloatArray
from envs.observation.encoder import Encoder
from envs.simulator.window_batch import AttemptCounts

FRAMES = 4
"""Windows that a row tells."""
REGIME_NAMES = ("late", "slowness", "admitted", "trend", "load", "answers", "offered")
"""Features of a window over all types, which a mixture can be fitted to."""
_PER_FRAME, _CONSTANT, _SLOW, _OWN = 4, 4, 3, 1
_MOMENTARY = len(REGIME_NAMES)
ROW_SIZE = FRAMES * _PER_FRAME + _CONSTANT + _MOMENTARY + _SLOW + _OWN
_LEAST_LATENCY = 0.05
"""Of the idle one: a line that is full fails at once."""
_SLOWLY = 0.05
"""Share of the slow means that one window replaces."""


class EntryObserver:
    """Windows of `n` environments → rows ``[n, groups, row]``.

    Args:
        believed: what is believed of each environment; deadlines, importance, idle times and rates.
        encoder: a mixture over `REGIME_NAMES`, whose posterior is appended to every row.
    """

    def __init__(self, believed: Sequence[Admission], window_s: float, encoder: Encoder | None = None) -> None:
        self._window_s, self._encoder = window_s, encoder
        self._deadlines_s, self._idle_s, self.rates_rps, self._importance = (
            np.array([values(one) for one in believed])
            for values in (
                lambda a: a.deadlines_s, lambda a: a.idle_s, lambda a: a.rates_rps, lambda a: a.weights(),
            )
        )  # fmt: skip
        self._in_flight = np.array([[one.nominal] for one in believed])
        self._mix = _shares(self._importance * self.rates_rps)
        shape = self._deadlines_s.shape
        self._frames = np.tile(self._calm(shape), (1, 1, FRAMES))
        self._slow = np.zeros((*shape, _SLOW))
        self._late = np.zeros(shape[0])
        self._latency_s = self._idle_s.copy()
        self.offered_rps = self.rates_rps.copy()
        self.regime = np.zeros((shape[0], len(REGIME_NAMES)))
        self._constant = self._constants()
        self._momentary = np.zeros((*shape, _MOMENTARY))

    def observe(self, counts: AttemptCounts) -> None:
        """One more window of all environments."""
        finished, offered = counts.finished, counts.offered
        bad = counts.late + counts.failed
        stuck = (finished == 0) & (counts.inside > 0)
        late = np.where(finished > 0, bad / np.maximum(finished, 1), stuck)
        latency_s = np.maximum(counts.response_s / np.maximum(finished, 1), _LEAST_LATENCY * self._idle_s)
        self._latency_s = np.where(finished > 0, latency_s, self._latency_s)
        admitted = np.where(offered > 0, 1 - counts.refused / np.maximum(offered, 1), 1.0)
        self.offered_rps = offered / self._window_s
        slowness = np.log(0.05 + self._latency_s / self._deadlines_s)
        filled = np.log(0.05 + counts.inside / (self.rates_rps * self._deadlines_s))
        frame = np.stack([slowness, late, admitted, filled], axis=-1)
        self._frames = np.concatenate([frame, self._frames[..., :-_PER_FRAME]], axis=-1)
        slow = np.stack([np.log(self._latency_s / self._idle_s), late, 1 - admitted], axis=-1)
        self._slow += _SLOWLY * (slow - self._slow)
        self._look_over_types(counts, late, slowness, admitted)

    def rows(self, own: FloatArray) -> NDArray[np.float32]:
        """The network's input; `own` ``[n, groups]``: the logarithm of what is set beside what would be without."""
        parts = [self._frames, self._constant, self._momentary, self._slow, own[..., None]]
        if self._encoder is not None:
            posterior = self._encoder.encode(self.regime)[0]
            parts.append(np.broadcast_to(posterior[:, None], (*own.shape, posterior.shape[-1])))
        return np.concatenate(parts, axis=-1).astype(np.float32)

    def _look_over_types(
        self, counts: AttemptCounts, late: FloatArray, slowness: FloatArray, admitted: FloatArray
    ) -> None:
        together = [(self._mix * values).sum(axis=1) for values in (late, slowness, admitted)]
        trend = together[0] - self._late
        self._late = together[0]
        total_rps = self.rates_rps.sum(axis=1)
        load = np.log(0.1 + counts.inside.sum(axis=1) / self._in_flight[:, 0])
        answers = np.log(0.05 + counts.finished.sum(axis=1) / self._window_s / total_rps)
        offered = np.log(0.05 + counts.offered.sum(axis=1) / self._window_s / total_rps)
        self.regime = np.stack([*together, trend, load, answers, offered], axis=-1)
        of_type = np.log(0.05 + self.offered_rps / self.rates_rps)
        over = np.broadcast_to(self.regime[:, None, :-1], (*late.shape, len(REGIME_NAMES) - 1))
        self._momentary = np.concatenate([of_type[..., None], over], axis=-1)

    def _constants(self) -> FloatArray:
        """``[n, groups, 4]``: importance, share of the work, deadline, and value density, all relative and as logs."""
        density = np.log(self._importance / self._idle_s)
        importance = np.log(self._importance / self._importance.mean(axis=1, keepdims=True))
        work = np.log(self.rates_rps * self._idle_s / self._in_flight)
        tight = np.log(self._deadlines_s / self._idle_s) - 1
        return np.stack([importance, work, tight, density - density.mean(axis=1, keepdims=True)], axis=-1)

    def _calm(self, shape: tuple[int, ...]) -> FloatArray:
        """``[n, groups, 4]``: a window as it is believed to be without any waiting."""
        share = np.log(0.05 + self._idle_s / self._deadlines_s)
        return np.stack([share, np.zeros(shape), np.ones(shape), share], axis=-1)


def row_size(encoder: Encoder | None) -> int:
    """Numbers of a row with this mixture."""
    return ROW_SIZE + (encoder.clusters if encoder is not None else 0)


def _shares(values: FloatArray) -> FloatArray:
    shares: FloatArray = values / values.sum(axis=1, keepdims=True)
    return shares
