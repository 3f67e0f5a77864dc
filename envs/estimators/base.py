"""Windows → service times τ, the control of `expected_delay`: what all estimators share, and the simple ones.

No estimator knows a speed or a service time beforehand. τ is in seconds, ``[..., groups, servers]``; the leading axes
are empty for one testbed and ``[n]`` for a batch. Source: docs/studies.md#service-time-estimators.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import EllipsisType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray, IntArray
from actuators.contract.topology import Topology
from actuators.contract.window import DelayWindow, Window
from actuators.contract.window_stack import WindowStack
from actuators.errors import DataError
from envs.simulator.window_batch import WindowBatch

FIRST_GUESS_S = 0.005
"""Initial service time of every type; traffic replaces a wrong value within a second."""
MOST_ERRORS = 0.1
"""Largest share of errors with which the response times of a server still count as service times."""

_GUESS_REQUESTS = 20.0
_MEAN_KEPT_PER_S = 0.99
_FARTHEST = 50.0
_LEAK_PER_S = 0.05


@dataclass(frozen=True, eq=False)
class ServiceSamples:
    """The input of estimators, from one window. Arrays are ``[..., groups, servers]``.

    Attributes:
        requests: answers with usable response times; 0 where too many were errors.
        response_s: sum of their response times.
        delay: samples of the balancer in memory; None for a plain NGINX.
        mask: ``[groups, servers]``, False where a group lacks the server.
        duration_s: length of the window.
    """

    requests: IntArray
    response_s: FloatArray
    delay: DelayWindow | None
    mask: NDArray[np.bool_]
    duration_s: float

    @classmethod
    def of(cls, window: Window | WindowBatch | WindowStack) -> ServiceSamples:
        """The samples of a window or of a batch of windows, of which the longest counts as the length of all."""
        delay = window.delay_window() if isinstance(window, WindowBatch) else window.delay
        usable = window.responses[..., 4] <= MOST_ERRORS * window.requests
        return cls(
            np.where(usable, window.requests, 0),
            np.where(usable, window.response_ms_sum, 0) / 1e3,
            delay,
            window.topology.mask,
            float(np.max(window.end_s - window.start_s)),
        )

    def of_row(self, index: int) -> ServiceSamples:
        """Those of one testbed of a batch, without what the balancer in memory saw."""
        return ServiceSamples(self.requests[index], self.response_s[index], None, self.mask, self.duration_s)

    @property
    def batch(self) -> tuple[int, ...]:
        """The leading axes."""
        return self.requests.shape[:-2]

    def seen(self) -> DelayWindow:
        """`delay`. Raises DataError for a plain NGINX."""
        if self.delay is None:
            raise DataError(
                "the window has no samples of service times",
                where="service-time estimator",
                remedy="balance by expected_delay (NGINX with Lua), or use the inverse_latency estimator",
            )
        return self.delay


Row = int | EllipsisType
"""Index of a testbed in the batch; `...` for all."""


class Estimator(Protocol):
    """Learns service times from windows. Stateful: one instance per testbed or batch."""

    name: str

    def update(self, samples: ServiceSamples) -> FloatArray:
        """τ after this window; positive and finite, even where a group lacks the server."""
        ...

    def forget(self, row: Row = ...) -> None:
        """Resets the estimator, or one testbed of the batch."""
        ...


class TypeMeans:
    """Mean service time of each request type over its servers, learned from NGINX's statistics.

    From requests that found an idle worker where the balancer counts them, else from all responses. Forgets only
    1 %/s, because estimators use it as a fallback. All servers have equal weight, however few requests they get:
    otherwise the mean would be that of the fastest server, which a good balancer prefers.
    """

    def __init__(self, topology: Topology, batch: tuple[int, ...] = (), first_guess_s: float = FIRST_GUESS_S) -> None:
        self._requests = np.zeros((*batch, *topology.shape))
        self._seconds = np.zeros((*batch, *topology.shape))
        self._first_guess_s = first_guess_s

    def update(self, samples: ServiceSamples) -> FloatArray:
        """``[..., groups]`` after this window, in seconds."""
        kept = _MEAN_KEPT_PER_S**samples.duration_s
        requests, seconds = samples.requests, samples.response_s
        if samples.delay is not None:
            requests, seconds = samples.delay.idle_requests, samples.delay.idle_response_s
        self._requests = kept * self._requests + np.where(samples.mask, requests, 0)
        self._seconds = kept * self._seconds + np.where(samples.mask, seconds, 0.0)
        total = self._requests.sum(axis=-1, keepdims=True) + _GUESS_REQUESTS
        pooled = (self._seconds.sum(axis=-1, keepdims=True) + _GUESS_REQUESTS * self._first_guess_s) / total
        of_server = (self._seconds + _GUESS_REQUESTS * pooled) / (self._requests + _GUESS_REQUESTS)
        means: FloatArray = np.where(samples.mask, of_server, 0.0).sum(axis=-1) / samples.mask.sum(axis=-1)
        return np.maximum(means, 1e-6)

    def forget(self, row: Row = ...) -> None:
        """Resets the means, or those of one testbed of the batch."""
        self._requests[row] = self._seconds[row] = 0.0


def learned(estimator: Estimator) -> dict[str, FloatArray]:
    """The state of an estimator, arrays by name; `recall` puts it into another one of the same kind."""
    return {name: getattr(owner, key).copy() for name, owner, key in _arrays(estimator)}


def recall(estimator: Estimator, known: Mapping[str, FloatArray]) -> None:
    """Restores the state from `learned`. Raises DataError for that of another estimator or of other servers."""
    for name, owner, key in _arrays(estimator):
        value, present = known.get(name), getattr(owner, key)
        if value is None or np.shape(value) != present.shape:
            raise DataError(
                f"'{name}' does not fit the estimator {estimator.name}",
                where="memory",
                remedy="send `memory` of the last answer unchanged",
            )
        setattr(owner, key, np.array(value, dtype=float))


class TypeMeansEstimator:
    """Assumes that every server is as fast as its type's mean: the reference for estimators that learn speeds."""

    name = "type_means"

    def __init__(self, topology: Topology, batch: tuple[int, ...] = ()) -> None:
        self._means, self._servers = TypeMeans(topology, batch), topology.shape[1]

    def update(self, samples: ServiceSamples) -> FloatArray:
        return np.repeat(self._means.update(samples)[..., None], self._servers, axis=-1)

    def forget(self, row: Row = ...) -> None:
        self._means.forget(row)


class InverseLatencyEstimator:
    """τ = EWMA (0.5 per second) of the mean response time per group and server. Works on any NGINX.

    Without traffic, log τ moves 5 %/s towards the type's geometric mean over its servers
    (docs/studies.md#estimator-inverse-latency).
    """

    name = "inverse_latency"

    def __init__(self, topology: Topology, batch: tuple[int, ...] = ()) -> None:
        self._means = TypeMeans(topology, batch)
        self._log = np.full((*batch, *topology.shape), np.nan)

    def update(self, samples: ServiceSamples) -> FloatArray:
        means = self._means.update(samples)
        seen = samples.mask & (samples.requests > 0)
        now = np.maximum(samples.response_s / np.maximum(samples.requests, 1), 1e-5)
        before = np.where(np.isnan(self._log), now, np.exp(self._log))
        kept = 0.5**samples.duration_s
        known = ~np.isnan(self._log)
        typical = _mean(self._log, known)
        idle = np.where(known, self._log + leak(samples.duration_s) * (typical - self._log), typical)
        self._log = np.where(seen, np.log(kept * before + (1 - kept) * now), idle)
        return within_guards(np.exp(self._log), means)

    def forget(self, row: Row = ...) -> None:
        self._means.forget(row)
        self._log[row] = np.nan


def leak(duration_s: float) -> float:
    """Share of the way back to the typical value in this time without traffic: 5 %/s."""
    return 1.0 - float((1.0 - _LEAK_PER_S) ** duration_s)


def within_guards(tau_s: FloatArray, means_s: FloatArray) -> FloatArray:
    """τ within a factor of 50 of its type's mean ``[..., groups]``; the mean itself where τ is unknown (nan)."""
    mean = means_s[..., None]
    guarded: FloatArray = np.clip(np.where(np.isfinite(tau_s), tau_s, mean), mean / _FARTHEST, mean * _FARTHEST)
    return guarded


def _arrays(owner: object) -> Iterator[tuple[str, object, str]]:
    for key, value in vars(owner).items():
        name = key.removeprefix("_")
        if isinstance(value, np.ndarray):
            yield name, owner, key
        elif isinstance(value, TypeMeans):
            yield from ((f"{name}_{inner}", at, part) for inner, at, part in _arrays(value))


def _mean(values: FloatArray, known: NDArray[np.bool_]) -> FloatArray:
    """Mean over the servers, nan where none is known."""
    count = known.sum(axis=-1, keepdims=True)
    total = np.where(known, values, 0.0).sum(axis=-1, keepdims=True)
    mean: FloatArray = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean
