"""What a change of balancing would do to a calibrated system: prediction intervals for a stated measuring time.

Pairs are simulated: one play under what balances today, one under what is proposed, with other random draws, each as
long as the stated measuring time, on parameters drawn from the calibration's ensemble. The ratios of the pairs scatter
as those of two live measurements of that length would; the interval holds 95 % of them. It is widened by the
calibration's own error on held-out windows, as an independent error: half-widths of logarithms add as squares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.histogram import midpoints_s, percentile_ms
from actuators.contract.script import Script
from actuators.contract.topology import Topology
from actuators.options import Options
from envs.calibration.replay import script_of
from envs.calibration.result import MEAN_BAR, P99_BAR, Calibration, Parameters
from envs.scenarios.calibrated import played
from envs.study.judge import Totals, play
from envs.study.promise_options import PromiseOptions
from envs.study.rules import Rule

Metric = Literal["mean_ms", "p99_ms", "late_per_hour"]
METRICS: tuple[Metric, ...] = ("mean_ms", "p99_ms", "late_per_hour")
Conclusion = Literal["change", "stay", "no_promise", "watch_longer"]
"""`no_promise`: the fitted simulator does not answer as these servers do, so its prediction says nothing about them."""

LEAST_GAIN = 0.03
"""A smaller gain in the mean is not worth a change."""
MOST_HALF_WIDTH = 0.10
"""Half-width of the mean's ratio beyond which nothing is promised."""
_TAIL = 0.025
_FIRST_SEED = 2**31 + 2**30 + 2**29
"""Training, early stopping, proofs and validation use seeds below."""


class Interval(Options):
    """A figure and the range that holds 95 % of its values."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


class Comparison(Options):
    """One figure today and with the proposal."""

    metric: Metric
    today: Interval
    new: Interval
    ratio: Interval | None
    """new / today; None where today has none."""


class LoadPromise(Options):
    """The prediction at one load."""

    load: float
    """Factor on today's traffic."""
    all: tuple[Comparison, ...]
    """Over all groups, in the order of METRICS."""
    groups: dict[str, tuple[Comparison, ...]]
    """The same of every group."""

    def figure(self, metric: Metric) -> Comparison:
        return self.all[METRICS.index(metric)]


class Promise(Options):
    """The predictions of one proposal, and what follows from them."""

    proposal: str
    """Name of the proposal."""
    measure_s: float
    """Measuring time that they hold for."""
    pairs: int
    """Pairs that they rest on."""
    errors: dict[Metric, float]
    """Relative errors of the calibration on held-out windows, by which intervals of ratios were widened; those of
    `held_out_errors` where nothing was compared."""
    loads: tuple[LoadPromise, ...]
    """At today's traffic, and at more."""
    conclusion: Conclusion
    """Whether to change."""
    reasons: tuple[str, ...]
    """Why, in sentences."""


@dataclass(frozen=True)
class Plan:
    """The scripts of the simulated measurements: two of each pair, equal but for their random draws."""

    calibration: Calibration
    topology: Topology
    options: PromiseOptions
    seed: int

    @property
    def duration_s(self) -> float:
        return self.options.warm_up_s + self.options.measure_s

    def scripts(self, load: float, side: Literal[0, 1]) -> list[Script]:
        """One per pair. Every member of the ensemble is played about as often; arrivals begin anywhere."""
        generator = np.random.default_rng([self.seed, 0x9A1])
        shifts_s = generator.uniform(0, self.calibration.observed.seconds, self.options.pairs)
        first = _FIRST_SEED + 1_000_003 * self.seed
        return [
            self._script(self._member(pair), float(shifts_s[pair]), load, first + 2 * pair + side)
            for pair in range(self.options.pairs)
        ]

    def _member(self, pair: int) -> Parameters:
        members = self.calibration.ensemble
        return members[pair % len(members)]

    def _script(self, member: Parameters, shift_s: float, load: float, seed: int) -> Script:
        length_s = self.calibration.observed.seconds
        arrivals = [played(entry, length_s, self.duration_s, shift_s, load) for entry in self.calibration.arrivals]
        return script_of(
            member, arrivals, self.topology, seed=seed, duration_s=self.duration_s,
            load_balancers=self.calibration.load_balancers,
        )  # fmt: skip


def measure(
    rule: Rule,
    plan: Plan,
    load: float,
    side: Literal[0, 1],
    threads: int = 1,
    report: Callable[[float], None] = lambda fraction: None,
) -> Totals:
    """Simulated measurements under a rule; equal arguments give equal numbers."""
    return play(
        rule, plan.scripts(load, side), plan.topology, plan.duration_s,
        warm_up_s=plan.options.warm_up_s, threads=threads, report=report,
    )  # fmt: skip


def compare(
    today: Totals, new: Totals, plan: Plan, load: float, deadlines_s: FloatArray, unknown: float = 0.0
) -> LoadPromise:
    """The prediction at one load from the measurements of both sides.

    Args:
        deadlines_s: ``[groups]``.
        unknown: relative error of the recorded response times, by which intervals are widened as well.
    """
    measure_s = plan.options.measure_s
    errors = {metric: float(np.hypot(error, unknown)) for metric, error in held_out_errors(plan.calibration).items()}
    before, after = (figures(totals, deadlines_s, measure_s) for totals in (today, new))

    def rows(column: int) -> tuple[Comparison, ...]:
        return tuple(
            _comparison(metric, before[metric][:, column], after[metric][:, column], errors[metric])
            for metric in METRICS
        )

    groups = {group.name: rows(1 + g) for g, group in enumerate(plan.topology.groups)}
    return LoadPromise(load=load, all=rows(0), groups=groups)


def promise(proposal: str, loads: Sequence[LoadPromise], plan: Plan) -> Promise:
    """The promise that these predictions allow; the first is at today's traffic."""
    conclusion, reasons = conclude(loads[0], plan.options.measure_s)
    if not plan.calibration.compared:
        reason = "Too few held-out requests to tell whether the simulator answers as these servers do: watch longer."
        conclusion, reasons = "watch_longer", (reason,)
    return Promise(
        proposal=proposal,
        measure_s=plan.options.measure_s,
        pairs=plan.options.pairs,
        errors=held_out_errors(plan.calibration),
        loads=tuple(loads),
        conclusion=conclusion,
        reasons=reasons,
    )


def conclude(today: LoadPromise, measure_s: float) -> tuple[Conclusion, tuple[str, ...]]:
    """What follows from the prediction at today's traffic, and why."""
    mean, p99 = today.figure("mean_ms").ratio, today.figure("p99_ms").ratio
    if mean is None or p99 is None:
        return "watch_longer", ("No request was answered in the simulation.",)
    if mean.half_width > MOST_HALF_WIDTH:
        return "watch_longer", (
            f"The mean response time would be {mean.value:.2f} times today's, but in a measurement of"
            f" {measure_s / 60:g} min anything from {mean.low:.2f} to {mean.high:.2f} could come out: watch longer,"
            " or promise for a longer measuring time.",
        )
    if mean.high >= 1.0 or mean.value > 1.0 - LEAST_GAIN:
        return "stay", (
            f"The mean response time would be {mean.value:.2f} times today's ({mean.low:.2f} to {mean.high:.2f}):"
            f" no gain of at least {LEAST_GAIN:.0%} that a measurement would show.",
        )
    if p99.low > 1.0:
        return "stay", (
            f"The mean would fall, but the 99th percentile would rise: {p99.value:.2f} times today's"
            f" ({p99.low:.2f} to {p99.high:.2f}).",
        )
    return "change", (f"The mean response time falls by {1 - mean.high:.0%} to {1 - mean.low:.0%}.",)


def figures(totals: Totals, deadlines_s: FloatArray, measure_s: float) -> dict[Metric, FloatArray]:
    """Metric → ``[pairs, 1 + groups]``, all groups together first; nan where nothing was answered."""
    counts = np.concatenate([totals.counts.sum(axis=1, keepdims=True), totals.counts], axis=1)
    seconds = np.concatenate([totals.seconds.sum(axis=1, keepdims=True), totals.seconds], axis=1)
    answered = counts.sum(axis=2)
    late = (totals.counts * (midpoints_s() > deadlines_s[:, None])).sum(axis=2) + totals.failed
    late = np.concatenate([late.sum(axis=1, keepdims=True), late], axis=1)
    p99 = np.array([[percentile_ms(row.astype(np.int64), 99) for row in play] for play in counts])
    with np.errstate(invalid="ignore"):
        mean_ms = 1e3 * seconds / np.where(answered > 0, answered, np.nan)
    return {"mean_ms": mean_ms, "p99_ms": p99, "late_per_hour": late * 3600.0 / measure_s}


def held_out_errors(calibration: Calibration) -> dict[Metric, float]:
    """How far the simulator is off on held-out windows, relative; over all groups, weighted by their requests.

    The mean's is that of the mean over all requests; the p99's is the root mean square of those of the groups, and
    late requests, of which the held-out comparison knows nothing, take the p99's. Where nothing was compared they are
    the largest errors that pass: nothing says that they are smaller.
    """
    rows = calibration.compared
    if not rows:
        return {"mean_ms": MEAN_BAR, "p99_ms": P99_BAR, "late_per_hour": P99_BAR}
    requests = np.array([row.requests for row in rows], float)
    live, ours = (np.array([getattr(row, side)[0] for row in rows]) for side in ("live_ms", "simulated_ms"))
    mean = abs(float(requests @ ours / max(requests @ live, 1e-9)) - 1.0)
    p99 = float(np.sqrt(np.average([row.errors()[2] ** 2 for row in rows], weights=requests)))
    return {"mean_ms": mean, "p99_ms": p99, "late_per_hour": p99}


def _comparison(metric: Metric, today: FloatArray, new: FloatArray, error: float) -> Comparison:
    """From one value per pair and side, ``[pairs]``."""
    both = np.isfinite(today) & np.isfinite(new) & (today > 0)
    ratio = None
    # With a zero in every tenth pair a ratio says nothing.
    if both.mean() >= 0.9:
        ratio = widened(new[both] / today[both], error)
    return Comparison(metric=metric, today=_interval(today), new=_interval(new), ratio=ratio)


def _interval(values: FloatArray) -> Interval:
    known = values[np.isfinite(values)]
    if len(known) == 0:
        return Interval(value=0.0, low=0.0, high=0.0)
    low, middle, high = np.quantile(known, (_TAIL, 0.5, 1 - _TAIL))
    return Interval(value=float(middle), low=float(low), high=float(high))


def widened(ratios: FloatArray, error: float) -> Interval:
    """The interval of ratios ``[pairs]``, wider by the simulator's error of the logarithm; it may end at 0."""
    found = _interval(ratios)
    if found.value <= 0:
        return found
    above = np.hypot(np.log(found.high / found.value), error)
    high = float(found.value * np.exp(above))
    if found.low <= 0:
        return Interval(value=found.value, low=0.0, high=high)
    below = np.hypot(np.log(found.value / found.low), error)
    return Interval(value=found.value, low=float(found.value * np.exp(-below)), high=high)
