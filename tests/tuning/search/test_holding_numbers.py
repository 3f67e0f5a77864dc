"""The search of late binding's numbers: equal after an interruption, honest about no gain, by what is wanted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from optuna.distributions import FloatDistribution

from actuators.contract.histogram import SIZE, bucket_of
from actuators.contract.late_binding import HoldOrder, LateBindingNumbers, LateBindingPlan
from envs.calibration.result import Calibration
from envs.study.judge import Totals
from tuning.search.holding_numbers import (
    SPACE,
    HeldSystem,
    HoldingJudged,
    Played,
    numbers_with,
    search_all,
    tuned_holding,
)
from tuning.search.holding_options import HoldingObjective, HoldingSearchOptions
from tuning.search.trials import Trials

CALIBRATION = Calibration.load(Path("tests/data/runs/calibration.json"))
QUICK = HoldingSearchOptions(searches=2, trials=3, draws=2, held_out=4, seconds=20.0)
PLAIN = HoldingObjective()


def quiet(text: str, done: float) -> None:
    """Nothing is reported."""


def system(workers: float = 4.0, **plan: object) -> HeldSystem:
    return HeldSystem(CALIBRATION, LateBindingPlan.model_validate(plan), workers)


def searched(path: Path, threads: int = 1) -> HoldingJudged:
    return search_all(system(), PLAIN, QUICK, 3, threads, Trials(path), quiet)


@pytest.mark.slow
def test_an_interrupted_search_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = searched(tmp_path / "whole.jsonl")
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    (tmp_path / "torn.jsonl").write_bytes(b"".join([*lines[:4], lines[4][:7]]))
    again = searched(tmp_path / "torn.jsonl", threads=2)
    assert (tmp_path / "torn.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert again.to_json() == whole.to_json()
    assert again.over_delay == whole.over_delay


def test_too_few_slots_are_mended(tmp_path: Path) -> None:
    """Begun with one slot for the several workers of each server, a search gains by more slots."""
    poor = system(1.0, numbers=LateBindingNumbers(slots_per_worker=1.0))
    options = HoldingSearchOptions(searches=1, trials=8, draws=2, held_out=4, seconds=20.0)
    judged = search_all(poor, PLAIN, options, 1, 1, Trials(tmp_path / "trials.jsonl"), quiet)
    result = tuned_holding(poor, judged, 1)
    assert result.gained
    assert 0 < result.low < result.gain < result.high
    assert result.numbers == judged.found[0]
    assert result.numbers.slots_per_worker > 1.0
    mended, first, _ = judged.played
    assert np.nanmean(mended.mean_s) < np.nanmean(first.mean_s)


def test_without_a_gain_the_numbers_stay(tmp_path: Path) -> None:
    judged = searched(tmp_path / "trials.jsonl")
    same = replace(judged, gains=tuple(replace(gain, low=-0.01) for gain in judged.gains))
    result = tuned_holding(system(), same, 3)
    assert not result.gained
    assert result.numbers == LateBindingNumbers()


def test_what_is_searched_are_numbers_of_the_rule() -> None:
    assert SPACE["order"].choices == get_args(HoldOrder)  # type: ignore[attr-defined]
    base = LateBindingNumbers(look_ahead=7)
    for which in ("low", "high"):
        drawn = {
            name: getattr(each, which) if isinstance(each, FloatDistribution) else each.choices[-1]  # type: ignore[attr-defined]
            for name, each in SPACE.items()
        }
        found = numbers_with(base, drawn)
        assert (found.order, found.refuse_factor) == (get_args(HoldOrder)[-1], drawn["refuse_factor"])
        assert all(getattr(found, name) == drawn[name] for name in ("theta", "waiting_weight", "late_weight"))
        assert found.look_ahead == 7
        assert numbers_with(base, {**drawn, "refuses": False}).refuse_factor is None


def test_the_objective_is_what_was_asked_for() -> None:
    """One group becomes twice as fast, the other one is refused half of its requests."""
    counts = np.zeros((1, 2, SIZE))
    counts[0, 0, bucket_of(20_000)] = counts[0, 1, bucket_of(20_000)] = 100
    base = Played.of(Totals(counts, np.full((1, 2), 2.0), np.zeros((1, 2))), np.array([0.015, 0.1]))
    counts = np.zeros((1, 2, SIZE))
    counts[0, 0, bucket_of(10_000)], counts[0, 1, bucket_of(20_000)] = 100, 50
    found = Played.of(Totals(counts, np.array([[1.0, 1.0]]), np.array([[0.0, 50.0]])), np.array([0.015, 0.1]))
    assert base.goodput.tolist() == [[0.0, 1.0]]
    assert found.goodput.tolist() == [[1.0, 0.5]]
    assert found.refused.tolist() == [[0.0, 0.5]]
    assert found.mean_s.tolist() == [[0.01, 0.51]]
    names = ("one", "other")

    def objective(**weights: object) -> float:
        wanted = HoldingObjective.model_validate({"mean": 0, "p99": 0, "goodput": 0, **weights})
        return float(found.over(base, wanted, names)[0])

    assert objective(mean=1) == pytest.approx((np.log(2) + np.log(0.02 / 0.51)) / 2)
    assert objective(goodput=3) == pytest.approx(3 * (1.0 - 0.5) / 2)
    assert objective(goodput=1, groups={"other": 0}) == pytest.approx(1.0)
    assert objective(p99=1, groups={"one": 0}) == pytest.approx(np.log(0.02 / 1.0), rel=0.03)
    assert found.over(found, PLAIN, names).tolist() == [0.0]
