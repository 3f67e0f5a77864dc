"""Replays observed windows in the simulator: the same rates and weights, other parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray, IntArray
from actuators.contract.control import MAX_WEIGHT, BalancingMethod
from actuators.contract.script import RateStep, Script, ServerProfile, Stream
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from actuators.errors import DataError
from envs.calibration.arrivals import counts_of, dispersion, nearest_distribution, rate_steps
from envs.calibration.result import Arrivals, Parameters
from envs.simulator.batch import SimulatedBatch

MIN_WINDOWS = 12
WARM_UP_S = 2.0


@dataclass(frozen=True)
class Evidence:
    """Windows to compare with simulated ones; arrays ``[windows, groups, servers]``, the histogram with a last axis.

    Attributes:
        histogram: answers per bucket of `bounds_ms`, one bucket more than bounds.
        left_out: number of windows with faults or other bounds.
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
class ReplayCounts:
    """Counters of the simulated windows, summed over the replicas; axes as in `Evidence`."""

    histogram: FloatArray
    requests: FloatArray
    response_ms: FloatArray


def _too_few(windows: Sequence[Window], usable: int) -> DataError:
    """What most of the windows lack, and what helps."""
    faults = Counter(
        fault.kind for window in windows for fault in {fault.kind: fault for fault in window.faults}.values()
    )
    most = f"record {MIN_WINDOWS + 1} or more readings"
    if not windows:
        return DataError("one reading makes no window", where="snapshots", remedy=most)
    if not faults or faults.most_common(1)[0][1] < len(windows) / 2:
        return DataError(f"{usable} usable windows", where="snapshots", remedy=f"record {MIN_WINDOWS} or more")
    kind, count = faults.most_common(1)[0]
    fault = next(fault for window in windows for fault in window.faults if fault.kind == kind)
    place = f" (server {fault.server} in group {fault.group})" if fault.server else ""
    remedy = "record again, in order, with one NGINX whose clock goes on" if kind == "gap" else most
    what = f"{count} of {len(windows)} windows cannot be used: {fault.detail}{place}"
    return DataError(what, where="snapshots", remedy=remedy)


def gather(windows: Sequence[Window], topology: Topology) -> Evidence:
    """The usable windows as arrays.

    Raises:
        DataError: fewer than 12 usable windows, no histogram in them, or a group without requests.
    """
    usable = [window for window in windows if window.usable and window.duration_s > 0]
    if len(usable) < MIN_WINDOWS:
        raise _too_few(windows, len(usable))
    bounds = Counter(window.bounds_ms for window in usable if window.bounds_ms)
    if not bounds:
        remedy = "record with vts' histogram buckets (vhost_traffic_status_histogram_buckets)"
        raise DataError(f"none of {len(usable)} usable windows has a histogram", where="snapshots", remedy=remedy)
    common = bounds.most_common(1)[0][0]
    kept = [window for window in usable if window.bounds_ms == common]
    if len(kept) < MIN_WINDOWS:
        what = f"{len(kept)} usable windows with the same histogram buckets"
        raise DataError(what, where="snapshots", remedy=f"record {MIN_WINDOWS} or more without changing them")
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


def within_limits(weight: IntArray, topology: Topology) -> IntArray:
    """Weights 1…100 in the same proportions ``[groups, servers]``, because NGINX allows larger ones."""
    most = np.maximum(weight.max(axis=1, keepdims=True), 1)
    scaled = np.where(most > MAX_WEIGHT, np.rint(weight * MAX_WEIGHT / most), weight)
    return np.where(topology.mask, np.clip(scaled, 1, MAX_WEIGHT), 0).astype(np.int64)


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
    """The script with these arrivals and servers. `begins_s`: the first rate lasts so many seconds longer."""
    workers, queue = parameters.workers, max(512, 8 * parameters.workers)
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
        servers=tuple(ServerProfile(tuple(map(float, row)), workers, queue) for row in parameters.speeds.T),
        mean_service_s=tuple(map(float, parameters.mean_service_s)),
        service_cv=parameters.service_cv,
        service_distribution=parameters.service_distribution,
        load_balancers=load_balancers,
        overhead_s=parameters.overhead_ms / 1e3,
    )


class Replay:
    """Replays the evidence with given parameters; equal parameters give equal answers (common random numbers).

    Args:
        replicas: number of simulated systems, each with another seed, whose answers are added.
    """

    def __init__(
        self, evidence: Evidence, method: BalancingMethod, load_balancers: int, replicas: int, seed: int
    ) -> None:
        self._evidence, self._method, self._load_balancers = evidence, method, load_balancers
        self._seeds = [seed * 1000 + replica for replica in range(replicas)]
        self.runs = 0

    def play(self, parameters: Parameters) -> ReplayCounts:
        """The simulated answers in every window."""
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
        return ReplayCounts(
            np.array([w.latency_histogram.sum(axis=0) for w in seen], float),
            np.array([w.requests.sum(axis=0) for w in seen], float),
            np.array([w.response_ms_sum.sum(axis=0) for w in seen], float),
        )

    def _weigh(self, batch: SimulatedBatch, window: Window) -> None:
        """A window holds the weights at its end, which were set at its beginning."""
        weight = within_limits(window.weight, window.topology)
        batch.set_weights(np.broadcast_to(weight, (batch.size, *weight.shape)), _out_of_rotation(window))


def _out_of_rotation(window: Window) -> NDArray[np.bool_]:
    """``[groups, servers]``: down, or a backup in a group that has another server up."""
    if window.backup is None:
        return window.down
    first = window.topology.mask & ~window.down & ~window.backup
    return window.down | (window.backup & first.any(axis=1, keepdims=True))
