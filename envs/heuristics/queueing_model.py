"""Heuristics with an approximate M/G/c queue of each server: weights from inferred speeds, and a PID controller."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray
from actuators.contract.control import BalancingMethod, Control, Weights
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from envs.environment.actions import ActionCodec
from envs.estimators.base import MOST_ERRORS
from envs.heuristics.weights import WeightPolicy, rates_rps
from envs.observation.observer import Observation, Observer

_BISECTIONS = 40
_MOST_LOAD = 0.999


def number_in_system(offered: FloatArray, workers: FloatArray, service_cv: float = 1.0) -> FloatArray:
    """Mean requests in service and waiting: Erlang's C with the Allen-Cunneen factor (1 + cv²)/2.

    Args:
        offered: busy workers on average, 0 <= offered < workers; any shape.
        workers: whole numbers >= 1 that broadcast with `offered`.
    """
    offered, workers = np.broadcast_arrays(np.asarray(offered, float), np.rint(workers))
    # Erlang's B by its recursion, each element stopped at its own number of workers.
    blocked = np.ones_like(offered)
    for k in range(1, int(workers.max(initial=1)) + 1):
        blocked = np.where(k <= workers, offered * blocked / (k + offered * blocked), blocked)
    share = offered / workers
    waits = blocked / (1.0 - share * (1.0 - blocked))
    waiting = waits * share / (1.0 - share) * (1.0 + service_cv**2) / 2.0
    total: FloatArray = offered + waiting
    return total


def offered_load(in_system: FloatArray, workers: FloatArray, service_cv: float = 1.0) -> FloatArray:
    """Inverse of `number_in_system`: busy workers on average with that many requests in the system, at most 0.999 c."""
    in_system, workers = np.broadcast_arrays(np.asarray(in_system, float), np.maximum(np.rint(workers), 1.0))
    low, high = np.zeros_like(in_system), _MOST_LOAD * workers
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        above = number_in_system(middle, workers, service_cv) > in_system
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    half: FloatArray = (low + high) / 2
    return half


class ModelBased(WeightPolicy):
    """Weight ∝ speed of the server, found by inverting an M/G/c queue.

    Little's law gives the mean number of requests at a server (rate × response time, over all groups);
    the queueing model gives the number of busy workers; offered work at the type's mean per busy worker is the
    speed. One speed per server: it misses specialised servers (S3), and queues do not mislead it.

    Args:
        workers: requests that a server serves at once, one number or ``[servers]``.
    """

    name = "model_based"

    def __init__(self, codec: ActionCodec, workers: float | FloatArray) -> None:
        super().__init__(codec)
        self._workers = workers

    def shares(self, observation: Observation) -> FloatArray:
        rates = rates_rps(observation)
        busy = busy_workers(observation, self._workers)
        latency_s = np.where(np.isfinite(observation.latency_s), observation.latency_s, 0.0)
        requests = np.maximum(rates.sum(axis=-1, keepdims=True), 1e-9)
        typical_s = (rates * latency_s).sum(axis=-1, keepdims=True) / requests
        speed = (rates * typical_s).sum(axis=-2) / np.maximum(busy, 1e-9)
        known = (rates.sum(axis=-2) > 0) & (speed > 0)
        mean = np.where(known, speed, 0.0).sum(axis=-1, keepdims=True) / np.maximum(known.sum(-1, keepdims=True), 1)
        speed = np.where(known, speed, np.where(mean > 0, mean, 1.0))
        return np.broadcast_to(speed[..., None, :], rates.shape).copy()


def busy_workers(observation: Observation, workers: float | FloatArray) -> FloatArray:
    """``[..., servers]``: workers busy on average in the window, from NGINX's statistics alone."""
    latency_s = np.where(np.isfinite(observation.latency_s), observation.latency_s, 0.0)
    there = (rates_rps(observation) * latency_s).sum(axis=-2)
    return offered_load(there, np.asarray(workers, float))


PROPORTIONAL, INTEGRAL, DERIVATIVE = 0.4, 0.15, 0.1
"""Gains on the logarithm of a server's weight, per control interval and unit of relative utilisation error."""
MOST_LOG = 2.0
"""Largest |log weight| that the integral may build up."""


class UtilisationPid:
    """One PID controller per server holds its utilisation at the fleet's average (Dropbox's Robinhood does this).

    Dropbox's servers report their load; here a queueing model infers the utilisation from NGINX's statistics. One
    weight per server for all groups. A Controller and not a Policy: it remembers the integral and the last error.

    Source: Dropbox's engineering blog, "Robinhood: How we load balance services at scale" (2024).
    """

    def __init__(
        self,
        method: BalancingMethod,
        codec: ActionCodec,
        observer: Observer,
        workers: float | FloatArray,
    ) -> None:
        self.name, self.method = "utilisation_pid", method
        self._codec, self._observer, self._workers = codec, observer, workers
        servers = codec.topology.shape[1]
        self._sum, self._last = np.zeros(servers), np.zeros(servers)
        self._control: Control | None = None

    def begin(self, topology: Topology) -> Control:
        return self._control if self._control is not None else Weights.equal(topology)

    def decide(self, window: Window) -> Control | None:
        if not window.usable or window.requests.sum() == 0:
            return None
        observation = self._observer.observe_window(window)
        busy = busy_workers(observation, self._workers) / self._workers
        seen = _working(window)
        mean = max(float(busy[seen].mean()), 1e-6) if seen.any() else 1.0
        step = self._step(np.where(seen, (mean - busy) / mean, 0.0))
        shares = np.broadcast_to(np.exp(step - step.max()), window.topology.shape)
        weights = self._codec.weights(np.zeros(self._codec.size), shares, observation.weights)
        self._control = Weights(window.topology, weights)
        return self._control

    def _step(self, error: FloatArray) -> FloatArray:
        # Without the limit a server would return from a long outage with an extreme weight.
        self._sum = np.clip(self._sum + INTEGRAL * error, -MOST_LOG, MOST_LOG)
        step: FloatArray = PROPORTIONAL * error + self._sum + DERIVATIVE * (error - self._last)
        self._last = error
        return step


def _working(window: Window) -> NDArray[np.bool_]:
    """Bool ``[servers]``: has a meaningful utilisation; a dead or failing server would wind up the integral."""
    requests, errors = window.requests.sum(axis=0), window.server_errors.sum(axis=0)
    working: NDArray[np.bool_] = (requests > 0) & (errors <= MOST_ERRORS * requests)
    return working
