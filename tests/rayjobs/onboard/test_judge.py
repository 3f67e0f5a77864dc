"""When groups that cannot be judged forbid a promise, or make its intervals wider: by what they have together."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from envs.calibration.result import Arrivals, Calibration
from envs.calibration.verdict import GroupVerdict, Judgement
from envs.environment.problem import DecisionProblem
from envs.study.promise import Conclusion, Promise
from rayjobs.onboard.fit import Fit
from rayjobs.onboard.judge import imprecision, limited

RECORDED = Calibration.load(Path("tests/data/runs/calibration.json"))
PROMISE = Promise(proposal="p", measure_s=600, pairs=10, errors={}, loads=(), conclusion="change", reasons=("gain",))
GROUPS = 40


def system(*verdicts: GroupVerdict) -> Fit:
    """Forty groups with 1 to 1.39 requests per second, good where there is no verdict; nobody looks at a problem."""
    names = tuple(f"g{number}" for number in range(GROUPS))
    arrivals = tuple(
        Arrivals(distribution="exponential", dispersion=1.0, steps=((0.0, 1.0 + number / 100),))
        for number in range(GROUPS)
    )
    doubted = {verdict.group for verdict in verdicts}
    good = tuple(GroupVerdict(group=name, judgement="good") for name in names if name not in doubted)
    calibration = RECORDED.model_copy(update={"groups": names, "arrivals": arrivals})
    return Fit(calibration, cast(DecisionProblem, None), (*verdicts, *good))


def doubtful(count: int, judgement: Judgement, **more: Any) -> tuple[GroupVerdict, ...]:
    return tuple(
        GroupVerdict(group=f"g{number}", judgement=judgement, detail=f"as g{number} shows", **more)
        for number in range(count)
    )


@pytest.mark.parametrize(
    ("judgement", "conclusion"),
    [("no_match", "no_promise"), ("no_queueing", "no_promise"), ("little_traffic", "watch_longer")],
)
def test_many_small_groups_forbid_a_promise_together(judgement: Judgement, conclusion: Conclusion) -> None:
    found = limited(PROMISE, system(*doubtful(GROUPS, judgement)))
    assert found.conclusion == conclusion
    assert len(found.reasons) == 1
    assert found.reasons[0].startswith("40 groups with 100% of the requests cannot be judged, as g39: ")
    assert "as g39 shows" in found.reasons[0]
    assert limited(PROMISE, system(*doubtful(12, judgement))).conclusion == conclusion


def test_a_few_small_groups_do_not() -> None:
    assert limited(PROMISE, system(*doubtful(5, "no_match"))) == PROMISE
    assert limited(PROMISE, system()) == PROMISE


def test_a_group_outside_the_simulator_says_nothing_of_the_others() -> None:
    left_out = GroupVerdict(group="dead", judgement="little_traffic", detail="left out")
    fitted = system()
    assert limited(PROMISE, Fit(fitted.calibration, fitted.problem, (*fitted.verdicts, left_out))) == PROMISE


def test_watching_longer_is_advised_only_where_it_can_help() -> None:
    """Ten groups of forty that nothing helps forbid a promise by themselves; two of them do not."""
    little = tuple(each.model_copy(update={"judgement": "little_traffic"}) for each in doubtful(40, "no_match")[10:])
    assert limited(PROMISE, system(*doubtful(10, "no_match"), *little)).conclusion == "no_promise"
    found = limited(PROMISE, system(*doubtful(2, "no_match"), *little[:10]))
    assert (found.conclusion, "as g19: too little traffic" in found.reasons[0]) == ("watch_longer", True)


def test_imprecise_groups_widen_the_intervals_together() -> None:
    many = system(*doubtful(GROUPS, "little_traffic", imprecision=0.15))
    assert limited(PROMISE, many) == PROMISE
    assert imprecision(many) == 0.15
    assert imprecision(system(*doubtful(5, "little_traffic", imprecision=0.15))) == 0.0
    # One small group that is known very badly does not decide for all.
    worst = doubtful(1, "little_traffic", imprecision=0.24)
    assert imprecision(system(*worst, *doubtful(GROUPS, "little_traffic", imprecision=0.12)[1:])) == 0.12


def test_groups_that_are_known_too_badly_forbid_it_and_others_add_to_the_imprecision() -> None:
    assert limited(PROMISE, system(*doubtful(12, "little_traffic", imprecision=0.4))).conclusion == "watch_longer"
    mixed = system(*doubtful(6, "no_match"), *doubtful(12, "little_traffic", imprecision=0.15)[6:])
    assert limited(PROMISE, mixed) == PROMISE
    assert imprecision(mixed) == 0.15
