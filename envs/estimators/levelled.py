"""The default estimator: `idle` that forgets by requests and by changes of a server, levelled where chance decides."""

from __future__ import annotations

import numpy as np

from actuators.contract.arrays import FloatArray, IntArray
from actuators.contract.topology import Topology
from envs.estimators.base import Row, ServiceSamples
from envs.estimators.idle import IdleEstimator

_CHANCE, _MOST = 3.0, 0.25
"""Standard errors within which a difference counts as chance, and the largest relative difference that does. Too little
is known of a server that is rarely asked for a type to call it equal to one that is twice as fast."""
_REMEMBERED = 300.0
"""Requests of a group at one server after which what was known before counts 1/e."""
_LEAST_KEPT_PER_S, _MOST_KEPT_PER_S = 0.6, 0.99
"""Limits of forgetting, with much and with little traffic."""
_RECENT, _LEAST_RECENT_PER_S, _MOST_RECENT_PER_S = 100.0, 0.3, 0.9
"""Requests of a server that count as recent, of all types, without which no change is seen; limits of their memory."""
_CHANGE = 3.0
"""Standard errors by which the recent requests of a server must differ from what is known to count as a change."""
_MOST_CHANGE = 4.0
"""Largest factor of one change."""
_LEFT = 20.0
"""Requests that count of what was known of a server before its change."""
_SPREAD_KEPT_PER_S, _SPREAD_PRIOR = 0.99, 20.0
"""Memory of how much service times vary, and the requests for which an exponential distribution is assumed."""
_PRIOR = 20.0
"""Requests that the prior of `idle` stands for."""


class LevelledEstimator(IdleEstimator):
    """The default: `IdleEstimator`, then levelled: first each server over all types, then what is left at each type.

    `expected_delay` sends to the least τ while a worker is idle there, so that the noise of the estimates decides
    between equal servers, and starves some of them for seconds. A group forgets by its requests, 1 to 40 %/s, so that
    slow services keep as many samples as fast ones. A server whose recent requests of all types deviate from what is
    known has changed: then its times change at once, by the same factor for all types. Source:
    docs/studies.md#estimator-levelled.
    """

    name = "levelled"

    def __init__(self, topology: Topology, batch: tuple[int, ...] = ()) -> None:
        super().__init__(topology, batch)
        self._recent_requests = np.zeros((*batch, *topology.shape))
        self._recent_seconds = np.zeros((*batch, *topology.shape))
        # Squared errors of the windows of each type, in its service times, and the requests that they are of.
        self._squares = np.zeros((*batch, topology.shape[0]))
        self._counted = np.zeros((*batch, topology.shape[0]))

    def update(self, samples: ServiceSamples) -> FloatArray:
        tau_s = super().update(samples)
        types = samples.mask.sum(axis=-1)
        mean = np.where(samples.mask, tau_s, 0.0).sum(axis=-1) / types
        # Of a server that lacks a type, its other types tell.
        relative = np.where(samples.mask, np.log(tau_s / mean[..., None]), 0.0)
        counts = np.where(samples.mask, self._requests + _PRIOR, 0.0)
        slowness = np.exp((relative * counts).sum(axis=-2) / counts.sum(axis=-2))
        level = levelled(slowness, counts.sum(axis=-2))
        typical = mean[..., None] * level[..., None, :]
        found: FloatArray = typical * levelled(tau_s / typical, self._requests + _PRIOR)
        return found

    def forget(self, row: Row = ...) -> None:
        super().forget(row)
        self._recent_requests[row] = self._recent_seconds[row] = 0.0
        self._squares[row] = self._counted[row] = 0.0

    def _remember(self, requests: IntArray, seconds: FloatArray, samples: ServiceSamples) -> None:
        self._notice_changes(requests, seconds, samples)
        # One rate for the whole group: what is known of a server without requests is forgotten as well.
        typical = requests.sum(axis=-1, keepdims=True) / samples.mask.sum(axis=-1, keepdims=True)
        kept = _kept(typical / _REMEMBERED, _LEAST_KEPT_PER_S, _MOST_KEPT_PER_S, samples.duration_s)
        self._requests = kept * self._requests + requests
        self._seconds = kept * self._seconds + seconds

    def _notice_changes(self, requests: IntArray, seconds: FloatArray, samples: ServiceSamples) -> None:
        """Scales what is known of servers that have changed, and lets little of it count beside new requests."""
        of_server = requests.sum(axis=-2).mean(axis=-1)[..., None, None]
        kept = _kept(of_server / _RECENT, _LEAST_RECENT_PER_S, _MOST_RECENT_PER_S, samples.duration_s)
        self._recent_requests = kept * self._recent_requests + requests
        self._recent_seconds = kept * self._recent_seconds + seconds
        known = self._requests > 1.0
        mean_s = np.where(known, self._seconds / np.maximum(self._requests, 1.0), 0.0)
        recent = np.where(known, self._recent_requests, 0.0)
        expected_s = recent * mean_s
        # Of what is known, too, the error counts.
        square_s = mean_s**2 * recent * (1.0 + recent / np.maximum(self._requests, 1.0))
        spread = np.maximum((self._squares + _SPREAD_PRIOR) / (self._counted + _SPREAD_PRIOR), 1.0)
        error_s = np.sqrt((spread[..., None] * square_s).sum(axis=-2))
        seen_s, due_s = np.where(known, self._recent_seconds, 0.0).sum(axis=-2), expected_s.sum(axis=-2)
        changed = (np.abs(seen_s - due_s) > _CHANGE * error_s) & (recent.sum(axis=-2) >= _RECENT)
        factor = np.where(changed, np.clip(seen_s / np.where(changed, due_s, 1.0), 1 / _MOST_CHANGE, _MOST_CHANGE), 1.0)
        self._watch_spread(np.where(known & ~changed[..., None, :], requests, 0), seconds, mean_s, samples.duration_s)
        left = np.where(changed[..., None, :], np.minimum(self._requests, _LEFT), self._requests)
        share = left / np.where(left > 0, self._requests, 1.0)
        self._requests, self._seconds = left, self._seconds * share * factor[..., None, :]

    def _watch_spread(self, requests: IntArray, seconds: FloatArray, mean_s: FloatArray, duration_s: float) -> None:
        """Variance of each type's service times over the square of their mean; 1 for exponential ones."""
        kept = _SPREAD_KEPT_PER_S**duration_s
        error = seconds / np.where(mean_s > 0, mean_s, 1.0) - requests
        square = error**2 / (1.0 + requests / np.maximum(self._requests, 1.0))
        self._squares = kept * self._squares + np.where(requests > 0, square, 0.0).sum(axis=-1)
        self._counted = kept * self._counted + requests.sum(axis=-1)


def _kept(elapsed: FloatArray, least_per_s: float, most_per_s: float, duration_s: float) -> FloatArray:
    """Share of what was known that counts after `elapsed` memories of requests, within limits per second."""
    kept: FloatArray = np.clip(np.exp(-elapsed), least_per_s**duration_s, most_per_s**duration_s)
    return kept


def levelled(values: FloatArray, requests: FloatArray) -> FloatArray:
    """Values in which servers that differ by no more than chance are equal, ``[..., servers]``.

    In ascending order a server joins those before it when it is within three standard errors of their mean and at most
    a quarter above it. All of them then get their mean.

    Args:
        values: estimates > 0, whose relative standard error is 1 / √`requests` (that of exponential service times).
        requests: > 0, what each rests on.
    """
    order = np.argsort(values, axis=-1)
    value, weight = np.take_along_axis(values, order, axis=-1), np.take_along_axis(requests, order, axis=-1)
    means, joins = np.empty_like(value), np.zeros(value.shape, dtype=bool)
    mean, total = value[..., 0], weight[..., 0]
    means[..., 0] = mean
    for server in range(1, values.shape[-1]):
        own, count = value[..., server], weight[..., server]
        joins[..., server] = own - mean <= mean * np.minimum(_CHANCE * np.sqrt(1.0 / count + 1.0 / total), _MOST)
        mean = np.where(joins[..., server], (mean * total + own * count) / (total + count), own)
        total = np.where(joins[..., server], total + count, count)
        means[..., server] = mean
    for server in range(values.shape[-1] - 2, -1, -1):
        means[..., server] = np.where(joins[..., server + 1], means[..., server + 1], means[..., server])
    level = np.empty_like(value)
    np.put_along_axis(level, order, means, axis=-1)
    return level
