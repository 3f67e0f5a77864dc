"""Observed windows, played again in the simulator: the same rates and weights, other parameters.

Arrivals from windows: piecewise constant rates per group, and which distribution the gaps have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.control import MAX_WEIGHT, BalancingMethod
from actuators.contract.script import ArrivalDistribution, RateStep, Script, ServerProfile, Stream
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from actuators.errors import DataError
from envs.calibration.result import Arrivals, Parameters
from envs.simulator.batch import SimulatedBatch

DISPERSIONS: dict[ArrivalDistribution, float] = {"fixed": 0.02, "normal": 0.24, "exponential": 1.0, "zipf": 28.0}
"""Squared coefficient of variation of the gaps, which a long window's count has as variance / mean. `fixed` is not 0:
service blurs what is counted. `zipf`: exponent 2, cut at 1000."""

_CUT, _MEAN_BELOW_CUT = 14.6, 0.925
"""Squared normal deviates above 14.6 times their median are 1 % of all; the mean of the others is 0.925."""
_CHANGE_SIGMAS = 4.0
_LONGEST_STEP_S = 10.0
_LEAST_COUNT = 5.0


def dispersion(counts: FloatArray, durations_s: FloatArray) -> float:
    """Variance / mean of a window's count, from neighbouring windows, so that slow or rare changes do not matter.

    Half the squared difference of two Poisson counts has their mean as expectation; the few pairs far above the
    median, those around a change of rate, do not count. 1 when fewer than five pairs have five requests or more.
    """
    even = counts * durations_s.mean() / durations_s
    pairs = even[:-1] + even[1:]
    seen = pairs >= 2 * _LEAST_COUNT
    if seen.sum() < 5:
        return 1.0
    squares = np.diff(even)[seen] ** 2 / pairs[seen]
    return float(squares[squares <= _CUT * np.median(squares)].mean() / _MEAN_BELOW_CUT)


def nearest_distribution(found: float) -> ArrivalDistribution:
    """The kind of gaps whose dispersion is nearest on a logarithmic scale."""
    return min(DISPERSIONS, key=lambda kind: abs(np.log(DISPERSIONS[kind] / max(found, 1e-3))))


def rate_steps(counts: FloatArray, durations_s: FloatArray, spread: float = 1.0) -> tuple[tuple[float, float], ...]:
    """(start, rate) pairs: windows whose counts differ by chance only share a step, none longer than 10 s.

    Args:
        counts, durations_s: ``[windows]``, one after the other.
        spread: the counts' `dispersion`.
    """
    steps: list[tuple[float, float]] = []
    start_s = end_s = count = 0.0
    for here, duration_s in zip(counts, durations_s, strict=True):
        length_s = end_s - start_s
        if length_s > 0:
            expected = count / length_s * duration_s
            sigma = np.sqrt(max(spread, 1.0) * max(expected, 1.0) * (1 + duration_s / length_s))
            if abs(here - expected) > _CHANGE_SIGMAS * sigma or length_s + duration_s > _LONGEST_STEP_S:
                steps.append((start_s, float(count / length_s)))
                start_s, count = float(end_s), 0.0
        count, end_s = count + here, end_s + duration_s
    if end_s > start_s:
        steps.append((start_s, float(count / (end_s - start_s))))
    return tuple(steps)


def counts_of(windows: Sequence[Window]) -> tuple[FloatArray, FloatArray]:
    """Answers per window and group ``[windows, groups]``, and the windows' lengths in seconds ``[windows]``."""
    counts = np.array([window.requests.sum(axis=1) for window in windows], float)
    return counts, np.array([window.duration_s for window in windows])


MIN_WINDOWS = 12
WARM_UP_S = 2.0


@dataclass(frozen=True)
class Evidence:
    """Windows that can be compared with simulated ones; arrays ``[windows, groups, servers]`` but for the last axis.

    Attributes:
        histogram: answers by `bounds_ms`, one column more than bounds.
        left_out: windows with faults or other bounds.
    """

    topology: Topology
    windows: tuple[Window, ...]
    arrivals: tuple[Arrivals, ...]
    bounds_ms: tuple[int, ...]
    histogram: FloatArray
    requests: FloatArray
    response_ms: FloatArray
    left_out: int

    @property
    def durations_s(self) -> FloatArray:
        return np.array([window.duration_s for window in self.windows])


@dataclass(frozen=True)
class Answers:
    """What simulated windows counted, summed over the replicas; axes as in Evidence."""

    histogram: FloatArray
    requests: FloatArray
    response_ms: FloatArray


def gather(windows: Sequence[Window], topology: Topology) -> Evidence:
    """The usable windows as arrays.

    Raises:
        DataError: fewer than 12 usable windows, no histogram in them, or a group without requests.
    """
    usable = [window for window in windows if window.usable and window.duration_s > 0]
    bounds = Counter(window.bounds_ms for window in usable if window.bounds_ms)
    if not bounds:
        remedy = "record with vts' histogram buckets (vhost_traffic_status_histogram_buckets)"
        raise DataError(
            f"none of {len(windows)} windows is usable and has a histogram", where="snapshots", remedy=remedy
        )
    common = bounds.most_common(1)[0][0]
    kept = [window for window in usable if window.bounds_ms == common]
    if len(kept) < MIN_WINDOWS:
        raise DataError(f"{len(kept)} usable windows", where="snapshots", remedy=f"record {MIN_WINDOWS} or more")
    counts, durations_s = counts_of(kept)
    silent = [group.name for group, n in zip(topology.groups, counts.sum(axis=0), strict=True) if n == 0]
    if silent:
        raise DataError("no requests", where=f"group {silent[0]}", remedy="record while it has traffic")
    spreads = [dispersion(column, durations_s) for column in counts.T]
    arrivals = tuple(
        Arrivals(
            distribution=nearest_distribution(spread), dispersion=spread, steps=rate_steps(column, durations_s, spread)
        )
        for spread, column in zip(spreads, counts.T, strict=True)
    )
    histogram = np.array([window.latency_histogram for window in kept], float)
    requests = np.array([window.requests for window in kept], float)
    response_ms = np.array([window.response_ms_sum for window in kept], float)
    left_out = len(windows) - len(kept)
    return Evidence(topology, tuple(kept), arrivals, common, histogram, requests, response_ms, left_out)


def script_of(
    parameters: Parameters,
    arrivals: Sequence[Arrivals],
    topology: Topology,
    *,
    seed: int,
    duration_s: float,
    load_balancers: int = 1,
    name: str = "calibrated",
    begins_s: float = 0.0,
) -> Script:
    """The script in which these requests meet such servers. `begins_s`: the first rate holds so much longer."""
    streams = tuple(
        Stream(
            group.request_type,
            tuple(RateStep(at_s + begins_s if at_s > 0 else 0.0, rate, a.distribution) for at_s, rate in a.steps),
        )
        for group, a in zip(topology.groups, arrivals, strict=True)
    )
    return Script(
        name=name,
        seed=seed,
        duration_s=duration_s,
        streams=streams,
        servers=tuple(ServerProfile(tuple(map(float, row)), parameters.workers) for row in parameters.speeds.T),
        mean_service_s=tuple(map(float, parameters.mean_service_s)),
        service_cv=parameters.service_cv,
        load_balancers=load_balancers,
        overhead_s=parameters.overhead_ms / 1e3,
    )


class Replay:
    """Plays the evidence with given parameters; equal parameters give equal answers (common random numbers).

    Args:
        replicas: simulated systems with seeds of their own, for a smoother result.
    """

    def __init__(
        self, evidence: Evidence, method: BalancingMethod, load_balancers: int, replicas: int, seed: int
    ) -> None:
        self._evidence, self._method, self._load_balancers = evidence, method, load_balancers
        self._seeds = [seed * 1000 + replica for replica in range(replicas)]
        self.runs = 0

    def play(self, parameters: Parameters) -> Answers:
        """The answers in every window."""
        evidence, self.runs = self._evidence, self.runs + 1
        batch = SimulatedBatch(evidence.topology, len(self._seeds), self._method, evidence.bounds_ms)
        duration_s = WARM_UP_S + float(evidence.durations_s.sum()) + 1.0
        for index, seed in enumerate(self._seeds):
            script = script_of(
                parameters, evidence.arrivals, evidence.topology, seed=seed, duration_s=duration_s,
                load_balancers=self._load_balancers, begins_s=WARM_UP_S,
            )  # fmt: skip
            batch.reset(index, script)
        self._weigh(batch, evidence.windows[0])
        batch.advance(WARM_UP_S)
        seen = []
        for window in evidence.windows:
            self._weigh(batch, window)
            seen.append(batch.advance(window.duration_s))
        return Answers(
            np.array([w.latency_histogram.sum(axis=0) for w in seen], float),
            np.array([w.requests.sum(axis=0) for w in seen], float),
            np.array([w.response_ms_sum.sum(axis=0) for w in seen], float),
        )

    def _weigh(self, batch: SimulatedBatch, window: Window) -> None:
        """A window shows the weights at its end; they were put in force at its beginning."""
        weight = np.clip(window.weight, 1, MAX_WEIGHT)
        batch.set_weights(np.broadcast_to(weight, (batch.size, *weight.shape)), window.down)
