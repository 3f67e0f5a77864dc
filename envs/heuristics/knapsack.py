"""Weights from fitted weight-latency curves and an optimiser, as KnapsackLB does it; a Controller with memory.

Source: Gandhi and Narayana, "KnapsackLB: Enabling Performance-Aware Layer-4 Load Balancing", arXiv 2404.17783.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray
from actuators.contract.control import BalancingMethod, Control, Weights
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from envs.environment.actions import ActionCodec
from envs.estimators.base import MOST_ERRORS

_TERMS = 3
FORGET = 0.9
"""Share of the old measurements that a new window keeps."""
RIDGE = 1.0
"""Weight, in windows, of the prior that latency does not depend on the rate."""
EXPLORE, DITHER = 0.4, 0.1
"""Relative change of one server's weight in each exploring window, and afterwards, to keep the curves known."""
UNITS = 60
"""Parts into which a group's traffic is cut for the optimiser."""
REACH = 1.5
"""Largest factor by which one decision may change a server's share: a curve is not trusted far away."""


class Knapsack:
    """Learns each server's latency as a function of its request rate, then picks the shares of least mean latency.

    One curve per group and server, quadratic, made monotone. The paper probes the servers and solves an integer
    programme; we use the traffic's own response times, and solve the same knapsack exactly by dynamic programming.
    """

    def __init__(self, method: BalancingMethod, codec: ActionCodec) -> None:
        self.name, self.method = "knapsack", method
        # Small steps are the method; a dead band would swallow its dithering.
        self._codec = ActionCodec(codec.topology, codec.options.model_copy(update={"dead_band": 0.0}))
        groups, servers = codec.topology.shape
        self._normal = np.zeros((groups, servers, _TERMS, _TERMS))
        self._moment = np.zeros((groups, servers, _TERMS))
        self._scale_rps = np.zeros((groups, 1))
        self._ticks = 0
        self._control: Control | None = None

    def begin(self, topology: Topology) -> Control:
        return self._control if self._control is not None else Weights.equal(topology)

    def decide(self, window: Window) -> Control | None:
        if not window.usable or window.requests.sum() == 0:
            return None
        rates = window.requests / max(window.duration_s, 1e-3)
        telling = window.server_errors <= MOST_ERRORS * window.requests
        self._learn(rates, window.mean_response_s(), np.where(telling, window.requests, 0))
        exploring = self._ticks < 2 * window.topology.shape[1]
        shares = np.ones(window.topology.shape) if exploring else self._optimise(rates, window.weight)
        shares = shares * self._excitation(EXPLORE if exploring else DITHER)
        self._ticks += 1
        zeros = np.zeros(self._codec.size)
        self._control = Weights(window.topology, self._codec.weights(zeros, shares, window.weight))
        return self._control

    def _learn(self, rates: FloatArray, latency_s: FloatArray, requests: NDArray[np.int64]) -> None:
        peak = rates.max(axis=1, keepdims=True)
        self._scale_rps = np.where(self._scale_rps > 0, self._scale_rps, np.maximum(peak, 1.0))
        x = _powers(rates / self._scale_rps)
        # The mean of n times has a variance of 1/n of one: measurements count by their requests.
        weight = np.where(requests > 0, requests / np.maximum(requests.mean(), 1.0), 0.0)[..., None]
        y = np.nan_to_num(latency_s)[..., None]
        self._normal = FORGET * self._normal + weight[..., None] * x[..., :, None] * x[..., None, :]
        self._moment = FORGET * self._moment + weight * x * y

    def _optimise(self, rates: FloatArray, weight: NDArray[np.int64]) -> FloatArray:
        """Shares in proportion to which the weights in force must change, times those weights."""
        total = rates.sum(axis=1)
        present = rates / np.maximum(total, 1e-9)[:, None]
        wanted = present.copy()
        for g in np.flatnonzero(total > 0).tolist():
            parts = np.arange(UNITS + 1) / UNITS
            latency_s = self._curve(g, parts * total[g] / self._scale_rps[g])
            low, high = present[g] / REACH, np.maximum(present[g] * REACH, 2 * parts[1])
            inside = (parts >= low[:, None] - 1e-9) & (parts <= high[:, None])
            usable = (
                self._codec.topology.mask[g][:, None] & inside | (parts == 0) & ~self._codec.topology.mask[g][:, None]
            )
            chosen = best_split(np.where(usable, parts * latency_s, np.inf))
            wanted[g] = parts[chosen] if chosen is not None else present[g]
        # A server that got nothing is dead or just starved: its weight must not run away meanwhile.
        wanted = np.where(rates > 0, wanted, np.maximum(present, 1e-3))
        factor = np.clip(wanted / np.maximum(present, 1e-3), 1 / REACH, REACH)
        shares: FloatArray = np.maximum(weight, 1) * factor
        return shares

    def _curve(self, group: int, x: FloatArray) -> FloatArray:
        """Latency in seconds ``[servers, points]`` at relative rates ``[points]``, never falling with the rate."""
        ridge = np.diag([1e-6, RIDGE, RIDGE])
        coefficients = np.linalg.solve(self._normal[group] + ridge, self._moment[group][..., None])[..., 0]
        curve: FloatArray = np.maximum.accumulate(np.maximum(coefficients @ _powers(x).T, 1e-5), axis=-1)
        return curve

    def _excitation(self, size: float) -> FloatArray:
        """One server up, then down, in turn."""
        factors = np.ones(self._codec.topology.shape[1])
        factors[(self._ticks // 2) % len(factors)] += size if self._ticks % 2 == 0 else -size
        return factors


def best_split(cost: FloatArray) -> NDArray[np.int64] | None:
    """Parts for every server that add up to all of them at least cost; None when no split is possible.

    Args:
        cost: ``[servers, units + 1]``: cost of giving a server so many units; inf forbids.
    """
    servers, width = cost.shape
    best, choices = cost[0], []
    for row in cost[1:]:
        total = np.full((width, width), np.inf)  # [units so far, units of this server]
        for own in range(width):
            total[own:, own] = best[: width - own] + row[own]
        choices.append(total.argmin(axis=1))
        best = total.min(axis=1)
    if not np.isfinite(best[-1]):
        return None
    left, parts = width - 1, np.zeros(servers, np.int64)
    for server in range(servers - 1, 0, -1):
        parts[server] = choices[server - 1][left]
        left -= parts[server]
    parts[0] = left
    return parts


def _powers(x: FloatArray) -> FloatArray:
    return np.stack([np.ones_like(x), x, x * x], axis=-1)
