"""A plain verdict per group of a calibration: whether it says enough to judge weights.

Response times follow the load where the logarithm of a group's mean response time rises with the load of its servers.
They do not where the load varied, the slope of the regression has a 95 % interval that includes 0, and that interval
excludes the slope that the fitted simulator shows under the same load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from actuators.options import Options
from envs.calibration.options import FitOptions
from envs.calibration.replay import Replay, gather
from envs.calibration.result import MEAN_BAR, P99_BAR, Calibration, HeldOutComparison
from envs.observation.precision import Precision

Judgement = Literal["good", "little_traffic", "no_queueing", "no_match"]
SENTENCES: dict[Judgement, str] = {
    "good": "good enough to judge weights",
    "little_traffic": "too little traffic to tell",
    "no_queueing": "response times do not follow load: probably not queueing",
    "no_match": "the fitted simulator does not match these servers",
}
WIDEST = 0.10
"""Relative half-width of a server's mean response time beyond which there was too little traffic."""
FEW_HELD_OUT = 400
"""Fewer held-out requests than this cannot show that a p99 is wrong: 4 of them lie above it."""
LEAST_VARIATION = 0.05
"""Standard deviation of the load, relative to its mean, below which nothing follows from a slope of 0."""
BATCH_S = 5.0
LEAST_BATCHES = 12


@dataclass(frozen=True)
class Slope:
    """Change of a group's log response time per change of its servers' load by their mean load.

    Attributes:
        low, high: 95 % interval.
        variation: standard deviation of the load relative to its mean.
    """

    value: float
    low: float
    high: float
    variation: float

    def when_doubled(self) -> tuple[float, float, float]:
        """Change of the response time, relative, from the mean load to twice that: `value`, `low` and `high`."""
        value, low, high = (float(np.expm1(slope)) for slope in (self.value, self.low, self.high))
        return value, low, high


class GroupVerdict(Options):
    """The verdict on one group."""

    group: str
    """Name of the group."""
    judgement: Judgement
    """What it comes to."""
    detail: str = ""
    """The figures behind it, in words."""
    imprecision: float | None = None
    """Relative half-width of the mean response time of its least known server, where that is why there was too little
    traffic to tell."""

    @property
    def sentence(self) -> str:
        return SENTENCES[self.judgement]


def verdicts(
    windows: Sequence[Window],
    topology: Topology,
    calibration: Calibration,
    known: Precision,
    options: FitOptions,
    seed: int,
) -> tuple[GroupVerdict, ...]:
    """One verdict per group, in the topology's order.

    Args:
        windows: of the recording that was calibrated on.
        known: precision of the same windows.
        options: as the calibration was made with.
    """
    evidence = gather(windows, topology)
    answers = Replay(evidence, options.method, options.load_balancers, options.replicas, seed).play(
        calibration.parameters
    )
    live = load_slopes(evidence.requests, evidence.response_ms, evidence.durations_s, topology)
    ours = load_slopes(answers.requests, answers.response_ms, evidence.durations_s, topology)
    held_out = {row.group: row for row in calibration.held_out if not row.server}
    widest = known.of_groups()
    return tuple(
        _verdict(group.name, float(widest[g]), live[g], ours[g], held_out.get(group.name))
        for g, group in enumerate(topology.groups)
    )


def load_slopes(
    requests: FloatArray, response_ms: FloatArray, durations_s: FloatArray, topology: Topology
) -> tuple[Slope | None, ...]:
    """The slope of every group; None with too few batches or without variation.

    Args:
        requests, response_ms: ``[windows, groups, servers]``; durations_s: ``[windows]``.
    """
    batch = (np.cumsum(durations_s) - durations_s) // BATCH_S
    _, first = np.unique(batch, return_index=True)
    counts, times = np.add.reduceat(requests, first), np.add.reduceat(response_ms, first)
    seconds = np.add.reduceat(durations_s, first)
    return tuple(
        _slope(counts[:, g].sum(axis=1), times[:, g].sum(axis=1), counts[:, :, mask].sum(axis=(1, 2)) / seconds)
        for g, mask in enumerate(topology.mask)
    )


def _slope(requests: FloatArray, response_ms: FloatArray, load_rps: FloatArray) -> Slope | None:
    """Weighted least squares of log(response time) on the load relative to its mean; weights: requests."""
    # The module is imported with the options of `calibrate`, whose help must answer at once.
    from scipy.special import stdtrit  # noqa: PLC0415

    kept = (requests > 0) & (response_ms > 0)
    n = int(kept.sum())
    if n < LEAST_BATCHES:
        return None
    weight = requests[kept] / requests[kept].mean()
    x, y = load_rps[kept] / load_rps[kept].mean(), np.log(response_ms[kept] / requests[kept])
    centred_x, centred_y = x - np.average(x, weights=weight), y - np.average(y, weights=weight)
    spread = float((weight * centred_x**2).sum())
    if spread <= 1e-9:
        return None
    value = float((weight * centred_x * centred_y).sum() / spread)
    residual = centred_y - value * centred_x
    # White's estimator: batches with few requests scatter more.
    error = float(np.sqrt(((weight * centred_x * residual) ** 2).sum() * n / (n - 2))) / spread
    half = float(stdtrit(n - 2, 0.975)) * error
    return Slope(value, value - half, value + half, float(np.std(x)))


def _verdict(
    group: str, widest: float, live: Slope | None, ours: Slope | None, held_out: HeldOutComparison | None
) -> GroupVerdict:
    if widest > WIDEST or held_out is None:
        sure = bool(np.isfinite(widest))
        detail = "a server's mean response time is " + (f"known to ±{widest:.0%}" if sure else "unknown")
        known = widest if sure and held_out is not None else None
        return GroupVerdict(group=group, judgement="little_traffic", detail=detail, imprecision=known)
    if live is not None and ours is not None and _ignores_load(live, ours):
        value, low, high = live.when_doubled()
        detail = (
            f"response time changes by {value:+.0%} ({low:+.0%} to {high:+.0%}) when the load doubles,"
            f" in the simulator by {ours.when_doubled()[0]:+.0%}"
        )
        return GroupVerdict(group=group, judgement="no_queueing", detail=detail)
    mean, _, p99 = held_out.errors()
    detail = f"simulated mean {mean:+.1%}, p99 {p99:+.1%} on {held_out.requests} held-out requests"
    sure = held_out.requests >= FEW_HELD_OUT
    if held_out.within or (abs(mean) <= MEAN_BAR and not sure):
        return GroupVerdict(group=group, judgement="good", detail=detail)
    judgement: Judgement = "no_match" if sure else "little_traffic"
    return GroupVerdict(group=group, judgement=judgement, detail=f"{detail} (±{MEAN_BAR:.0%} and ±{P99_BAR:.0%} pass)")


def _ignores_load(live: Slope, ours: Slope) -> bool:
    varied = live.variation >= LEAST_VARIATION
    return varied and live.low <= 0 <= live.high and not live.low <= ours.value <= live.high and ours.value > 0
