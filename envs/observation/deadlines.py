"""Deadlines from the observation phase (docs/glossary.md#deadline), and the tardiness of a window's requests.

d = μ + (1 + 1/p) σ per request type, with the mean μ and the standard deviation σ = √(E[t²] − μ²) of its response
times under equal weights and its priority p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from actuators.errors import DataError

ERROR_LATENCY_S = 1.0
"""A failed request is charged at least as an answer after this time, so that failing never pays."""

MAX_ERROR_RATIO = 0.02
MIN_USABLE_SHARE = 0.4
FAULTY_SHARE_WARNED = 0.2
MIN_REQUESTS = 200
MAX_RELATIVE_SPREAD = 4.0
PARTS, MAX_DRIFT, MIN_PART_REQUESTS = 4, 2.0, 50
"""The phase in four parts: the mean of one may be at most twice that of another."""


@dataclass(frozen=True, eq=False)
class Deadlines:
    """Deadline per request type, with what it came from.

    Attributes:
        seconds: ``[groups]``, > 0.
        mean_s, deviation_s: ``[groups]``, of the observation phase.
        requests: ``[groups]``, how many the figures rest on.
        warnings: what was odd about the observation phase, a line each; empty when nothing was.
    """

    seconds: FloatArray
    mean_s: FloatArray
    deviation_s: FloatArray
    requests: NDArray[np.int64]
    warnings: tuple[str, ...] = ()


def bucket_values_s(bounds_ms: Sequence[int]) -> tuple[FloatArray, FloatArray]:
    """Lower and upper edges in seconds of the histogram's columns, each ``[bounds + 1]``.

    The column above the last bound gets an upper edge of twice that bound. Without bounds nothing is known: both are 0.
    """
    if not bounds_ms:
        return np.zeros(1), np.zeros(1)
    upper = np.array([*bounds_ms, 2 * bounds_ms[-1]], dtype=float) / 1e3
    return np.concatenate([[0.0], upper[:-1]]), upper


def derive_deadlines(windows: Sequence[Window], topology: Topology, least: int = MIN_REQUESTS) -> Deadlines:
    """Deadlines from the usable windows of an observation phase under equal weights.

    Args:
        least: requests of each type that are needed; fewer are enough where the deadlines themselves are known.

    Raises:
        DataError: fewer requests of a type in usable windows, or most windows are faulty:
            the phase must be repeated, because deadlines from a disturbed phase make ART blind.
    """
    usable = [window for window in windows if window.usable]
    if len(usable) < MIN_USABLE_SHARE * len(windows) or not usable:
        raise DataError(
            f"only {len(usable)} of {len(windows)} windows are usable: {_commonest_fault(windows)}",
            where="observation phase",
            remedy="repeat it while nothing restarts and the machine has little else to do",
        )
    requests = np.sum([w.requests.sum(axis=1) for w in usable], axis=0)
    for group, count in zip(topology.groups, requests, strict=True):
        if count < least:
            raise DataError(
                f"{count} requests of type {group.request_type}",
                where="observation phase",
                remedy=f"observe longer or under more load: {least} of each type are needed",
            )
    mean_s = np.sum([w.response_ms_sum.sum(axis=1) for w in usable], axis=0) / requests / 1e3
    counts, bounds_ms = _histograms(usable)
    deviation_s = response_deviation_s(counts, bounds_ms, mean_s)
    priority = np.array([group.priority for group in topology.groups])
    seconds = np.maximum(mean_s + (1 + 1 / priority) * deviation_s, 1e-3)
    warnings = _warnings(usable, topology, requests, mean_s, deviation_s)
    left_out = len(windows) - len(usable)
    if left_out > FAULTY_SHARE_WARNED * len(windows):
        warnings += (f"{left_out} of {len(windows)} windows were left out: {_commonest_fault(windows)}",)
    return Deadlines(seconds, mean_s, deviation_s, requests, warnings)


def response_deviation_s(counts: NDArray[Any], bounds_ms: Sequence[int], mean_s: FloatArray) -> FloatArray:
    """Standard deviation ``[groups]`` of response times from histograms ``[groups, bounds + 1]`` and their means.

    At least 5 % of the mean: a histogram does not tell what happens inside a column. Without bounds it is the mean, as
    of an exponential distribution.
    """
    if not bounds_ms:
        return mean_s.copy()
    lower, upper = bucket_values_s(bounds_ms)
    # Second moment of a uniform density inside each bucket.
    second = counts @ ((lower**2 + lower * upper + upper**2) / 3) / np.maximum(counts.sum(axis=1), 1)
    deviation_s: FloatArray = np.sqrt(np.maximum(second - mean_s**2, (0.05 * mean_s) ** 2))
    return deviation_s


def failure_s(deadlines_s: FloatArray) -> FloatArray:
    """What a failed request counts as at least, ``[groups]`` in seconds: 1 s or twice its deadline, the longer one.

    With deadlines beyond 1 s it would else be better to fail than to answer.
    """
    return np.maximum(ERROR_LATENCY_S, 2.0 * deadlines_s)


def tardiness(
    latency_histogram: NDArray[np.int64],
    errors: NDArray[np.int64] | FloatArray,
    bounds_ms: Sequence[int],
    deadlines_s: FloatArray,
    most: float = np.inf,
) -> FloatArray:
    """Sum of relative tardiness max(0, (t − d)/d) per group, from NGINX's histograms.

    Args:
        latency_histogram: ``[..., groups, servers, bounds + 1]``.
        errors: ``[..., groups, servers]`` failed requests; each is charged at least the worst
            tardiness of the window and at least that of an answer after `failure_s`.
        bounds_ms: upper bounds of the histogram's columns.
        deadlines_s: ``[groups]``.
        most: relative tardiness at which that of one request is cut.

    Returns:
        ``[..., groups]``; inside a bucket the times are taken as spread evenly. Without bounds no answer is late.
    """
    lower, upper = bucket_values_s(bounds_ms)
    d = deadlines_s[:, None]
    late_part = np.maximum(upper - np.maximum(lower, d), 0.0) / np.maximum(upper - lower, 1e-9)
    mean_lateness = (np.maximum(lower, d) + upper) / 2 - d
    cost = np.minimum(np.where(late_part > 0, late_part * mean_lateness, 0.0) / d, most)
    counts = latency_histogram.sum(axis=-2)
    of_answers: FloatArray = (counts * cost).sum(axis=-1)
    worst_s = np.where(counts > 0, upper, 0.0).max(axis=-1)
    of_error = (np.maximum(worst_s, failure_s(deadlines_s)) - deadlines_s) / deadlines_s
    failed = errors.sum(axis=-1)
    total: FloatArray = of_answers + failed * np.clip(of_error, 0.0, most)
    return total


def late_requests(
    latency_histogram: NDArray[np.int64], bounds_ms: Sequence[int], deadlines_s: FloatArray
) -> FloatArray:
    """Answers after the deadline, ``[..., groups, servers]``, from histograms ``[..., groups, servers, bounds + 1]``.

    An estimate: inside a bucket the times are taken as spread evenly. ``deadlines_s``: ``[groups]``.
    """
    lower, upper = bucket_values_s(bounds_ms)
    late_part = np.clip((upper - deadlines_s[:, None]) / np.maximum(upper - lower, 1e-9), 0.0, 1.0)
    late: FloatArray = (latency_histogram * late_part[:, None]).sum(axis=-1)
    return late


def _histograms(windows: Sequence[Window]) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """Histograms ``[groups, bounds + 1]`` over all windows with the bounds that most of them have, and those bounds."""
    every = [window.bounds_ms for window in windows]
    bounds_ms = max(set(every), key=every.count)
    counts = [w.latency_histogram.sum(axis=1) for w in windows if w.bounds_ms == bounds_ms]
    return np.sum(counts, axis=0), bounds_ms


def _commonest_fault(windows: Sequence[Window]) -> str:
    faults = [f"{fault.kind} ({fault.detail})" for window in windows for fault in window.faults if not window.usable]
    return max(set(faults), key=faults.count) if faults else "there are none"


def _warnings(
    windows: Sequence[Window],
    topology: Topology,
    requests: NDArray[np.int64],
    mean_s: FloatArray,
    deviation_s: FloatArray,
) -> tuple[str, ...]:
    errors = np.sum([w.server_errors.sum(axis=1) for w in windows], axis=0)
    warnings = []
    for index, group in enumerate(topology.groups):
        ratio = errors[index] / requests[index]
        if ratio > MAX_ERROR_RATIO:
            warnings.append(f"{group.request_type}: {ratio:.1%} of the requests failed during the observation phase")
        if deviation_s[index] > MAX_RELATIVE_SPREAD * mean_s[index]:
            warnings.append(
                f"{group.request_type}: response times spread over {deviation_s[index] / mean_s[index]:.1f} times "
                "their mean; a server was probably overloaded, so the deadline says little"
            )
        low_ms, high_ms = _drift_ms(windows, index)
        if high_ms > MAX_DRIFT * low_ms:
            warnings.append(
                f"{group.request_type}: the mean response time went from {low_ms:.1f} to {high_ms:.1f} ms within the "
                "observation phase; something disturbed the servers, so the deadline says little"
            )
    return tuple(warnings)


def _drift_ms(windows: Sequence[Window], group: int) -> tuple[float, float]:
    """Lowest and highest mean response time of a group over four parts of the phase, those with 50 requests or more."""
    means = []
    for part in np.array_split(np.arange(len(windows)), PARTS):
        requests = sum(int(windows[i].requests[group].sum()) for i in part)
        if requests >= MIN_PART_REQUESTS:
            means.append(sum(int(windows[i].response_ms_sum[group].sum()) for i in part) / requests)
    return (min(means), max(means)) if means else (1.0, 1.0)
