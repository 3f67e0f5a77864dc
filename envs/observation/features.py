"""Window → named features per group and server, and per group. Pure functions of counters.

Arrays may have any leading axes, for one window or a batch. The weights in force are context, not features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray
from envs.observation import robust
from envs.observation.deadlines import bucket_values_s

FeaturesVersion = Literal[1, 2]
"""1: plain means and ratios, as up to version 0.1. 2: a single error or a single very long response moves neither the
features nor the average that baselines follow by more than a bounded amount (`robust`). A bundle keeps its version."""
FEATURES_VERSION: FeaturesVersion = 2
"""Of new bundles."""

SERVER_FEATURES = ("traffic_share", "log_mean", "log_p90", "error_ratio", "slow_log_mean")
"""Per group and server; times are relative to the type's deadline."""

GROUP_RATE_SCALE = 6.0
SLOW_EWMA = 0.1
FAST_EWMA = 0.5
ERROR_CHARGE = 10.0
LEAST_CHARGE_S, CHARGED_TIMES = 0.1, 5.0
"""A server all of whose answers are errors counts as at least so slow: in seconds, and in means of the good ones."""
"""A failed answer counts as this many times its response time in the latency that baselines follow."""
EXPONENTIAL_P90 = 2.302585092994046
"""90th percentile over mean of an exponential distribution."""
LEAST_SPREAD = {"traffic_share": 0.02, "log_mean": 0.1, "log_p90": 0.15, "error_ratio": 0.02, "slow_log_mean": 0.05}
"""Version 2: how far counting noise moves each feature, also when an observation phase has shown less."""
MOVED_BY_WEIGHTS = ("traffic_share",)
"""Version 2 does not judge novelty by these: they move whenever the weights do."""


class Counters(Protocol):
    """What features read: a Window, or a batch of them with a leading axis."""

    @property
    def requests(self) -> NDArray[np.int64]: ...
    @property
    def responses(self) -> NDArray[np.int64]: ...
    @property
    def response_ms_sum(self) -> NDArray[np.int64]: ...
    @property
    def latency_histogram(self) -> NDArray[np.int64]: ...
    @property
    def bounds_ms(self) -> tuple[int, ...]: ...


@dataclass
class LatencyMemory:
    """What must be remembered between windows: averages that outlive windows without traffic.

    Attributes:
        fast_s: EWMA(0.5) of the mean response time in seconds, errors charged; nan before any traffic.
        slow_log: EWMA(0.1) of log(mean response time in seconds), so that it outlives a bundle with other deadlines.
        learned: what an estimator of service times knows, array by name; empty without one.
    """

    fast_s: FloatArray
    slow_log: FloatArray
    learned: dict[str, FloatArray] = field(default_factory=dict)

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> LatencyMemory:
        """Nothing seen yet; `shape` is ``[..., groups, servers]``."""
        return cls(np.full(shape, np.nan), np.zeros(shape))

    def forget(self, index: int) -> None:
        """Clears one row of a batch."""
        self.fast_s[index] = np.nan
        self.slow_log[index] = 0.0


def server_features(
    counters: Counters, deadlines_s: FloatArray, memory: LatencyMemory, version: FeaturesVersion = FEATURES_VERSION
) -> FloatArray:
    """``[..., groups, servers, len(SERVER_FEATURES)]``; updates `memory` in place.

    Without traffic the two latency features hold their slow average, so that silence looks like
    nothing rather than like a fast server. Without a histogram log_p90 is that of an exponential distribution.
    """
    requests = counters.requests
    seen = requests > 0
    deadline = deadlines_s[:, None]
    mean_s, p90_s, error_ratio = (_plain if version == 1 else _robust)(counters, memory)
    _remember(memory, mean_s, error_ratio, seen, version)
    # Before any traffic a server looks as if it just met its deadline.
    slow_log = np.where(np.isnan(memory.fast_s), 0.0, memory.slow_log - np.log(deadline))
    log_mean = np.where(seen, np.log(mean_s / deadline), slow_log)
    log_p90 = np.where(seen, np.log(np.maximum(p90_s, 5e-4) / deadline), slow_log)
    total = np.maximum(requests.sum(axis=-1, keepdims=True), 1)
    return np.stack([requests / total, log_mean, log_p90, error_ratio, slow_log], axis=-1)


def quantile_s(histogram: NDArray[np.int64], bounds_ms: Sequence[int], quantile: float) -> FloatArray:
    """Quantile in seconds along the last axis, linear inside a bucket; 0 for an empty histogram or no bounds."""
    if not bounds_ms:
        return np.zeros(histogram.shape[:-1])
    lower, upper = bucket_values_s(bounds_ms)
    cumulative = np.cumsum(histogram, axis=-1)
    total = cumulative[..., -1:]
    rank = quantile * total
    column = np.minimum((cumulative < rank).sum(axis=-1), histogram.shape[-1] - 1)[..., None]
    inside = np.take_along_axis(histogram, column, axis=-1)
    below = np.take_along_axis(cumulative, column, axis=-1) - inside
    fraction = (rank - below) / np.maximum(inside, 1)
    value = lower[column] + fraction * (upper[column] - lower[column])
    return np.where(total > 0, value, 0.0)[..., 0]


def tail_quantile_s(histogram: NDArray[np.int64], bounds_ms: Sequence[int], quantile: float) -> FloatArray:
    """The same, exponential inside a bucket, as the tails of response times are.

    Bounds are often far apart. Where 0.9 % of the answers lie above 100 ms and none above 250 ms, or 1.3 %, the 99th
    percentiles differ little; linear interpolation makes 99 ms and 135 ms of them.
    """
    if not bounds_ms:
        return np.zeros(histogram.shape[:-1])
    lower, upper = bucket_values_s(bounds_ms)
    total = histogram.sum(axis=-1, keepdims=True)
    wanted, above = (1.0 - quantile) * np.maximum(total, 1), total - np.cumsum(histogram, axis=-1)
    column = np.argmax(above <= wanted, axis=-1)[..., None]
    # Half a request: where the tail ends is unknown.
    after = np.maximum(np.take_along_axis(above, column, axis=-1), 0.5)
    before = np.maximum(np.take_along_axis(above + histogram, column, axis=-1), wanted)
    fraction = np.log(before / wanted) / np.maximum(np.log(before / np.minimum(after, before)), 1e-9)
    value = lower[column] + np.minimum(fraction, 1.0) * (upper[column] - lower[column])
    return np.where(total > 0, value, 0.0)[..., 0]


def group_features(counters: Counters, duration_s: float | FloatArray) -> FloatArray:
    """``[..., groups]``: log of (1 + requests per second) / 6, about 1 at 400 requests per second.

    Args:
        duration_s: of the window, or ``[...]`` of each window of a batch.
    """
    rate_rps = counters.requests.sum(axis=-1) / np.maximum(np.asarray(duration_s)[..., None], 1e-3)
    scaled: FloatArray = np.log1p(rate_rps) / GROUP_RATE_SCALE
    return scaled


def inverse_latency_shares(latency_s: FloatArray) -> FloatArray:
    """Shares ∝ 1/latency, largest of each group 1. ``[..., groups, servers]`` in and out.

    A server without a measurement (nan) is taken as fast as the mean of its group's known ones.
    """
    rate = 1.0 / latency_s
    known = np.isfinite(rate)
    mean = np.where(known, rate, 0.0).sum(axis=-1, keepdims=True) / np.maximum(known.sum(axis=-1, keepdims=True), 1)
    rate = np.where(known, rate, np.where(mean > 0, mean, 1.0))
    shares: FloatArray = rate / rate.max(axis=-1, keepdims=True)
    return shares


def _plain(counters: Counters, memory: LatencyMemory) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Version 1: mean and 90th percentile of response times in seconds, and the error ratio."""
    safe = np.maximum(counters.requests, 1)
    mean_s = np.maximum(counters.response_ms_sum / safe / 1e3, 5e-4)
    return mean_s, _p90_s(counters, mean_s), counters.responses[..., 4] / safe


def _robust(counters: Counters, memory: LatencyMemory) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Version 2: the same, without what a single error or a single long response could do."""
    known_s = np.where(np.isnan(memory.fast_s), np.nan, np.exp(memory.slow_log))
    p90_s = _p90_s(counters, np.full(counters.requests.shape, np.nan))
    of_group_s = quantile_s(counters.latency_histogram.sum(axis=-2), counters.bounds_ms, 0.9)
    longest_s = robust.longest_s(counters.requests, known_s, p90_s, of_group_s)
    mean_s = robust.mean_s(
        counters.requests, counters.response_ms_sum, counters.latency_histogram, counters.bounds_ms, known_s, longest_s
    )
    mean_s = np.maximum(mean_s, 5e-4)
    p90_s = np.where(np.isnan(p90_s), EXPONENTIAL_P90 * mean_s, np.minimum(p90_s, longest_s))
    return mean_s, p90_s, robust.error_ratio(counters.responses[..., 4], counters.requests)


def _p90_s(counters: Counters, without_histogram: FloatArray) -> FloatArray:
    if counters.bounds_ms:
        return quantile_s(counters.latency_histogram, counters.bounds_ms, 0.9)
    return EXPONENTIAL_P90 * without_histogram


def _remember(
    memory: LatencyMemory,
    mean_s: FloatArray,
    error_ratio: FloatArray,
    seen: NDArray[np.bool_],
    version: FeaturesVersion,
) -> None:
    charged = mean_s * (1 + (ERROR_CHARGE - 1) * error_ratio)
    # A fast failure must not look like a fast server, whatever is fast for the servers that do not fail.
    failing = error_ratio if version == 1 else np.maximum(error_ratio - robust.ONE_ERROR, 0.0)
    good = seen & (failing == 0)
    count = np.maximum(good.sum(axis=-1, keepdims=True), 1)
    of_good_s = np.where(good, mean_s, 0.0).sum(axis=-1, keepdims=True) / count
    charged = np.maximum(charged, failing * np.maximum(LEAST_CHARGE_S, CHARGED_TIMES * of_good_s))
    first = np.isnan(memory.fast_s)
    blended = np.where(first, charged, memory.fast_s + FAST_EWMA * (charged - memory.fast_s))
    log_mean = np.log(mean_s)
    slow = np.where(first, log_mean, memory.slow_log + SLOW_EWMA * (log_mean - memory.slow_log))
    memory.fast_s[...] = np.where(seen, blended, memory.fast_s)
    memory.slow_log[...] = np.where(seen, slow, memory.slow_log)
