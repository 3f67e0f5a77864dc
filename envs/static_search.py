"""The best static weights of a scenario, searched in simulation: what no feedback can know, and what goes stale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from actuators.control import BalancingMethod, Weights
from actuators.options import Options
from actuators.script import Scenario
from actuators.topology import Topology
from envs.batch import SimulatedBatch
from envs.deadlines import ERROR_LATENCY_S
from envs.window_batch import WindowBatch

FloatArray = NDArray[np.float64]


class SearchOptions(Options):
    """Cross-entropy search over the logarithms of the weights."""

    candidates: int = Field(default=32, ge=8)
    """Weights tried side by side in each generation, under the same arrivals."""
    generations: int = Field(default=24, ge=1)
    """How often the best quarter breeds the next candidates."""
    duration_s: float = Field(default=60.0, gt=0)
    """Simulated seconds per trial; the first tenth is not counted."""
    spread: float = Field(default=0.7, gt=0)
    """Standard deviation of the first candidates' log weights."""


def search_static(
    scenario: Scenario,
    topology: Topology,
    method: BalancingMethod,
    deadlines_s: FloatArray,
    seeds: Sequence[int],
    options: SearchOptions | None = None,
) -> Weights:
    """Weights of the least mean latency / deadline, errors charged as 1 s, over fresh arrivals each generation.

    The seeds must not be those of an evaluation. Equal weights are always among the candidates.
    """
    o = options or SearchOptions()
    generator = np.random.default_rng(list(seeds))
    centre, spread = np.zeros(topology.shape), np.full(topology.shape, o.spread)
    elite = max(o.candidates // 4, 2)
    for generation in range(o.generations):
        logs = centre + spread * generator.standard_normal((o.candidates, *topology.shape))
        logs[0], logs[1] = centre, 0.0
        cost = _costs(
            scenario, topology, method, deadlines_s, seeds[generation % len(seeds)], _integers(topology, logs), o
        )
        best = logs[np.argsort(cost)[:elite]]
        centre, spread = best.mean(axis=0), np.maximum(best.std(axis=0), 0.02)
    return Weights(topology, _integers(topology, centre[None])[0])


def _costs(
    scenario: Scenario,
    topology: Topology,
    method: BalancingMethod,
    deadlines_s: FloatArray,
    seed: int,
    weights: NDArray[np.int64],
    options: SearchOptions,
) -> FloatArray:
    batch = SimulatedBatch(topology, len(weights), method)
    script = scenario.script(topology, seed)
    for index in range(len(weights)):
        batch.reset(index, script)
    batch.set_weights(weights)
    batch.advance(options.duration_s / 10)
    return _relative_latency(batch.advance(options.duration_s * 9 / 10), deadlines_s)


def _relative_latency(window: WindowBatch, deadlines_s: FloatArray) -> FloatArray:
    seconds = window.latency_s_sum + window.failed * ERROR_LATENCY_S
    cost: FloatArray = (seconds / deadlines_s).sum(axis=1) / np.maximum(window.answered.sum(axis=1), 1)
    return cost


def _integers(topology: Topology, logs: FloatArray) -> NDArray[np.int64]:
    """Weights 1…100 of log weights ``[n, groups, servers]``."""
    shares = np.where(topology.mask, np.exp(logs), 0.0)
    scaled = np.rint(100 * shares / shares.max(axis=-1, keepdims=True))
    return np.where(topology.mask, np.clip(scaled, 1, 100), 0).astype(np.int64)
