"""The search of admission's numbers: equal after an interruption, honest about no gain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.admission import AdmissionNumbers
from actuators.errors import DataError
from envs.calibration.admission import calibrated_admission
from envs.calibration.options import AdmissionPlan
from envs.calibration.result import Calibration
from tuning.search.admission_numbers import SPACE, Judged, System, numbers_with, search_all, tuned
from tuning.search.admission_options import NumbersSearchOptions
from tuning.search.trials import Trials

CALIBRATION = Calibration.load(Path("tests/data/runs/calibration.json"))
QUICK = NumbersSearchOptions(searches=2, trials=3, draws=8, held_out=16)


def system(plan: AdmissionPlan | None = None) -> System:
    return System(CALIBRATION, calibrated_admission(CALIBRATION, plan or AdmissionPlan(), 0.0))


def quiet(text: str, done: float) -> None:
    """Nothing is reported."""


def searched(path: Path, options: NumbersSearchOptions = QUICK, threads: int = 1) -> Judged:
    return search_all(system(), options, 3, threads, Trials(path), quiet)


@pytest.mark.slow
def test_an_interrupted_search_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = searched(tmp_path / "whole.jsonl")
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    # Killed in the fifth line.
    (tmp_path / "torn.jsonl").write_bytes(b"".join([*lines[:4], lines[4][:7]]))
    again = searched(tmp_path / "torn.jsonl", threads=2)
    assert (tmp_path / "torn.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert again.to_json() == whole.to_json()
    reported: list[str] = []
    search_all(system(), QUICK, 3, 1, Trials(tmp_path / "whole.jsonl"), lambda text, done: reported.append(text))
    assert reported == ["judging on held-out systems"]


def test_numbers_that_ruin_a_system_are_left(tmp_path: Path) -> None:
    """Begun with limits that refuse almost everything, a search gains; and the first trial is what is to be beaten."""
    ruinous = AdmissionPlan(numbers=AdmissionNumbers(most=0.5, least=0.3, start=0.4, headroom=1.0))
    poor = system(ruinous)
    judged = search_all(poor, NumbersSearchOptions(searches=1, trials=8, draws=8, held_out=16), 1, 1,
                        Trials(tmp_path / "trials.jsonl"), quiet)  # fmt: skip
    result = tuned(poor, judged, 1)
    assert result.gained
    assert 0 < result.low < result.gain < result.high
    assert result.numbers == judged.found[0] != ruinous.numbers
    assert result.goodput == pytest.approx(judged.goodput[1].mean() + result.gain)
    assert judged.refused[0] < judged.refused[1]


def test_without_a_gain_the_numbers_stay(tmp_path: Path) -> None:
    judged = searched(tmp_path / "trials.jsonl", QUICK.changed({"trials": 2, "searches": 1}))
    same = replace(judged, gains=tuple(replace(gain, low=-0.01) for gain in judged.gains))
    result = tuned(system(), same, 3)
    assert not result.gained
    assert result.numbers == AdmissionNumbers()
    assert result.goodput == pytest.approx(judged.goodput[1].mean())


def test_shares_of_requests_that_were_planned_before_do_not_exceed_one(tmp_path: Path) -> None:
    judged = searched(tmp_path / "trials.jsonl", QUICK.changed({"trials": 2, "searches": 1}))
    over = np.array([1.01, 1.0])
    result = tuned(system(), replace(judged, goodput=(over, over, over)), 3)
    assert (result.goodput, result.without) == (1.0, 1.0)


def with_rates(rps: float) -> System:
    quiet_groups = tuple(entry.model_copy(update={"steps": ((0.0, rps),)}) for entry in CALIBRATION.arrivals)
    rare = CALIBRATION.changed({"arrivals": quiet_groups})
    return System(rare, calibrated_admission(rare, AdmissionPlan(), 0.0))


def test_draws_without_a_request_do_not_count(tmp_path: Path) -> None:
    """Seeds are fixed: it repeats exactly."""
    rare = with_rates(0.01)
    options = QUICK.changed({"trials": 2, "searches": 1})
    judged = search_all(rare, options, 1, 1, Trials(tmp_path / "trials.jsonl"), quiet)
    shares = judged.goodput[1]
    known = shares[~np.isnan(shares)]
    assert 0 < len(known) < len(shares)
    result = tuned(rare, replace(judged, gains=tuple(replace(gain, low=-0.01) for gain in judged.gains)), 1)
    assert result.draws == len(known)
    assert result.goodput == pytest.approx(min(1.0, known.mean()))
    with pytest.raises(DataError, match="0 of 8 simulated systems get a request"):
        search_all(with_rates(1e-6), options, 1, 1, Trials(tmp_path / "silent.jsonl"), quiet)


def test_every_searched_number_is_one_of_the_rule() -> None:
    for space in SPACE.values():
        for name, (low, high) in space.items():
            for value in (low, high):
                assert getattr(AdmissionNumbers(**{name: value}), name) == value
    found = numbers_with(AdmissionNumbers(), {"start": 6.0, "least": 4.0, "most": 2.0, "rise": 0.1})
    assert (found.start, found.least, found.most, found.rise, found.cut) == (2.0, 2.0, 2.0, 0.1, 0.5)


def test_importance_counts_and_a_group_that_is_never_refused_is_not() -> None:
    groups = CALIBRATION.groups
    plan = AdmissionPlan(importance={groups[1]: 4.0}, never_refused=(groups[0],))
    chosen = system(plan)
    scripts = chosen.draws(0, 8)
    assert scripts[0].importance == (4.0, 4.0, 1.0)
    played = chosen.play(scripts, AdmissionNumbers(most=0.5, least=0.3, start=0.4, headroom=1.0))
    assert played.refused[:, 0].sum() == 0
    assert (played.refused[:, 1:].sum(axis=0) > 0).all()
    np.testing.assert_array_equal(chosen.play(scripts, None).refused, 0)
