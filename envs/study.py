"""Judges balancing rules on simulated scenarios, with the study's indices and common random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from actuators.histogram import SIZE, midpoints_s, percentile_ms
from actuators.script import Script
from actuators.topology import Topology
from envs import disturbances
from envs.batch import SimulatedBatch
from envs.deadlines import ERROR_LATENCY_S, derive_deadlines
from envs.rules import Rule
from envs.scenarios import StudyScenario
from envs.window_batch import WindowBatch

FloatArray = NDArray[np.float64]

WARM_UP_S = 10.0
_OBSERVED_S, _OBSERVED_SEED = 300.0, 999
_OBSERVED_LOAD = {"S2b": 0.325, "S6": 0.5}


@dataclass(frozen=True)
class Score:
    """What clients got, over all seeds.

    Attributes:
        art: relative tardiness per request, a failure counted as a 1 s answer.
        index: the study's J: latency / deadline per request + `art`.
    """

    mean_ms: float
    p99_ms: float
    art: float
    index: float
    error_ratio: float
    requests: int

    def over(self, base: Score) -> Score:
        """Each figure divided by the base's; the error ratio and the requests stay."""
        return Score(
            self.mean_ms / base.mean_ms,
            self.p99_ms / base.p99_ms,
            self.art / base.art if base.art > 0 else float("nan"),
            self.index / base.index,
            self.error_ratio,
            self.requests,
        )


def judge(
    rule: Rule, scenario: StudyScenario, topology: Topology, seeds: Sequence[int], interval_s: float = 1.0
) -> Score:
    """Plays the scenario once per seed, without its first 10 s."""
    scripts = [scenario.script(topology, seed) for seed in seeds]
    batch = SimulatedBatch(topology, len(seeds), rule.method, options=rule.options)
    for index, script in enumerate(scripts):
        batch.reset(index, script)
    steer = rule.steering() if rule.steering else None
    groups = len(topology.groups)
    totals = _Totals(np.zeros((groups, SIZE)), np.zeros(groups), np.zeros(groups))
    window: WindowBatch | None = None
    for tick in range(round(scenario.duration_s / interval_s)):
        if steer is not None:
            steer(batch, scripts, window)
        window = batch.advance(interval_s)
        if (tick + 1) * interval_s > WARM_UP_S:
            totals.add(window)
    return totals.score(deadlines_s(scenario, topology))


@dataclass(frozen=True)
class _Totals:
    counts: FloatArray
    seconds: FloatArray
    failed: FloatArray

    def add(self, window: WindowBatch) -> None:
        self.counts[...] += window.latency_counts.sum(axis=0)
        self.seconds[...] += window.latency_s_sum.sum(axis=0)
        self.failed[...] += window.failed.sum(axis=0)

    def score(self, deadline_s: FloatArray) -> Score:
        answered, failed = float(self.counts.sum()), float(self.failed.sum())
        total = answered + failed
        lateness = np.maximum(midpoints_s() - deadline_s[:, None], 0.0) / deadline_s[:, None]
        error_lateness = np.maximum(ERROR_LATENCY_S - deadline_s, 0.0) / deadline_s
        art = float((self.counts * lateness).sum() + self.failed @ error_lateness) / total
        relative = float(((self.seconds + self.failed * ERROR_LATENCY_S) / deadline_s).sum()) / total
        return Score(
            mean_ms=float(self.seconds.sum()) / answered * 1e3,
            p99_ms=percentile_ms(self.counts.sum(axis=0).astype(np.int64), 99),
            art=art,
            index=relative + art,
            error_ratio=failed / total,
            requests=int(total),
        )


@lru_cache(maxsize=64)
def _deadlines(nominal: Script, topology: Topology) -> FloatArray:
    batch = SimulatedBatch(topology, 1, "round_robin")
    batch.reset(0, nominal)
    batch.advance(WARM_UP_S)
    return derive_deadlines([batch.advance(_OBSERVED_S - WARM_UP_S).window(0)], topology).seconds


def deadlines_s(scenario: StudyScenario, topology: Topology) -> FloatArray:
    """``[groups]`` from 300 s of equal round robin in nominal conditions: no disturbance, no surge, no overload."""
    nominal = replace(
        scenario,
        disturbance=disturbances.none,
        load_shape=disturbances.steady,
        load=_OBSERVED_LOAD.get(scenario.name, scenario.load),
        duration_s=_OBSERVED_S,
        load_balancers=1,
    )
    return _deadlines(nominal.script(topology, _OBSERVED_SEED), topology)
