"""Response times and errors of a window, bounded in what a single error or a single very long response can do.

Used by features of version 2. Arrays are ``[..., groups, servers]``; a histogram has one more axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray
from envs.observation.deadlines import bucket_values_s

GOOD_REQUESTS = 20.0
"""Good answers that are added to every window before errors are divided by requests."""
ONE_ERROR = 1.0 / (1.0 + GOOD_REQUESTS)
"""The most that one error can amount to, at any rate of requests."""
TIMES_P90, TIMES_MEAN = 4.0, 10.0
"""A response counts as at most 4 times the window's 90th percentile or 10 times the slow average."""
MEAN_TIMES = 3.0
"""Without a histogram a window's mean counts as at most this many times the slow average."""
LEAST_RESPONSES = 20
"""Responses from which on a 90th percentile does not depend on the longest one."""
LEAST_LONGEST_S, ENDLESS_S = 0.01, 1e6


def error_ratio(errors: NDArray[np.int64], requests: NDArray[np.int64]) -> FloatArray:
    """Failed requests per request, as if 20 more had been answered well."""
    ratio: FloatArray = errors / (requests + GOOD_REQUESTS)
    return ratio


def longest_s(
    requests: NDArray[np.int64], known_s: FloatArray, p90_s: FloatArray, group_p90_s: FloatArray
) -> FloatArray:
    """The longest response time in seconds that counts in full; 1e6 where nothing tells it.

    Args:
        known_s: slow average of earlier windows, nan where unknown.
        p90_s: of the window, nan without a histogram.
        group_p90_s: ``[..., groups]``, of all servers of a group; taken where a server tells nothing.
    """
    own = np.where(requests >= LEAST_RESPONSES, TIMES_P90 * p90_s, np.nan)
    longest = np.fmax(own, TIMES_MEAN * known_s)
    enough = (requests.sum(axis=-1) >= LEAST_RESPONSES) & (group_p90_s > 0)
    of_group = np.where(enough, TIMES_P90 * group_p90_s, ENDLESS_S)[..., None]
    longest = np.where(np.isnan(longest), of_group, longest)
    return np.asarray(np.maximum(longest, LEAST_LONGEST_S))


def mean_s(
    requests: NDArray[np.int64],
    response_ms_sum: NDArray[np.int64],
    histogram: NDArray[np.int64],
    bounds_ms: Sequence[int],
    known_s: FloatArray,
    longest: FloatArray,
) -> FloatArray:
    """Mean response time in seconds with every response counted as at most `longest`.

    Where no response is longer, the sum is exact; else those below are placed in the middle of their buckets. Without
    a histogram the mean is at most 3 times the slow average `known_s`.
    """
    safe = np.maximum(requests, 1)
    plain_s = response_ms_sum / safe / 1e3
    if not bounds_ms:
        return np.asarray(np.fmin(plain_s, MEAN_TIMES * known_s))
    lower, upper = bucket_values_s(bounds_ms)
    # The last column has no upper end: what is in it may be of any length.
    upper, middle = np.append(upper[:-1], ENDLESS_S), np.append((lower + upper)[:-1] / 2, ENDLESS_S)
    limit = longest[..., None]
    at_most_s = (histogram * np.minimum(upper, limit)).sum(axis=-1)
    cut_s = (histogram * np.minimum(middle, limit)).sum(axis=-1)
    above = (histogram * (lower >= limit)).sum(axis=-1) > 0
    seconds = np.minimum(response_ms_sum / 1e3, np.where(above, cut_s, at_most_s))
    # A reading between the two updates of one request may count it in the sum only.
    counted = histogram.sum(axis=-1) > 0
    return np.asarray(np.where(counted, seconds / safe, np.minimum(plain_s, longest)))
