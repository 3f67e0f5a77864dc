"""What a learned part of late binding sees of each request type: lateness, the line of held requests, load, and what it
has moved itself.

docs/late-binding-learning.md lists the inputs. The rows of all types look alike, so that one network serves any number
of types.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray, IntArray
from actuators.contract.histogram import midpoints_s
from envs.observation.encoder import Encoder
from envs.simulator.window_batch import WindowBatch

FRAMES = 4
"""Windows that a row tells."""
REGIME_NAMES = ("late", "slowness", "held", "oldest", "failed", "load", "trend")
"""Features of a window over all types, which a mixture can be fitted to."""
MOVES = 4
"""Numbers of a type that are moved: `envs.environment.holding.LearnedHolding`."""
_PER_FRAME, _CONSTANT, _SLOW = 5, 3, 3
_CALM = (np.log(0.5), 0.0, np.log(0.05), np.log(0.05), 0.0)
"""A window in which answers take half of their deadline and nothing is held."""
ROW_SIZE = FRAMES * _PER_FRAME + _CONSTANT + len(REGIME_NAMES) + _SLOW + MOVES
_SLOWLY = 0.1
"""Share of the slow means that one window replaces."""


class HoldingObserver:
    """Windows of `n` environments → rows ``[n, groups, row]``.

    Args:
        deadlines_s: ``[groups]``.
        workers: ``[n, servers]``, as believed.
        encoder: a mixture over `REGIME_NAMES`, whose posterior is appended to every row.
    """

    def __init__(self, deadlines_s: FloatArray, workers: FloatArray, encoder: Encoder | None = None) -> None:
        self._deadlines_s, self._workers, self._encoder = deadlines_s, workers, encoder
        shape = (len(workers), len(deadlines_s))
        self._too_late = midpoints_s() > deadlines_s[:, None]
        self._frames = np.tile(np.array(_CALM), (*shape, FRAMES))
        self._slow = np.zeros((*shape, _SLOW))
        self._slowness, self._rates_rps = np.full(shape, _CALM[0]), np.ones(shape)
        self._load = np.zeros(shape[0])
        self._constant = np.zeros((*shape, _CONSTANT))
        self.regime = np.zeros((shape[0], len(REGIME_NAMES)))

    def observe(self, window: WindowBatch, held: IntArray, oldest_s: FloatArray, tau_s: FloatArray) -> None:
        """One more window of all environments.

        Args:
            held, oldest_s: ``[n, groups]``, `SimulatedBatch.in_line` at its end.
            tau_s: ``[n, groups, servers]``, service times in force.
        """
        mask, deadlines_s = window.topology.mask, self._deadlines_s
        seconds = float((window.end_s - window.start_s).max())
        answered = window.latency_counts.sum(axis=2)
        late = (window.latency_counts * self._too_late).sum(axis=2) / np.maximum(answered, 1)
        mean_s = window.latency_s_sum / np.maximum(answered, 1)
        self._slowness = np.where(answered > 0, np.log(0.05 + mean_s / deadlines_s), self._slowness)
        failed = window.failed / np.maximum(answered + window.failed, 1)
        self._rates_rps = np.maximum(window.planned / seconds, 1.0)
        waiting = np.log(0.05 + held / (self._rates_rps * deadlines_s))
        age = np.log(0.05 + oldest_s / deadlines_s)
        frame = np.stack([self._slowness, late, waiting, age, failed], axis=-1)
        self._frames = np.concatenate([frame, self._frames[..., :-_PER_FRAME]], axis=-1)
        self._slow += _SLOWLY * (np.stack([self._slowness, late, waiting], axis=-1) - self._slow)
        typical_s = np.where(mask, tau_s, 0.0).sum(axis=2) / mask.sum(axis=1)
        self._look_over_types(frame, typical_s, held.sum(axis=1))

    def rows(self, moved: FloatArray) -> NDArray[np.float32]:
        """The network's input; `moved` ``[n, groups, MOVES]``: what is in force beside the rule without anything
        learned, 0 where that is nothing.
        """
        over = np.broadcast_to(self.regime[:, None], (*moved.shape[:2], len(REGIME_NAMES)))
        parts = [self._frames, self._constant, over, self._slow, moved]
        if self._encoder is not None:
            posterior = self._encoder.encode(self.regime)[0]
            parts.append(np.broadcast_to(posterior[:, None], (*moved.shape[:2], posterior.shape[-1])))
        return np.concatenate(parts, axis=-1).astype(np.float32)

    def _look_over_types(self, frame: FloatArray, typical_s: FloatArray, held: IntArray) -> None:
        mix = self._rates_rps / self._rates_rps.sum(axis=1, keepdims=True)
        late, slowness, failed = ((mix * frame[..., column]).sum(axis=1) for column in (1, 0, 4))
        work = self._rates_rps * typical_s
        before, self._load = self._load, work.sum(axis=1) / self._workers.sum(axis=1)
        waiting = np.log(0.05 + held / (self._rates_rps @ self._deadlines_s))
        self.regime = np.stack(
            [late, slowness, waiting, frame[..., 3].max(axis=1), failed, self._load, self._load - before], axis=-1
        )
        each_s = np.log(typical_s)
        self._constant = np.stack(
            [
                np.log(self._deadlines_s / typical_s) - 1, np.log(work / work.sum(axis=1, keepdims=True)) + 1,
                each_s - each_s.mean(axis=1, keepdims=True),
            ],
            axis=-1,
        )  # fmt: skip


def row_size(encoder: Encoder | None) -> int:
    """Numbers of a row with this mixture."""
    return ROW_SIZE + (encoder.clusters if encoder is not None else 0)
