"""Searches order, θ, slots, refuse factor and weights of late binding together for one recorded system, simulated, and
judges what it has found.

Trials of one search play the same draws with the same random numbers. The best of each search is compared with the
numbers that the search began with, and with `expected_delay`, on draws that no search has seen. Every trial is kept as
it ends: a search that was interrupted goes on, and ends as if it had not been.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial

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
from tuning.search.trials import Gain, Trials, paired_gain, sampler

SEEDS, HELD_OUT, CHOICE = 1_000_000, 500_000, 400_000
"""Draws of one seed; first ones of the judgement, and of the choice between searches; those of a search are below."""
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
class HoldingJudged:
    """What the searches have found, on held-out draws.

    Attributes:
        found: the best numbers of each search.
        gains: theirs over the first numbers.
        chosen: index of the one that was best on draws that neither trained nor judge.
        played: of the chosen ones, of the first ones, and of `expected_delay`.
        over_delay: of the chosen ones, or of the first ones without a gain, over `expected_delay`.
    """

    found: tuple[LateBindingNumbers, ...]
    gains: tuple[Gain, ...]
    chosen: int
    played: tuple[Played, Played, Played]
    over_delay: Gain

    @property
    def gained(self) -> bool:
        """Whether the interval of the chosen ones lies above 0."""
        return self.gains[self.chosen].low > 0

    def to_json(self) -> list[dict[str, Any]]:
        """One row per search: its numbers, their gain and its interval, and whether they were chosen."""
        return [
            {"numbers": numbers.model_dump(), **vars(gain), "chosen": number == self.chosen}
            for number, (numbers, gain) in enumerate(zip(self.found, self.gains, strict=True))
        ]


def search_all(
    system: HeldSystem, wanted: HoldingObjective, options: HoldingSearchOptions, seed: int, threads: int,
    trials: Trials, report: Callable[[str, float], None],
) -> HoldingJudged:  # fmt: skip
    """Searches, chooses and judges.

    Args:
        threads: threads that simulate; the result does not depend on it.
        report: called after every trial with what is known and the share of the work that is done.
    """
    total, judge = options.searches * options.trials, _Judge(system, wanted, options, threads)
    found = []
    for number in range(options.searches):

        def tell(done: int, best: float, before: int = number * options.trials, which: int = number + 1) -> None:
            text = f"search {which} of {options.searches}, {done} of {options.trials} trials, best {best:+.4f}"
            report(text, 0.9 * (before + done) / total)

        found.append(_search(judge, seed, number, trials, tell))
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

    def of(self, found: Sequence[LateBindingNumbers], seed: int) -> HoldingJudged:
        """On held-out draws."""
        first, count, chosen = self.system.plan.numbers, self.options.held_out, 0
        if len(found) > 1:
            scripts = self.system.draws(seed * SEEDS + CHOICE, count, self.options)
            base = self.play(scripts, first)
            chosen = int(np.argmax([self.score(self.play(scripts, numbers), base).mean() for numbers in found]))
        scripts = self.system.draws(seed * SEEDS + HELD_OUT, count, self.options)
        base, delayed = (self.play(scripts, numbers) for numbers in (first, None))
        played = [base if numbers == first else self.play(scripts, numbers) for numbers in found]
        gains = tuple(paired_gain(self.score(each, base)) for each in played)
        kept = played[chosen] if gains[chosen].low > 0 else base
        over_delay = paired_gain(self.score(kept, delayed))
        return HoldingJudged(tuple(found), gains, chosen, (played[chosen], base, delayed), over_delay)


def _search(
    judge: _Judge, seed: int, number: int, trials: Trials, tell: Callable[[int, float], None]
) -> LateBindingNumbers:
    """The numbers with the best score over those that the search began with."""
    system, options, first = judge.system, judge.options, judge.system.plan.numbers
    scripts = system.draws(seed * SEEDS + number * options.draws, options.draws, options)
    base: Played | None = None
    study = _study(trials, number, options.trials, first)
    for count in range(sum(trial.state.is_finished() for trial in study.trials), options.trials):
        study.sampler = sampler(seed, number, count)
        base = judge.play(scripts, first) if base is None else base
        trial = study.ask(SPACE)
        played = base if count == 0 else judge.play(scripts, numbers_with(first, trial.params))
        score = float(judge.score(played, base).mean())
        trials.append(number, trial.params, score)
        study.tell(trial, score)
        tell(count + 1, study.best_value)
    best = study.best_trial
    return first if best.number == 0 else numbers_with(first, best.params)


def _study(trials: Trials, number: int, most: int, first: LateBindingNumbers) -> optuna.Study:
    """With the trials of an earlier run; the first one of all is what is to be beaten."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for row in trials.of(number)[:most]:
        study.add_trial(create_trial(params=row["params"], distributions=SPACE, value=row["score"]))
    if not study.trials:
        factor = _FIRST_FACTOR if first.refuse_factor is None else first.refuse_factor
        searched = ("theta", "slots_per_worker", "waiting_weight", "late_weight")
        begun = {**{name: float(getattr(first, name)) for name in searched}, "refuse_factor": factor}
        for name, value in begun.items():
            ends = SPACE[name]
            assert isinstance(ends, FloatDistribution)
            begun[name] = float(np.clip(value, ends.low, ends.high))
        study.enqueue_trial({"order": first.order, "refuses": first.refuse_factor is not None, **begun})
    return study
