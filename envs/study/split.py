"""The best split of the traffic among separate queues with known speeds and rates: an oracle for round robin.

It prefers to partition by request type, which loses the gain from pooling under least_conn: no oracle there.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray
from actuators.contract.script import Script
from actuators.contract.topology import Topology
from envs.scenarios.timeline import rates_rps, server_speeds

_FULL = 0.995
"""Utilisation from which on the waiting time is continued as a straight line, so that the search finds back."""
_LOWEST_SHARE = 1e-3


def optimal_shares(script: Script, topology: Topology, at_s: float) -> FloatArray:
    """Shares ``[groups, servers]`` that minimise the mean latency at a moment of a script.

    Streams must be in the order of the groups. Servers that refuse or hang get (almost) nothing, and so do servers
    that a group lacks.
    """
    factors = server_speeds(script, at_s)
    speeds = np.array([profile.speeds for profile in script.servers]).T * np.maximum(factors, 1e-9)
    tau_s = np.array(script.mean_service_s)[:, None] / speeds
    second = {"lognormal": 1.0 + script.service_cv**2, "constant": 1.0}.get(script.service_distribution, 2.0)
    workers = tuple(profile.workers for profile in script.servers)
    tau_s = np.where(topology.mask, tau_s, np.inf)
    key = tuple(map(tuple, tau_s.tolist())), tuple(rates_rps(script, at_s).tolist()), workers, second
    result: FloatArray = _shares(*key).copy()
    return result


@lru_cache(maxsize=4096)
def _shares(
    tau_s: tuple[tuple[float, ...], ...], rates: tuple[float, ...], workers: tuple[int, ...], second_moment: float
) -> FloatArray:
    tau, rate, c = np.array(tau_s), np.array(rates)[:, None], np.array(workers)
    mask = np.isfinite(tau)
    tau = np.where(mask, tau, 1.0)
    start: FloatArray = np.where(mask, c / tau, 0.0)
    start = start / start.sum(axis=1, keepdims=True)
    if rate.sum() == 0:
        return start

    def shares(logits: FloatArray) -> FloatArray:
        values = np.where(mask, logits.reshape(tau.shape), -np.inf)
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        result: FloatArray = powers / powers.sum(axis=1, keepdims=True)
        return result

    def cost(logits: FloatArray) -> float:
        return _mean_latency_s(rate * shares(logits), tau, c, second_moment)

    from scipy.optimize import minimize  # noqa: PLC0415 - half a second, and many who know the rules need no oracle

    best = minimize(cost, np.log(np.where(mask, start, 1.0)).ravel(), method="L-BFGS-B")
    result: FloatArray = np.maximum(shares(best.x), _LOWEST_SHARE)
    return result


def _mean_latency_s(arrivals: FloatArray, tau_s: FloatArray, workers: NDArray[np.int64], second_moment: float) -> float:
    """Mean latency of separate M/G/c queues (Lee and Longton) under `arrivals` ``[groups, servers]``."""
    total, work = arrivals.sum(axis=0), (arrivals * tau_s).sum(axis=0)
    squares = (arrivals * tau_s**2).sum(axis=0) * second_moment
    cost = work.sum()
    for server, c in enumerate(workers):
        load = min(work[server], _FULL * c)
        wait_s = squares[server] / (2 * max(work[server], 1e-12)) * _erlang_c(load, int(c)) / (c - load)
        over = max(work[server] - load, 0.0) / c
        cost += total[server] * wait_s * (1 + over / (1 - _FULL) * 10)
    return float(cost / total.sum())


def _erlang_c(load: float, workers: int) -> float:
    """Probability of waiting in M/M/c at an offered load below `workers`."""
    blocked = 1.0
    for k in range(1, workers + 1):
        blocked = load * blocked / (k + load * blocked)
    return blocked / (1 - load / workers * (1 - blocked)) if math.isfinite(blocked) else 1.0
