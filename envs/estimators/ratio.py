"""A Kalman filter on how much longer requests took than was predicted when they were sent."""

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


class Ratio:
    """τ = type mean × exp(server's log slowness + its deviation for the type), the last two filtered.

    Every response tells, also those that waited, because the wait was predicted with the same τ. The
    observation is absolute: log(response / prediction) + log(τ that the prediction used / type mean). So the
    filter never counts a correction twice, however late its τ come into force, and whatever a residual policy
    made of them. (The naive form, without the second term, diverges with a delay of 2 s.)
    Constants: the shared study, P2.1, `ratio`. A boost of the variance follows each innovation beyond 3 σ.

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
        """All types of a server together correct its slowness; by how much. ``[..., servers]``"""
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
        """Without traffic: a server's slowness towards the servers' mean or 0, whichever is faster; a cell's to 0."""
        typical = np.minimum(self._server.mean(axis=-1, keepdims=True), 0.0)
        self._server = np.where(seen.any(axis=-2), self._server, self._server + share * (typical - self._server))
        self._cell = np.where(seen, self._cell, (1.0 - share) * self._cell)


def _observe(samples: ServiceSamples, means_s: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Log τ/mean as each cell's responses show it (nan where nothing does), and its variance (inf there)."""
    told = samples.seen()
    predicted_s = told.predicted_wait_s + told.predicted_service_s
    seen = samples.mask & (samples.requests > 0) & (told.requests > 0) & (told.predicted_service_s > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        took = samples.response_s / samples.requests
        ratio = np.maximum(took, 1e-5) / (predicted_s / told.requests)
        in_force = told.predicted_service_s / told.requests / means_s[..., None]
        observed = np.where(seen, np.log(ratio * in_force), np.nan)
        noise = np.where(seen, 1.0 / told.requests + _OBSERVATION_NOISE, np.inf)
    return observed, noise
