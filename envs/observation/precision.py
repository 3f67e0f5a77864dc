"""When a recording is long enough: 95 % intervals of each server's mean response time, and when they will be narrow.

A mean response time is a ratio of two sums over n batches of windows, response time y and requests x. Its variance is
that of the ratio estimator (Cochran, Sampling Techniques, 3rd edition, 1977, section 2.11):

    r = Σ y / Σ x        var(r) = Σ (y - r x)² / (n (n - 1) x̄²)

A queue outlives a window, so neighbouring windows are not independent: they are joined into at most 30 batches of as
many windows each (Schmeiser, Batch Size Effects in the Analysis of Simulation Output, Operations Research 30, 1982).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from actuators.contract.arrays import BoolArray, FloatArray
from actuators.contract.window import Window
from actuators.options import Options

MOST_BATCHES = 30
LEAST_BATCHES = 5
LEAST_SHARE = 0.01
"""A server with less of its group's traffic is not waited for."""
_CONFIDENCE = 0.95


class WatchOptions(Options):
    """How long a system is watched: until every interval is narrow, but within these times."""

    half_width: float = Field(default=0.05, gt=0, lt=1)
    """Half-width of the 95 % interval of a server's mean response time, relative to it, at which it is known well
    enough; of every server with 1 % of its group's requests or more."""
    least_s: float = Field(default=300.0, gt=0)
    """Shortest time, in seconds."""
    most_s: float = Field(default=3600.0, gt=0)
    """Longest time, in seconds."""


@dataclass(frozen=True, eq=False)
class Precision:
    """How well the mean response times are known.

    Attributes:
        mean_ms: ``[groups, servers]``; nan where nothing was answered.
        half_width: ``[groups, servers]``, of the 95 % interval, relative to the mean; inf where unknown.
        counted: ``[groups, servers]``: the servers with 1 % of their group's requests or more.
        requests: ``[groups, servers]``.
        seconds: length of the usable windows.
    """

    mean_ms: FloatArray
    half_width: FloatArray
    counted: BoolArray
    requests: FloatArray
    seconds: float

    @property
    def widest(self) -> float:
        """The largest half-width that counts; inf without any traffic."""
        return float(self.half_width[self.counted].max(initial=0.0)) if self.counted.any() else float("inf")

    def of_groups(self) -> FloatArray:
        """The largest half-width that counts of every group, ``[groups]``; inf for a group without traffic."""
        widest = np.where(self.counted, self.half_width, 0.0).max(axis=1)
        return np.where(self.counted.any(axis=1), widest, np.inf)


def precision(windows: Sequence[Window]) -> Precision:
    """Of the usable windows, oldest first; there is at least one window."""
    usable = [window for window in windows if window.usable]
    shape = windows[0].topology.shape
    requests = np.array([window.requests for window in usable], float).reshape(-1, *shape)
    response_ms = np.array([window.response_ms_sum for window in usable], float).reshape(-1, *shape)
    seconds = sum(window.duration_s for window in usable)
    total = requests.sum(axis=0)
    share = total / np.maximum(total.sum(axis=1, keepdims=True), 1.0)
    with np.errstate(invalid="ignore"):
        mean_ms = response_ms.sum(axis=0) / np.where(total > 0, total, np.nan)
    half_width = ratio_half_width(_batches(requests), _batches(response_ms))
    return Precision(mean_ms, half_width, (share >= LEAST_SHARE) & (total > 0), total, seconds)


def ratio_half_width(x: FloatArray, y: FloatArray) -> FloatArray:
    """Half-width of the 95 % interval of Σy / Σx relative to it, ``[...]``; inf where it is unknown.

    Args:
        x, y: ``[batches, ...]``.
    """
    from scipy.special import stdtrit  # noqa: PLC0415 - `--help` reads WatchOptions and must answer at once

    n = len(x)
    if n < LEAST_BATCHES:
        return np.full(x.shape[1:], np.inf)
    sum_x, sum_y = x.sum(axis=0), y.sum(axis=0)
    ratio = sum_y / np.where(sum_x > 0, sum_x, np.nan)
    variance = ((y - ratio * x) ** 2).sum(axis=0) / (n * (n - 1) * np.maximum(sum_x / n, 1e-12) ** 2)
    # The formula holds for many batches: with requests in a few only, a server counts as not known.
    known = ((x > 0).sum(axis=0) >= LEAST_BATCHES) & (sum_y > 0)
    relative = stdtrit(n - 1, (1 + _CONFIDENCE) / 2) * np.sqrt(variance) / np.where(known, ratio, np.nan)
    return np.where(known, relative, np.inf)


def is_enough(now: Precision, options: WatchOptions) -> bool:
    """Whether everything is known well enough to end the watch before its longest time."""
    return now.seconds >= options.least_s and now.widest <= options.half_width


def expected_s(now: Precision, options: WatchOptions) -> float:
    """How long the watch will take in all, in seconds: a half-width falls with the root of the time."""
    if not np.isfinite(now.widest):
        return options.most_s if now.seconds >= options.least_s else options.least_s
    needed_s = now.seconds * (now.widest / options.half_width) ** 2
    return float(np.clip(needed_s, options.least_s, options.most_s))


def _batches(values: FloatArray) -> FloatArray:
    """Sums over at most 30 batches of as many neighbours each, ``[batches, ...]``."""
    size = max(-(-len(values) // MOST_BATCHES), 1)
    count = len(values) // size
    batches: FloatArray = values[len(values) - count * size :].reshape(count, size, *values.shape[1:]).sum(axis=1)
    return batches
