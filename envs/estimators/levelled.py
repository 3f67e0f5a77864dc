"""The default estimator: `idle` that forgets by requests, with equal times for servers that differ by chance."""

from __future__ import annotations

import numpy as np

from actuators.contract.arrays import FloatArray, IntArray
from envs.estimators.base import ServiceSamples
from envs.estimators.idle import IdleEstimator

_CHANCE, _MOST = 3.0, 0.25
"""Standard errors within which a difference counts as chance, and the largest relative difference that does. Too little
is known of a server that is rarely asked for a type to call it equal to one that is twice as fast."""
_REMEMBERED, _REMEMBERED_SLOW, _FAST_PER_S = 100.0, 300.0, 60.0
"""Requests of a group at one server after which what was known before counts 1/e: with many requests per server, and
with few, among which a change within seconds does not show; between them exponentially in the rate over the last."""
_LEAST_KEPT_PER_S, _MOST_KEPT_PER_S = 0.6, 0.99
"""Limits of forgetting, with much and with little traffic."""
_PRIOR = 20.0
"""Requests that the prior of `idle` stands for."""


class LevelledEstimator(IdleEstimator):
    """The default: `IdleEstimator`, then levelled: first each server over all types, then what is left at each type.

    `expected_delay` sends to the least τ while a worker is idle there, so that the noise of the estimates decides
    between equal servers, and starves some of them for seconds. A group forgets by its requests, 1 to 40 %/s, so that
    slow services keep at least as many samples as fast ones. Source: docs/studies.md#estimator-levelled.
    """

    name = "levelled"

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

    def _kept(self, requests: IntArray, samples: ServiceSamples) -> FloatArray:
        # One rate for the whole group: what is known of a server without requests is forgotten as well.
        typical = requests.sum(axis=-1, keepdims=True) / samples.mask.sum(axis=-1, keepdims=True)
        per_s = requests.sum(axis=-2).mean(axis=-1)[..., None, None] / samples.duration_s
        remembered = _REMEMBERED + (_REMEMBERED_SLOW - _REMEMBERED) * np.exp(-per_s / _FAST_PER_S)
        least, most = _LEAST_KEPT_PER_S**samples.duration_s, _MOST_KEPT_PER_S**samples.duration_s
        kept: FloatArray = np.clip(np.exp(-typical / remembered), least, most)
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
