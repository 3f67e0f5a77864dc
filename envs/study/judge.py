"""Judges balancing rules on simulated scenarios, with the indices of the studies and common random numbers.

Source: docs/studies.md#how-the-studies-measure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.control import BalancingMethod
from actuators.contract.histogram import SIZE, midpoints_s, percentile_ms
from actuators.contract.script import Script
from actuators.contract.topology import Topology
from actuators.errors import ConfigError
from envs.observation.deadlines import Deadlines, derive_deadlines, failure_s
from envs.scenarios.catalogue import StudyScenario
from envs.simulator.batch import SimulatedBatch
from envs.simulator.window_batch import WindowBatch
from envs.study.rules import Rule

WARM_UP_S = 10.0
_OBSERVED_S, _OBSERVED_SEED = 300.0, 999
_ROUNDING = 1e-6
"""Share of an interval by which a window may begin too early."""


@dataclass(frozen=True)
class Score:
    """Results of the clients, over all seeds; nan where nothing was answered, or no request ended at all.

    Attributes:
        art: relative tardiness per request, a failure counted as a 1 s answer.
        index: J (docs/glossary.md#j): latency / deadline per request + `art`.
        goodput: share of all requests that were answered within their deadline.
    """

    mean_ms: float
    p99_ms: float
    art: float
    index: float
    error_ratio: float
    requests: int
    goodput: float = float("nan")

    def over(self, base: Score) -> Score:
        """Each figure divided by the base's; the error ratio, the requests and the goodput stay."""
        return Score(
            self.mean_ms / base.mean_ms,
            self.p99_ms / base.p99_ms,
            self.art / base.art if base.art > 0 else float("nan"),
            self.index / base.index,
            self.error_ratio,
            self.requests,
            self.goodput,
        )


def _unheard(fraction: float) -> None:
    """For those who do not ask how much is done."""


def judge(
    rule: Rule,
    scenario: StudyScenario,
    topology: Topology,
    seeds: Sequence[int],
    interval_s: float = 1.0,
    report: Callable[[float], None] = _unheard,
) -> Score:
    """Plays the scenario once per seed, without its first 10 s; one score of all requests.

    Args:
        report: as of `play`.
    """
    totals = _play_seeds(rule, scenario, topology, seeds, interval_s, report)
    return totals.pooled().scores(deadlines_s(scenario, topology))[0]


def judge_each(
    rule: Rule, scenario: StudyScenario, topology: Topology, seeds: Sequence[int], interval_s: float = 1.0
) -> tuple[Score, ...]:
    """As `judge`, with a score per seed."""
    return _play_seeds(rule, scenario, topology, seeds, interval_s).scores(deadlines_s(scenario, topology))


def deadlines_s(scenario: StudyScenario, topology: Topology) -> FloatArray:
    """``[groups]`` from 300 s of equal round robin in nominal conditions: no disturbance, no surge, no overload."""
    return observed(replace(scenario, load_balancers=1), topology, "round_robin").seconds


def observed(scenario: StudyScenario, topology: Topology, method: BalancingMethod) -> Deadlines:
    """What 300 s under equal weights in nominal conditions tell of response times."""
    nominal = replace(scenario.nominal(), duration_s=_OBSERVED_S)
    return _observed(nominal.script(topology, _OBSERVED_SEED), topology, method)


def play(
    rule: Rule,
    scripts: Sequence[Script],
    topology: Topology,
    duration_s: float,
    *,
    warm_up_s: float = WARM_UP_S,
    interval_s: float = 1.0,
    threads: int = 1,
    report: Callable[[float], None] = _unheard,
) -> Totals:
    """Plays every script for `duration_s`, all at once; what came of it, without the first `warm_up_s`.

    Args:
        threads: threads that simulate; the result does not depend on it.
        report: called after every interval with the share that is done, 0 to 1.
    """
    batch = SimulatedBatch(topology, len(scripts), rule.method, options=rule.options, threads=threads)
    for index, script in enumerate(scripts):
        batch.reset(index, script)
    steer = rule.steering() if rule.steering else None
    cells = (len(scripts), len(topology.groups))
    totals = Totals(np.zeros((*cells, SIZE)), np.zeros(cells), np.zeros(cells))
    window: WindowBatch | None = None
    ticks, first = round(duration_s / interval_s), _first_judged(interval_s, warm_up_s)
    for tick in range(ticks):
        if steer is not None:
            steer(batch, scripts, window)
        window = batch.advance(interval_s)
        if tick >= first:
            totals.add(window)
        report((tick + 1) / ticks)
    return totals


def check_windows(duration_s: float, interval_s: float) -> None:
    """Raises ConfigError when no whole window follows the first 10 s, of which nothing is judged."""
    first = _first_judged(interval_s, WARM_UP_S)
    if round(duration_s / interval_s) <= first:
        what = f"{duration_s:g} s have no interval of {interval_s:g} s after the first {WARM_UP_S:g} s"
        raise ConfigError(what, where="duration_s", remedy=f"play at least {(first + 1) * interval_s:g} s")


def _first_judged(interval_s: float, warm_up_s: float) -> int:
    """Number of the first window that begins after the warm-up."""
    return max(math.ceil(warm_up_s / interval_s - _ROUNDING), 0)


def _play_seeds(
    rule: Rule,
    scenario: StudyScenario,
    topology: Topology,
    seeds: Sequence[int],
    interval_s: float,
    report: Callable[[float], None] = _unheard,
) -> Totals:
    check_windows(scenario.duration_s, interval_s)
    scripts = [scenario.script(topology, seed) for seed in seeds]
    return play(rule, scripts, topology, scenario.duration_s, interval_s=interval_s, report=report)


@dataclass(frozen=True)
class Totals:
    """Sums per play and group.

    Attributes:
        counts: exact client latencies of good answers, ``[plays, groups, SIZE]``.
        seconds, failed: the sum of these, and answers with an error status, ``[plays, groups]``.
    """

    counts: FloatArray
    seconds: FloatArray
    failed: FloatArray

    def add(self, window: WindowBatch) -> None:
        self.counts[...] += window.latency_counts
        self.seconds[...] += window.latency_s_sum
        self.failed[...] += window.failed

    def pooled(self) -> Totals:
        return Totals(*(array.sum(axis=0, keepdims=True) for array in (self.counts, self.seconds, self.failed)))

    def scores(self, deadline_s: FloatArray) -> tuple[Score, ...]:
        plays = zip(self.counts, self.seconds, self.failed, strict=True)
        return tuple(_score(counts, seconds, failed, deadline_s) for counts, seconds, failed in plays)


def _score(counts: FloatArray, seconds: FloatArray, failed: FloatArray, deadline_s: FloatArray) -> Score:
    answered, failures = float(counts.sum()), float(failed.sum())
    total = answered + failures
    lateness = np.maximum(midpoints_s() - deadline_s[:, None], 0.0) / deadline_s[:, None]
    error_lateness = (failure_s(deadline_s) - deadline_s) / deadline_s
    art = _ratio((counts * lateness).sum() + failed @ error_lateness, total)
    relative = _ratio(((seconds + failed * failure_s(deadline_s)) / deadline_s).sum(), total)
    return Score(
        mean_ms=_ratio(seconds.sum(), answered) * 1e3,
        p99_ms=percentile_ms(counts.sum(axis=0).astype(np.int64), 99),
        art=art,
        index=relative + art,
        error_ratio=_ratio(failures, total),
        requests=int(total),
        goodput=_ratio((counts * (lateness <= 0)).sum(), total),
    )


def _ratio(part: float, whole: float) -> float:
    """nan of nothing: no request, or none that was answered."""
    return float(part) / whole if whole > 0 else float("nan")


@lru_cache(maxsize=64)
def _observed(nominal: Script, topology: Topology, method: BalancingMethod) -> Deadlines:
    batch = SimulatedBatch(topology, 1, method)
    batch.reset(0, nominal)
    batch.advance(WARM_UP_S)
    return derive_deadlines([batch.advance(_OBSERVED_S - WARM_UP_S).window(0)], topology)
