"""A Kalman filter on the ratio of response times to their predictions."""

from __future__ import annotations

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.topology import Topology
from envs.estimators.base import Row, ServiceSamples, TypeMeans, leak, within_guards

_SERVER_NOISE_PER_S = 0.005
_CELL_NOISE_PER_S = 0.001
_FIRST_VARIANCE = 0.1
_OBSERVATION_NOISE = 0.001
_SURPRISE_SIGMAS = 3.0
_SURPRISE_VARIANCE = 0.3
_MOST_SERVER_LOG = 4.0
_MOST_CELL_LOG = 3.0


class RatioEstimator:
    """τ = type mean × exp(server's log slowness + its deviation for the type), the last two filtered.

    Responses that waited count as well, because the wait was predicted with the same τ. The observation is absolute:
    log(response / prediction) + log(τ used in the prediction / type mean). So no correction counts twice, even when τ
    takes effect late or a residual policy changed it; without the second term, the filter diverges with a delay of
    2 s. The variance is raised after each innovation beyond 3 σ. Constants: docs/studies.md#estimator-ratio.

    `update` raises DataError for windows of an NGINX whose balancer is not in memory.
    """

    name = "ratio"

    def __init__(self, topology: Topology, batch: tuple[int, ...] = ()) -> None:
        self._means = TypeMeans(topology, batch)
        self._server = np.zeros((*batch, topology.shape[1]))
        self._server_variance = np.full((*batch, topology.shape[1]), _FIRST_VARIANCE)
        self._cell = np.zeros((*batch, *topology.shape))
        self._cell_variance = np.full((*batch, *topology.shape), _FIRST_VARIANCE)

    def update(self, samples: ServiceSamples) -> FloatArray:
        means = self._means.update(samples)
        observed, noise = _observe(samples, means)
        self._server_variance = self._server_variance + _SERVER_NOISE_PER_S * samples.duration_s
        self._cell_variance = self._cell_variance + _CELL_NOISE_PER_S * samples.duration_s
        innovation = observed - self._server[..., None, :] - self._cell
        explained = self._update_servers(np.nan_to_num(innovation), noise)
        self._update_cells(np.nan_to_num(innovation - explained[..., None, :]), noise)
        self._forget(np.isfinite(noise), leak(samples.duration_s))
        return within_guards(means[..., None] * np.exp(self._server[..., None, :] + self._cell), means)

    def forget(self, row: Row = ...) -> None:
        self._means.forget(row)
        self._server[row], self._server_variance[row] = 0.0, _FIRST_VARIANCE
        self._cell[row], self._cell_variance[row] = 0.0, _FIRST_VARIANCE

    def _update_servers(self, innovation: FloatArray, noise: FloatArray) -> FloatArray:
        """Corrects each server's slowness by the observations of all its types; the correction ``[..., servers]``."""
        precision = 1.0 / (self._cell_variance + noise)
        total = precision.sum(axis=-2)
        known = total > 0
        combined = np.where(known, (precision * innovation).sum(axis=-2) / np.where(known, total, 1.0), 0.0)
        combined_noise = 1.0 / np.where(known, total, 1e-12)
        surprise = np.abs(combined) > _SURPRISE_SIGMAS * np.sqrt(self._server_variance + combined_noise)
        variance = self._server_variance + np.where(surprise, _SURPRISE_VARIANCE, 0.0)
        gain = variance / (variance + combined_noise)
        step: FloatArray = gain * combined
        self._server = np.clip(self._server + step, -_MOST_SERVER_LOG, _MOST_SERVER_LOG)
        self._server_variance = np.minimum((1.0 - gain) * variance, 1.0)
        return step

    def _update_cells(self, innovation: FloatArray, noise: FloatArray) -> None:
        gain = self._cell_variance / (self._cell_variance + noise)
        self._cell = np.clip(self._cell + gain * innovation, -_MOST_CELL_LOG, _MOST_CELL_LOG)
        self._cell_variance = np.minimum((1.0 - gain) * self._cell_variance, 1.0)

    def _forget(self, seen: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], share: float) -> None:
        """Without traffic, a server's slowness moves to the smaller of the servers' mean and 0, a cell's to 0."""
        typical = np.minimum(self._server.mean(axis=-1, keepdims=True), 0.0)
        self._server = np.where(seen.any(axis=-2), self._server, self._server + share * (typical - self._server))
        self._cell = np.where(seen, self._cell, (1.0 - share) * self._cell)


def _observe(samples: ServiceSamples, means_s: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Observed log(τ / mean) of each cell and its variance; nan and inf where there were no responses."""
    delay = samples.seen()
    predicted_s = delay.predicted_wait_s + delay.predicted_service_s
    seen = samples.mask & (samples.requests > 0) & (delay.requests > 0) & (delay.predicted_service_s > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        took = samples.response_s / samples.requests
        ratio = np.maximum(took, 1e-5) / (predicted_s / delay.requests)
        in_force = delay.predicted_service_s / delay.requests / means_s[..., None]
        observed = np.where(seen, np.log(ratio * in_force), np.nan)
        noise = np.where(seen, 1.0 / delay.requests + _OBSERVATION_NOISE, np.inf)
    return observed, noise
