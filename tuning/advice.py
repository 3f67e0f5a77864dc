"""What a bundle would do, as a value: handed from whoever asked the policy to the guards. Needs no torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from actuators.control import Control
from actuators.window import Window
from envs.features import LatencyMemory


@dataclass(frozen=True, eq=False)
class State:
    """What the encoder says after the last window.

    Attributes:
        cluster: ``[servers]``, the most likely one.
        posterior: ``[servers, K]``.
        novelty: ``[servers]``; above 1 lies outside every cluster.
    """

    cluster: NDArray[np.int64]
    posterior: NDArray[np.float64]
    novelty: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Advice:
    """What a bundle makes of some windows; the guards decide what becomes of it.

    Attributes:
        policy: what the learned policy would put in force; None when it failed, and `problem` says how.
        baseline: what its residual stands on, on the same observation: inverse latency's weights, or the service
            times that an estimator has learned.
        memory: averages after the first of the windows, to be given when that one has fallen off.
        by: who answered: ``serve``, ``own copy``.
    """

    policy: Control | None
    baseline: Control
    state: State
    memory: LatencyMemory
    problem: str = ""
    by: str = "own copy"


class Advises(Protocol):
    """A bundle that can be asked, here or elsewhere."""

    def advise(self, windows: Sequence[Window], memory: LatencyMemory | None = None) -> Advice: ...


class Recent:
    """The windows that the next advice needs, and the averages from before them: all that a caller must remember.

    Args:
        frames: windows that one observation spans.
    """

    def __init__(self, frames: int) -> None:
        self._windows: deque[Window] = deque(maxlen=frames)
        self._before: LatencyMemory | None = None
        self._after_first: LatencyMemory | None = None

    def moved(self, frames: int) -> Recent:
        """For another bundle: its windows begin anew, the averages of response times go on.

        They take some ten windows to settle, which would all look like nothing that was observed. What an estimator
        has learned is left behind: the other bundle may have another one.
        """
        other, last = Recent(frames), self._after_first
        if last is not None:
            other._before = replace(last, learned={})
        return other

    def ask(self, adviser: Advises, window: Window) -> Advice:
        """Advice after one more window."""
        if len(self._windows) == self._windows.maxlen:
            self._before = self._after_first
        self._windows.append(window)
        advice = adviser.advise(list(self._windows), self._before)
        self._after_first = advice.memory
        return advice
