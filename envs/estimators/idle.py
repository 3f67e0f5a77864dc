"""Service times from requests that found an idle worker: the base of the default estimator."""

from __future__ import annotations

import numpy as np

from actuators.contract.arrays import FloatArray, IntArray
from actuators.contract.topology import Topology
from envs.estimators.base import Row, ServiceSamples, TypeMeans, within_guards

_KEPT_PER_S = 0.7
_SERVER_PRIOR = 5.0
_CELL_PRIOR = 20.0


class IdleEstimator:
    """τ from response times of requests that did not wait, shrunk towards the type's mean × the server's factor.

    A request that finds an idle worker shows the service time without a queue. So the measurement does not depend on
    what was learned (no feedback loop), and it is safe under processor sharing and in overload. Without traffic, τ
    returns to the type's mean at 30 %/s. Formula: docs/studies.md#estimator-idle.

    `update` raises DataError for windows of an NGINX whose balancer is not in memory.
    """

    name = "idle"

    def __init__(self, topology: Topology, batch: tuple[int, ...] = ()) -> None:
        self._means = TypeMeans(topology, batch)
        self._requests = np.zeros((*batch, *topology.shape))
        self._seconds = np.zeros((*batch, *topology.shape))

    def update(self, samples: ServiceSamples) -> FloatArray:
        seen = samples.seen()
        requests = np.where(samples.mask, seen.idle_requests, 0)
        kept = self._kept(requests, samples)
        self._requests = kept * self._requests + requests
        self._seconds = kept * self._seconds + np.where(samples.mask, seen.idle_response_s, 0.0)
        means = self._means.update(samples)
        prior = _SERVER_PRIOR * means.mean(axis=-1, keepdims=True)
        expected = (self._requests * means[..., None]).sum(axis=-2)
        slowness = (self._seconds.sum(axis=-2) + prior) / (expected + prior)
        typical_s = means[..., None] * slowness[..., None, :]
        tau_s = (self._seconds + _CELL_PRIOR * typical_s) / (self._requests + _CELL_PRIOR)
        return within_guards(tau_s, means)

    def _kept(self, requests: IntArray, samples: ServiceSamples) -> FloatArray:
        """Share of what was known before that counts beside these ``[..., groups, servers]``; 1 broadcasts to them."""
        return np.asarray(_KEPT_PER_S**samples.duration_s)

    def forget(self, row: Row = ...) -> None:
        self._means.forget(row)
        self._requests[row] = self._seconds[row] = 0.0
