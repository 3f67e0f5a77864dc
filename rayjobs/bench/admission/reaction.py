"""How fast admission reacts: from the first late moment of a surge to a limit that holds for the rest of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray


@dataclass(frozen=True, eq=False)
class SurgeSamples:
    """What NGINX counted in each of the equally long samples of a surge.

    Attributes:
        sample_s: length of a sample.
        finished, late: ``[samples, groups]``, of the requests that were let in and ended in the sample.
        refused: ``[samples]``, of all groups.
        weights: ``[groups]``, as the rule weighs late answers: importance × nominal rate.
    """

    sample_s: float
    finished: NDArray[np.int64]
    late: NDArray[np.int64]
    refused: NDArray[np.int64]
    weights: FloatArray

    def late_shares(self, begin: int) -> FloatArray:
        """``[samples - begin]``: late share of all that ended from sample `begin` on until each one's end, weighted as
        the rule does; a group in which nothing ended is not late."""
        finished, late = (counts[begin:].cumsum(axis=0) for counts in (self.finished, self.late))
        shares = late / np.maximum(finished, 1)
        weighted: FloatArray = shares @ self.weights / self.weights.sum()
        return weighted

    def is_late(self, begin: int, count: int, late_share: float) -> bool:
        """Whether the `count` samples from `begin` on are late together."""
        return bool(self.late_shares(begin)[count - 1] > late_share)

    def holds(self, begin: int, count: int, late_share: float) -> bool:
        """Whether a limit holds from sample `begin` on: in its first `count` samples requests are refused, and to the
        end of the last of these and of any later one no more than `late_share` of what was let in is late."""
        refuses = self.refused[begin : begin + count].sum() > 0
        return bool(refuses and (self.late_shares(begin)[count - 1 :] <= late_share).all())


def reaction_s(surge: SurgeSamples, window_s: float, late_share: float) -> float:
    """Seconds from the first late window to a limit that holds.

    A window is `window_s` long and may begin with any sample. It is late when the weighted share of late answers among
    those that ended in it is above `late_share`, as for the rule itself. The time counts from where the first late
    window *begins*, so that it includes the window, and ends at the first moment after it from which a limit holds: in
    the window from there on requests are refused, and from there to any later moment of the surge, at least a window
    later, no more than `late_share` is late. Single late windows are allowed after that, as the rule probes for more
    room all the time, but never so many that the share since then is above the threshold.

    Returns 0 without a late window, and the time to the end of the surge when no limit holds.
    """
    count, samples = round(window_s / surge.sample_s), len(surge.refused)
    begins = range(samples - count + 1)
    first = next((begin for begin in begins if surge.is_late(begin, count, late_share)), None)
    if first is None:
        return 0.0
    later = range(first + count, samples - count + 1)
    held = next((begin for begin in later if surge.holds(begin, count, late_share)), samples)
    return (held - first) * surge.sample_s
