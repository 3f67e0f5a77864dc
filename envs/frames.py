"""Remembers the rows of earlier intervals, so that a policy without memory can see what comes and goes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]


class FrameStack:
    """The last `frames - 1` rows of a testbed or of a batch, newest first.

    An episode's first interval counts as having lasted for ever: missing frames are copies of it.

    Args:
        batch: leading axes, ``()`` or ``(n,)``.
    """

    def __init__(self, frames: int, batch: tuple[int, ...] = ()) -> None:
        self._earlier, self._batch = frames - 1, batch
        self._rows: Rows | None = None
        self._fresh = np.ones(batch, dtype=bool)

    def forget(self, index: int | None = None) -> None:
        """The next rows begin a new episode, of one row of the batch or of all."""
        self._fresh[... if index is None else index] = True

    def push(self, rows: Rows) -> Rows:
        """Takes the rows ``[..., servers, size]``; the earlier ones, ``[..., servers, (frames - 1) * size]``."""
        held = rows[..., None, :]
        if self._rows is None:
            self._rows = np.repeat(held, self._earlier, axis=-2)
        else:
            self._rows = np.where(self._fresh[..., None, None, None], held, self._rows)
        self._fresh[...] = False
        past = self._rows
        self._rows = np.concatenate([held, past[..., :-1, :]], axis=-2)
        return past.reshape(*past.shape[:-2], -1)
