"""M/G/c queues, approximately: mean number in the system from the offered load, and back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

_BISECTIONS = 40
_MOST_LOAD = 0.999


def number_in_system(offered: FloatArray, workers: FloatArray, service_cv: float = 1.0) -> FloatArray:
    """Mean requests in service and waiting: Erlang's C with the Allen-Cunneen factor (1 + cv²)/2.

    Args:
        offered: busy workers on average, 0 <= offered < workers; any shape.
        workers: whole numbers >= 1 that broadcast with `offered`.
    """
    offered, workers = np.broadcast_arrays(np.asarray(offered, float), np.rint(workers))
    # Erlang's B by its recursion, each element stopped at its own number of workers.
    blocked = np.ones_like(offered)
    for k in range(1, int(workers.max(initial=1)) + 1):
        blocked = np.where(k <= workers, offered * blocked / (k + offered * blocked), blocked)
    share = offered / workers
    waits = blocked / (1.0 - share * (1.0 - blocked))
    waiting = waits * share / (1.0 - share) * (1.0 + service_cv**2) / 2.0
    total: FloatArray = offered + waiting
    return total


def offered_load(in_system: FloatArray, workers: FloatArray, service_cv: float = 1.0) -> FloatArray:
    """Inverse of `number_in_system`: busy workers on average when so many requests are there. At most 0.999 c."""
    in_system, workers = np.broadcast_arrays(np.asarray(in_system, float), np.maximum(np.rint(workers), 1.0))
    low, high = np.zeros_like(in_system), _MOST_LOAD * workers
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        above = number_in_system(middle, workers, service_cv) > in_system
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    half: FloatArray = (low + high) / 2
    return half
