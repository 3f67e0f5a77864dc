"""Searches the numbers of an admission rule on family H around one system, simulated, and judges what it has found.

Trials of one search play the same draws with the same random numbers. The best of each search is compared with the
numbers that the search began with on draws that no search has seen. Every trial is kept as it ends: a search that was
interrupted goes on, and ends as if it had not been.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from optuna.distributions import FloatDistribution

from actuators.contract.admission import Admission, AdmissionNumbers, AdmissionRule
from actuators.contract.arrays import FloatArray
from actuators.contract.script import Script
from actuators.errors import DataError
from envs.admission.tuned import TunedNumbers
from envs.calibration.result import Calibration
from envs.scenarios.family import KINDS
from envs.scenarios.own_family import own_family
from envs.study.goodput import Goodput, play_admission
from envs.study.rules import Rule, fixed_weights
from tuning.search.admission_options import NumbersSearchOptions
from tuning.search.trials import CHOICE, HELD_OUT, SEEDS, Gain, Searched, Space, Trials, best_of_each, paired_gain

MOST_REFUSED_IDLE = 0.001
"""Share of the requests that numbers may refuse in steady draws; what is beyond costs as much as lost goodput."""
_FOLLOWING = {"start": (1.0, 6.0), "least": (0.3, 4.0), "most": (2.0, 10.0)}
_AIMD = {**_FOLLOWING, "rise": (0.05, 0.5), "cut": (0.3, 0.9), "late_share": (0.03, 0.4)}
_BY_GROUP = {"gamma": (0.02, 1.0), "importance_power": (0.05, 1.5)}
SPACE: dict[AdmissionRule, dict[str, tuple[float, float]]] = {
    "none": {},
    "fixed": {"multiple": (0.5, 10.0)},
    "thresh": {"multiple": (0.5, 10.0), **_BY_GROUP},
    "aimd_thresh": {**_AIMD, **_BY_GROUP},
    "aimd": _AIMD,
    "gradient": _FOLLOWING,
}
"""Rule → number → range that is searched, on a logarithmic scale."""


@dataclass(frozen=True, eq=False)
class System:
    """The system whose numbers are searched.

    Attributes:
        admission: what is believed of it, with the numbers to begin with.
    """

    calibration: Calibration
    admission: Admission

    @property
    def balancing(self) -> Rule:
        """As it was recorded."""
        return Rule("recorded", self.calibration.method, lambda: fixed_weights(self.calibration.today))

    def draws(self, first: int, count: int) -> list[Script]:
        """Systems of family H around this one; each kind in turn."""
        admission = self.admission
        family = own_family(self.calibration, None, admission.deadlines_s, admission.weights())
        return [family.script(admission.topology, first + number) for number in range(count)]

    def play(self, scripts: Sequence[Script], numbers: AdmissionNumbers | None, threads: int = 1) -> Goodput:
        """What comes of these draws with such numbers; without admission when None."""
        topology, admissions = self.admission.topology, None
        if numbers is not None:
            admissions = [replace(self.admission, numbers=numbers, percent=100.0)] * len(scripts)
        return play_admission(self.balancing, scripts, topology, admissions, threads=threads)


@dataclass(frozen=True, eq=False)
class Judged(Searched[AdmissionNumbers]):
    """What the searches have found, on held-out draws.

    Attributes:
        goodput: ``[draws]``, of the chosen ones, of the first ones, and without admission; nan for a draw without a
            request.
        refused: share of the attempts in steady draws, of the chosen ones and of the first ones.
        worst_group: goodput of the worst group, a mean over the draws, of the chosen ones and of the first ones.
    """

    goodput: tuple[FloatArray, FloatArray, FloatArray]
    refused: tuple[float, float]
    worst_group: tuple[float, float]

    @property
    def mean_goodput(self) -> tuple[float, float, float]:
        """Means of `goodput` over the draws with requests, at most 1: a request that is planned before the judged part
        may be answered in it.
        """
        best, first, without = (min(1.0, float(np.nanmean(shares))) for shares in self.goodput)
        return best, first, without


def search_all(
    system: System, options: NumbersSearchOptions, seed: int, threads: int, trials: Trials,
    report: Callable[[str, float], None],
) -> Judged:  # fmt: skip
    """Searches, chooses and judges.

    Args:
        threads: threads that simulate; the result does not depend on it.
        report: called after every trial with what is known and the share of the work that is done.

    Raises DataError for a system with so few requests that no draws can be compared.
    """

    def scoring(search: int) -> Callable[[AdmissionNumbers], float]:
        draws = _whole(options.draws)
        scripts = system.draws(seed * SEEDS + search * draws, draws)
        return lambda numbers: _score(system.play(scripts, numbers, threads))

    found = best_of_each(
        _space(system.admission), scoring, options.searches, options.trials, seed, trials,
        lambda text, done: report(text, 0.95 * done),
    )  # fmt: skip
    report("judging on held-out systems", 0.95)
    return _judge(system, options, seed, threads, found)


def tuned(system: System, judged: Judged, seed: int) -> TunedNumbers:
    """The result: without a gain, the numbers that the search began with."""
    gain, (best, first, without) = judged.gains[judged.chosen], judged.mean_goodput
    return TunedNumbers(
        rule=system.admission.rule, groups=system.calibration.groups, gained=judged.gained, seed=seed,
        numbers=judged.found[judged.chosen] if judged.gained else system.admission.numbers,
        gain=gain.mean, low=gain.low, high=gain.high, goodput=best if judged.gained else first,
        without=without, draws=int(np.isfinite(judged.goodput[1]).sum()),
    )  # fmt: skip


def numbers_with(base: AdmissionNumbers, params: Mapping[str, float]) -> AdmissionNumbers:
    """These numbers in the place of the base's; the first and the smallest multiple are not above the largest."""
    values = dict(params)
    if "most" in values:
        values["least"] = min(values["least"], values["most"])
        values["start"] = min(max(values["start"], values["least"]), values["most"])
    return AdmissionNumbers(**{**base.model_dump(), **values})


def _space(admission: Admission) -> Space[AdmissionNumbers]:
    """The numbers that make a difference: where all groups are worth the same, the power of the worth makes none."""
    first, finite = admission.numbers, admission.importance[np.isfinite(admission.importance)]
    alike = len(np.unique(finite)) < 2
    ranges = {name: ends for name, ends in SPACE[admission.rule].items() if not (alike and name == "importance_power")}
    return Space(
        first=first,
        begun={name: float(np.clip(getattr(first, name), *ends)) for name, ends in ranges.items()},
        distributions={name: FloatDistribution(low, high, log=True) for name, (low, high) in ranges.items()},
        numbers_of=partial(numbers_with, first),
    )


def _judge(
    system: System, options: NumbersSearchOptions, seed: int, threads: int, found: Sequence[AdmissionNumbers]
) -> Judged:
    base, count = system.admission.numbers, _whole(options.held_out)
    chosen = 0
    if len(found) > 1:
        scripts = system.draws(seed * SEEDS + CHOICE, count)
        chosen = int(np.argmax([_score(system.play(scripts, numbers, threads)) for numbers in found]))
    scripts = system.draws(seed * SEEDS + HELD_OUT, count)
    first, without = (system.play(scripts, numbers, threads) for numbers in (base, None))
    played = [first if numbers == base else system.play(scripts, numbers, threads) for numbers in found]
    best = played[chosen]
    return Judged(
        tuple(found), tuple(_gain(each, first) for each in played), chosen,
        (best.shares(), first.shares(), without.shares()), (_refused_steady(best), _refused_steady(first)),
        (_worst_group(best), _worst_group(first)),
    )  # fmt: skip


def _score(played: Goodput) -> float:
    """Goodput, less the refusals at ordinary times that are too many."""
    return float(_known(played.shares(), 1).mean()) - max(_refused_steady(played) - MOST_REFUSED_IDLE, 0.0)


def _gain(played: Goodput, first: Goodput) -> Gain:
    return paired_gain(_known(played.shares() - first.shares(), 2))


def _known(values: FloatArray, least: int) -> FloatArray:
    """Those of the draws with requests. Raises DataError when these are fewer than `least`."""
    known: FloatArray = values[np.isfinite(values)]
    if len(known) < least:
        remedy = "calibrate the system under more traffic, or raise search.draws and search.held_out"
        raise DataError(f"{len(known)} of {len(values)} simulated systems get a request", where="search", remedy=remedy)
    return known


def _refused_steady(played: Goodput) -> float:
    steady = slice(0, None, len(KINDS))
    return float(played.refused[steady].sum() / max(played.offered[steady].sum(), 1.0))


def _worst_group(played: Goodput) -> float:
    shares = played.group_shares()
    return float(np.nanmin(shares[np.isfinite(shares).any(axis=1)], axis=1).mean())


def _whole(draws: int) -> int:
    """So many that every kind is there equally often."""
    return -(-draws // len(KINDS)) * len(KINDS)
