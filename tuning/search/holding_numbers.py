"""Searches order, θ, slots, refuse factor and weights of late binding together for one recorded system, simulated, and
judges what it has found.

Trials of one search play the same draws with the same random numbers. The best of each search is compared with the
numbers that the search began with, and with `expected_delay`, on draws that no search has seen. Every trial is kept as
it ends: a search that was interrupted goes on, and ends as if it had not been.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, get_args

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from actuators.contract.arrays import FloatArray
from actuators.contract.histogram import SIZE, midpoints_s
from actuators.contract.late_binding import HoldOrder, LateBindingNumbers, LateBindingPlan
from actuators.contract.script import Script
from envs.calibration.result import Calibration
from envs.calibration.tuned_holding import TunedHolding
from envs.estimators.registry import DEFAULT_ESTIMATOR
from envs.observation.deadlines import failure_s
from envs.scenarios.calibrated import calibrated
from envs.scenarios.catalogue import randomised
from envs.simulator.batch import SimulationOptions
from envs.study.judge import Totals, play
from envs.study.rules import Learning, Rule, held
from tuning.search.holding_options import HoldingObjective, HoldingSearchOptions
from tuning.search.trials import CHOICE, HELD_OUT, SEEDS, Gain, Searched, Space, Trials, best_of_each, paired_gain

SPACE: dict[str, BaseDistribution] = {
    "order": CategoricalDistribution(get_args(HoldOrder)),
    "theta": FloatDistribution(1.0, 6.0, log=True),
    "slots_per_worker": FloatDistribution(1.0, 4.0, log=True),
    "waiting_weight": FloatDistribution(0.0, 1.0),
    "late_weight": FloatDistribution(1.0, 8.0, log=True),
    "refuses": CategoricalDistribution((False, True)),
    "refuse_factor": FloatDistribution(0.3, 6.0, log=True),
}
"""What is searched; `refuse_factor` counts only where `refuses`, and the two weights under the order `shortest`."""
_FIRST_FACTOR = 1.0


@dataclass(frozen=True, eq=False)
class HeldSystem:
    """The system whose numbers are searched.

    Attributes:
        plan: slots, deadlines, importance, and the numbers to begin with.
        workers: requests that a server is believed to serve at once.
    """

    calibration: Calibration
    plan: LateBindingPlan
    workers: float

    def rule(self, numbers: LateBindingNumbers | None) -> Rule:
        """Late binding with these numbers; `expected_delay` for None. Raises ConfigError for unknown names."""
        learning = Learning(DEFAULT_ESTIMATOR, workers=self.workers)
        # Workers of one NGINX share what a method in memory counts.
        options = SimulationOptions(workers_sharing_memory=self.calibration.load_balancers)
        if numbers is None:
            return learning.rule(options)
        topology = self.calibration.topology
        believed = np.full(len(topology.servers), self.workers)
        plan = self.plan.model_copy(update={"numbers": numbers})
        return held(plan.binding(topology, self.deadlines_s, believed), learning, options)

    @property
    def deadlines_s(self) -> FloatArray:
        """``[groups]``, as given or of the calibration; nan for unknown."""
        names, known = self.calibration.groups, self.calibration.deadlines_s
        found = np.full(len(names), np.nan) if known is None else known
        return np.array([self.plan.deadlines_ms.get(name, 1e3 * found[g]) / 1e3 for g, name in enumerate(names)])

    def draws(self, first: int, count: int, options: HoldingSearchOptions) -> list[Script]:
        """The system within the uncertainty of its calibration, under other parts of its load."""
        twin = replace(calibrated(self.calibration), load_factor=options.load_factor)
        drawn = randomised(twin, options.seconds)
        return [drawn.script(self.calibration.topology, first + number) for number in range(count)]


@dataclass(frozen=True, eq=False)
class Played:
    """Figures per play and group, ``[plays, groups]``; nan where no request came.

    Attributes:
        mean_s, p99_s: refused and failed requests count as answers after 1 s or twice their deadline, the longer one.
        goodput: share of all that were answered in time.
        refused: share of all that were refused or failed.
    """

    mean_s: FloatArray
    p99_s: FloatArray
    goodput: FloatArray
    refused: FloatArray

    @classmethod
    def of(cls, totals: Totals, deadlines_s: FloatArray) -> Played:
        counts, failed = totals.counts, totals.failed
        every = counts.sum(axis=2) + failed
        with np.errstate(invalid="ignore"):
            mean_s = (totals.seconds + failed * failure_s(deadlines_s)) / np.where(every > 0, every, np.nan)
            good = (counts * (midpoints_s() <= deadlines_s[:, None])).sum(axis=2) / np.where(every > 0, every, np.nan)
            refused = failed / np.where(every > 0, every, np.nan)
        with_failed = counts.copy()
        at = np.minimum(np.searchsorted(midpoints_s(), failure_s(deadlines_s)), SIZE - 1)
        with_failed[:, np.arange(len(at)), at] += failed
        reached = np.cumsum(with_failed, axis=2) >= np.ceil(0.99 * every)[..., None]
        p99_s = midpoints_s()[np.minimum(reached.argmax(axis=2), SIZE - 1)]
        return cls(mean_s, np.where(every > 0, np.maximum(p99_s, 1e-6), np.nan), good, refused)

    def over(self, base: Played, wanted: HoldingObjective, groups: Sequence[str]) -> FloatArray:
        """``[plays]``: the objective, which is 0 for the base's figures."""
        each = (
            wanted.mean * np.log(base.mean_s / self.mean_s) + wanted.p99 * np.log(base.p99_s / self.p99_s)
            + wanted.goodput * (self.goodput - base.goodput)
        )  # fmt: skip
        weights = np.array([wanted.groups.get(name, 1.0) for name in groups])
        weights = np.where(np.isnan(each), 0.0, weights)
        total = weights.sum(axis=1)
        found: FloatArray = (np.nan_to_num(each) * weights).sum(axis=1) / np.where(total > 0, total, 1.0)
        return found


@dataclass(frozen=True, eq=False)
class HoldingJudged(Searched[LateBindingNumbers]):
    """What the searches have found, on held-out draws.

    Attributes:
        played: of the chosen ones, of the first ones, and of `expected_delay`.
        over_delay: of the chosen ones, or of the first ones without a gain, over `expected_delay`.
    """

    played: tuple[Played, Played, Played]
    over_delay: Gain


def search_all(
    system: HeldSystem, wanted: HoldingObjective, options: HoldingSearchOptions, seed: int, threads: int,
    trials: Trials, report: Callable[[str, float], None],
) -> HoldingJudged:  # fmt: skip
    """Searches, chooses and judges.

    Args:
        threads: threads that simulate; the result does not depend on it.
        report: called after every trial with what is known and the share of the work that is done.
    """
    judge = _Judge(system, wanted, options, threads)

    def scoring(search: int) -> Callable[[LateBindingNumbers], float]:
        return judge.scoring(system.draws(seed * SEEDS + search * options.draws, options.draws, options))

    found = best_of_each(
        _space(system.plan.numbers), scoring, options.searches, options.trials, seed, trials,
        lambda text, done: report(text, 0.9 * done),
    )  # fmt: skip
    report("judging on held-out systems", 0.9)
    return judge.of(found, seed)


def tuned_holding(system: HeldSystem, judged: HoldingJudged, seed: int) -> TunedHolding:
    """The result: without a gain, the numbers that the search began with."""
    gain, over = judged.gains[judged.chosen], judged.over_delay
    return TunedHolding(
        numbers=judged.found[judged.chosen] if judged.gained else system.plan.numbers, groups=system.calibration.groups,
        gained=judged.gained, gain=gain.mean, low=gain.low, high=gain.high,
        over_expected_delay=(over.mean, over.low, over.high), draws=len(judged.played[0].mean_s), seed=seed,
    )  # fmt: skip


def numbers_with(base: LateBindingNumbers, params: Mapping[str, Any]) -> LateBindingNumbers:
    """These numbers in the place of the base's."""
    values = dict(params)
    refuses = values.pop("refuses", False)
    values["refuse_factor"] = values["refuse_factor"] if refuses else None
    return LateBindingNumbers(**{**base.model_dump(), **values})


class _Judge:
    """Plays numbers on draws."""

    def __init__(
        self, system: HeldSystem, wanted: HoldingObjective, options: HoldingSearchOptions, threads: int
    ) -> None:
        self.system, self.wanted, self.options, self._threads = system, wanted, options, threads

    def play(self, scripts: Sequence[Script], numbers: LateBindingNumbers | None) -> Played:
        """None for `expected_delay`."""
        system, topology = self.system, self.system.calibration.topology
        totals = play(system.rule(numbers), scripts, topology, self.options.seconds, threads=self._threads)
        return Played.of(totals, system.deadlines_s)

    def score(self, played: Played, base: Played) -> FloatArray:
        """``[plays]``."""
        return played.over(base, self.wanted, self.system.calibration.groups)

    def scoring(self, scripts: Sequence[Script]) -> Callable[[LateBindingNumbers], float]:
        """The mean score of numbers on these draws over the numbers to begin with."""
        first = self.system.plan.numbers

        @cache
        def base() -> Played:
            # Played when the first score is asked for: a search that has ended before asks for none.
            return self.play(scripts, first)

        def score(numbers: LateBindingNumbers) -> float:
            played = base() if numbers == first else self.play(scripts, numbers)
            return float(self.score(played, base()).mean())

        return score

    def of(self, found: Sequence[LateBindingNumbers], seed: int) -> HoldingJudged:
        """On held-out draws."""
        first, count, chosen = self.system.plan.numbers, self.options.held_out, 0
        if len(found) > 1:
            score = self.scoring(self.system.draws(seed * SEEDS + CHOICE, count, self.options))
            chosen = int(np.argmax([score(numbers) for numbers in found]))
        scripts = self.system.draws(seed * SEEDS + HELD_OUT, count, self.options)
        base, delayed = (self.play(scripts, numbers) for numbers in (first, None))
        played = [base if numbers == first else self.play(scripts, numbers) for numbers in found]
        gains = tuple(paired_gain(self.score(each, base)) for each in played)
        kept = played[chosen] if gains[chosen].low > 0 else base
        over_delay = paired_gain(self.score(kept, delayed))
        return HoldingJudged(tuple(found), gains, chosen, (played[chosen], base, delayed), over_delay)


def _space(first: LateBindingNumbers) -> Space[LateBindingNumbers]:
    factor = _FIRST_FACTOR if first.refuse_factor is None else first.refuse_factor
    begun: dict[str, Any] = {**first.model_dump(include=set(SPACE)), "refuse_factor": factor}
    for name, each in SPACE.items():
        if isinstance(each, FloatDistribution):
            begun[name] = float(np.clip(begun[name], each.low, each.high))
    begun["refuses"] = first.refuse_factor is not None
    return Space(first=first, begun=begun, distributions=SPACE, numbers_of=partial(numbers_with, first))
