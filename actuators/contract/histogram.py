"""Log-linear latency histogram that the load engine, the simulator and the judge share.

The layout is that of HdrHistogram (http://hdrhistogram.org) with 128 sub-buckets: values below 128 µs are exact, above
that the width of a bucket is at most 1/64 (1.6 %) of its value.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

SUB_BUCKETS = 64
SIZE = 1408
"""Number of buckets. They cover 0 µs to 2**27 µs (134 s); the last bucket also counts everything above."""


def bucket_of(value_us: int) -> int:
    """Index of the bucket that counts a value in µs (negative values count as 0)."""
    value = max(int(value_us), 0)
    shift = max(value.bit_length() - 7, 0)
    return min(shift * SUB_BUCKETS + (value >> shift), SIZE - 1)


@cache
def bounds_us() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower (inclusive) and upper (exclusive) bounds of every bucket in µs, each ``[SIZE]`` and read-only."""
    index = np.arange(SIZE)
    shift = np.maximum(index // SUB_BUCKETS - 1, 0)
    mantissa = index - shift * SUB_BUCKETS
    lower = mantissa * 2.0**shift
    upper = lower + 2.0**shift
    lower.flags.writeable = upper.flags.writeable = False
    return lower, upper


def midpoints_s() -> NDArray[np.float64]:
    """Representative value of each bucket in seconds, ``[SIZE]``."""
    lower, upper = bounds_us()
    middle: NDArray[np.float64] = np.where(upper - lower <= 1, lower, (lower + upper) / 2) / 1e6
    return middle


def percentile_ms(counts: NDArray[np.int64], percentile: float) -> float:
    """The latency in ms below which `percentile` (0…100) per cent of the counts lie; nan when empty."""
    total = int(counts.sum())
    if total == 0:
        return float("nan")
    rank = max(int(np.ceil(total * percentile / 100.0)), 1)
    return float(midpoints_s()[int(np.searchsorted(np.cumsum(counts), rank))] * 1e3)
