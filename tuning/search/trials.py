"""The search of a rule's numbers on simulated systems: trials that are kept, the best of each search, paired gains.

Which numbers, and how they are scored and judged: `tuning.search.admission_numbers`, `tuning.search.holding_numbers`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import create_trial
from pydantic import BaseModel

from actuators.contract.arrays import FloatArray
from envs.study.interval import student_interval

Numbers = TypeVar("Numbers", bound=BaseModel)
SEEDS, HELD_OUT, CHOICE = 1_000_000, 500_000, 400_000
"""Draws of one seed; first ones of the judgement, and of the choice between searches; those of a search are below."""


@dataclass(frozen=True)
class Gain:
    """What numbers are worth more than the first ones, paired over held-out draws, with its 95 % interval."""

    mean: float
    low: float
    high: float


class Trials:
    """Finished trials as JSON lines, in order.

    Args:
        path: read when it exists; a torn last line, of a process that was killed, is dropped.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[dict[str, Any]] = []
        if path.exists():
            whole = path.read_bytes().splitlines(keepends=True)
            self._rows = [json.loads(line) for line in whole if line.endswith(b"\n")]
            if whole and not whole[-1].endswith(b"\n"):
                path.write_bytes(b"".join(whole[:-1]))

    def of(self, search: int) -> list[dict[str, Any]]:
        """Those of a search: `params` and `score`."""
        return [row for row in self._rows if row["search"] == search]

    def append(self, search: int, params: Mapping[str, Any], score: float) -> None:
        row = {"search": search, "params": dict(params), "score": score}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._rows.append(row)


def paired_gain(differences: FloatArray) -> Gain:
    """Mean and 95 % interval (Student's t) over draws."""
    return Gain(float(differences.mean()), *student_interval(differences))


@dataclass(frozen=True, eq=False)
class Space(Generic[Numbers]):
    """What is searched.

    Attributes:
        first: the numbers that every search begins with and has to beat.
        begun: value of each searched name in the first trial, within its distribution.
        distributions: by the same names.
        numbers_of: a trial's values → numbers.
    """

    first: Numbers
    begun: Mapping[str, Any]
    distributions: dict[str, BaseDistribution]
    numbers_of: Callable[[Mapping[str, Any]], Numbers]


@dataclass(frozen=True, eq=False)
class Searched(Generic[Numbers]):
    """What the searches have found, on held-out draws.

    Attributes:
        found: the best numbers of each search.
        gains: theirs over the first numbers.
        chosen: index of the one that was best on draws that neither trained nor judge.
    """

    found: tuple[Numbers, ...]
    gains: tuple[Gain, ...]
    chosen: int

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


def best_of_each(
    space: Space[Numbers], scoring: Callable[[int], Callable[[Numbers], float]], searches: int, trials: int, seed: int,
    kept: Trials, report: Callable[[str, float], None],
) -> list[Numbers]:  # fmt: skip
    """The numbers with the best score of each search.

    Args:
        scoring: number of a search → the score of numbers on its draws; the larger, the better.
        trials: of each search, the first numbers included.
        kept: a search goes on after those of an earlier run, and each trial is added as it ends.
        report: called after every trial with what is known and the share of all trials that is done.
    """
    found = []
    for search in range(searches):
        score, study = scoring(search), _study(space, kept.of(search)[:trials])
        for count in range(sum(trial.state.is_finished() for trial in study.trials), trials):
            study.sampler = _sampler(seed, search, count)
            trial = study.ask(space.distributions)
            value = score(space.first if count == 0 else space.numbers_of(trial.params))
            kept.append(search, trial.params, value)
            study.tell(trial, value)
            done = f"search {search + 1} of {searches}, {count + 1} of {trials} trials"
            share = (search * trials + count + 1) / (searches * trials)
            report(f"{done}, best score {study.best_value:.4f}", share)
        best = study.best_trial
        found.append(space.first if best.number == 0 else space.numbers_of(best.params))
    return found


def _study(space: Space[Numbers], rows: Sequence[Mapping[str, Any]]) -> optuna.Study:
    """With the trials of an earlier run; the first one of all is what is to be beaten."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for row in rows:
        study.add_trial(create_trial(params=row["params"], distributions=space.distributions, value=row["score"]))
    if not study.trials:
        study.enqueue_trial(dict(space.begun))
    return study


def _sampler(seed: int, search: int, trial: int) -> optuna.samplers.BaseSampler:
    """One for each trial: what it draws does not depend on interruptions."""
    drawn = int(np.random.default_rng([seed, search, trial]).integers(2**31))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=drawn, multivariate=True)
