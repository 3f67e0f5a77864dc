"""The rules against sequences that were computed by hand; docs/admission.md defines every step.

Two groups: idle 0.1 s and 0.4 s, 20/s and 5/s, so that 2 + 2 = 4 requests are in flight at nominal rates. Importance
1 and 1: densities 10 and 2.5, shares 1 and 0.25^gamma. Each weighs 20 and 5 in the late share.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from actuators.contract.admission import NEVER, Admission, AdmissionNumbers, AdmissionRule
from actuators.contract.topology import Group, Topology
from actuators.errors import ConfigError
from envs.admission.rule import Limits, LimitState, TickCounts

TOPOLOGY = Topology(tuple(Group(name, name, "GET", "/", 2.0, ("s:80",)) for name in ("quick", "slow")))
FORGET, FADE = math.exp(-0.05), math.exp(-0.5 / 30)


def admission(rule: AdmissionRule, importance: tuple[float, float] = (1.0, 1.0), **numbers: Any) -> Admission:
    more = {name: numbers.pop(name) for name in ("machines", "factors") if name in numbers}
    return Admission(
        TOPOLOGY, rule, np.array([0.3, 1.0]), np.array(importance), np.array([0.1, 0.4]), np.array([20.0, 5.0]),
        AdmissionNumbers(**{"least": 0.3, "most": 3.65, "late_share": 0.14, **numbers}), **more,
    )  # fmt: skip


def tick(
    finished: tuple[int, int] = (10, 2), late: tuple[int, int] = (0, 0), *, over: int = 0, refused: int = 0,
    quick: int = 0, in_flight: tuple[int, int] = (2, 2), peak: int = 4, response_s: tuple[float, float] = (1.0, 0.8),
) -> TickCounts:  # fmt: skip
    """One environment's tick; over, refused and quick are of the first group."""

    def row(*values: float) -> Any:
        return np.array([values])

    offered = (finished[0] + refused, finished[1])
    return TickCounts(
        row(*offered), row(over, 0), row(refused, 0), row(*finished), row(*late), row(quick, 0), row(*response_s),
        row(*in_flight), np.array([peak]),
    )  # fmt: skip


def limits_after(rule: Limits, *ticks: TickCounts) -> list[list[float]]:
    state = rule.start()
    found = [rule.of(state)[0].tolist()]
    for counts in ticks:
        state = rule.after(state, counts)
        found.append(rule.of(state)[0].tolist())
    return found


def state_after(rule: Limits, *ticks: TickCounts) -> LimitState:
    state = rule.start()
    for counts in ticks:
        state = rule.after(state, counts)
    return state


LATE = tick(late=(8, 0))  # (20 × 0.8 + 0) / 25 = 0.64
IN_TIME = tick(late=(1, 0), peak=0)  # 0.08


def test_no_rule_has_no_limit() -> None:
    assert limits_after(Limits([admission("none")]), LATE) == [[math.inf] * 2] * 2


def test_fixed_is_one_limit_whatever_happens() -> None:
    assert limits_after(Limits([admission("fixed", multiple=2.5)]), LATE, LATE) == [[10.0, 10.0]] * 3


def test_thresholds_fall_with_the_density() -> None:
    rule = Limits(
        [
            admission("thresh", multiple=2.5, gamma=0.5),
            admission("thresh", (1.0, 4.0), multiple=2.5, gamma=0.5, importance_power=0.5),
        ]
    )
    assert rule.of(rule.start()).tolist() == [[10.0, 5.0], [10.0, 10.0]]


def test_thresholds_that_follow_lateness() -> None:
    rule = Limits([admission("aimd_thresh", gamma=0.5, start=2.5, cut=0.5, rise=0.25, least=0.5, most=1.5)])
    found = limits_after(rule, LATE, LATE, LATE, IN_TIME, IN_TIME, *[IN_TIME] * 8)
    assert found[:6] == [[10, 5], [5, 2.5], [2.5, 1.25], [2, 1], [3, 1.5], [4, 2]]
    assert found[-1] == [6, 3]


def test_aimd_is_one_limit() -> None:
    rule = Limits([admission("aimd", start=2.0, cut=0.5, rise=0.25)])
    assert limits_after(rule, LATE, IN_TIME) == [[8, 8], [4, 4], [5, 5]]


def test_the_gradient_is_envoys() -> None:
    rule = Limits([admission("gradient", start=2.25, most=100.0)])
    # idle 10 × 0.1 + 2 × 0.4 = 1.8; seen 1.8 × 1.25 gives 1; 9 × 1 + 3 = 12; twice as slow: 0.5: 6 + √6
    same, slow = tick(response_s=(1.25, 1.0)), tick(response_s=(2.5, 2.0))
    found = limits_after(rule, same, slow, tick(finished=(0, 0), in_flight=(0, 0)))
    assert found[:2] == [[9, 9], [12, 12]]
    assert found[2] == pytest.approx([6 + math.sqrt(6)] * 2)
    assert found[3] == found[2]
    fastest = limits_after(rule, tick(response_s=(0.01, 0.01)))[1]
    assert fastest == pytest.approx([18 + math.sqrt(18)] * 2)


def test_a_limit_is_at_least_one_and_factors_count() -> None:
    rule = Limits([admission("thresh", multiple=0.4, gamma=1.0, factors=np.array([2.0, 1.0]))])
    assert rule.of(rule.start()).tolist() == [[3.2, 1.0]]


def test_machines_share_the_limit() -> None:
    assert limits_after(Limits([admission("fixed", multiple=2.5, machines=4)]))[0] == [2.5, 2.5]


def test_a_group_that_is_never_refused_has_no_limit_and_weighs_as_the_most_important() -> None:
    rule = Limits([admission("aimd_thresh", (NEVER, 3.0), start=2.0, rise=0.5, cut=0.5)])
    assert limits_after(rule)[0] == [math.inf, 8.0]
    # weights 60 and 15 of 75: late only in the second group: 0.2 × 0.6 = 0.12; 0.2 × 0.8 = 0.16
    assert limits_after(rule, tick(finished=(10, 5), late=(0, 3), peak=0))[1] == [math.inf, 10.0]
    assert limits_after(rule, tick(finished=(10, 5), late=(0, 4), peak=0))[1] == [math.inf, 4.0]


def test_lateness_of_a_group_that_is_never_refused_is_late_sooner() -> None:
    rule = Limits([admission("aimd_thresh", (NEVER, 3.0), start=2.0, rise=0.5, cut=0.5)])
    # 0.8 of the weight: 0.04 and 0.032 in all; more and less than a third of 0.14.
    assert limits_after(rule, tick(finished=(100, 5), late=(5, 0), peak=0))[1] == [math.inf, 4.0]
    assert limits_after(rule, tick(finished=(100, 5), late=(4, 0), peak=0))[1] == [math.inf, 10.0]


def test_importance_weighs_lateness() -> None:
    late = tick(finished=(10, 10), late=(0, 5))  # 5 × 0.5 / 25 = 0.1; with importance 4: 20 × 0.5 / 40 = 0.25
    assert state_after(Limits([admission("aimd_thresh")]), late).in_time.tolist() == [True]
    assert state_after(Limits([admission("aimd_thresh", (1.0, 4.0))]), late).in_time.tolist() == [False]


def test_silence_is_late_once_it_exceeds_the_deadline() -> None:
    rule = Limits([admission("aimd_thresh", (1.0, 8.0))])
    silent = tick(finished=(10, 0))  # nothing of the second group: deadline 1 s, ticks of 0.5 s
    after = [state_after(rule, *[silent] * count) for count in (1, 2, 3)]
    assert [state.silent_s[0].tolist() for state in after] == [[0, 0], [0, 0.5], [0, 1.0]]
    assert [bool(state.in_time[0]) for state in after] == [True, True, False]
    empty = state_after(rule, *[tick(finished=(10, 0), in_flight=(2, 0))] * 5)
    assert empty.silent_s[0, 1] == 0
    assert empty.in_time[0]


def test_quick_errors_are_neither_late_nor_silence() -> None:
    rule = Limits([admission("aimd_thresh")])
    state = state_after(rule, *[tick(finished=(0, 9), quick=50)] * 4)
    assert state.in_time[0]
    assert state.silent_s[0, 0] == 0


def test_what_was_in_flight_in_time_raises_the_nominal_count() -> None:
    rule = Limits([admission("thresh", multiple=0.5, gamma=0.5, most=2.0, headroom=1.5)])  # limits 2 and 1
    # 40 in flight and a headroom of 1.5: a nominal count of 30, so that twice as much is 60.
    assert limits_after(rule, tick(peak=40))[1] == [15, 7.5]
    state = state_after(rule, tick(peak=40), *[IN_TIME] * 10)
    assert rule.of(state)[0] == pytest.approx([15 * FADE**10, 7.5 * FADE**10])
    late = rule.after(state, tick(late=(8, 0), peak=90))
    assert rule.of(late)[0] == pytest.approx([15 * FADE**11, 7.5 * FADE**11])
    forgotten = state_after(rule, tick(peak=40), *[IN_TIME] * 500)
    assert rule.of(forgotten)[0].tolist() == [2, 1]


def test_limits_stay_until_enough_was_answered() -> None:
    rule = Limits([admission("aimd_thresh", gamma=0.5, start=2.5, cut=0.5, least_answers=8)])
    few = tick(finished=(3, 0), late=(2, 0), in_flight=(2, 0), over=1, refused=1)
    assert limits_after(rule, few, few, few, few) == [[10, 5], [10, 5], [10, 5], [5, 2.5], [5, 2.5]]
    moved = state_after(rule, few, few, few)
    assert (moved.moved.tolist(), moved.elapsed_s.tolist()) == ([True], [0])
    assert moved.offered[0, 0] == pytest.approx(12 * math.exp(-0.15))
    # A group that is silent for its deadline is reason enough: 0.3 s, and the tick before it had some in flight.
    nothing = tick(finished=(0, 0))
    assert limits_after(rule, nothing, nothing) == [[10, 5], [10, 5], [5, 2.5]]


def test_an_overloaded_tick_raises_what_is_held_only_at_the_top() -> None:
    full = tick(over=3, refused=3, peak=40)
    assert state_after(Limits([admission("thresh")]), full).held.tolist() == [0]
    following = Limits([admission("aimd_thresh", start=3.0, rise=0.25, most=3.5)])
    assert [state_after(following, *[full] * count).held[0] for count in (1, 2, 3)] == [0, 0, 40]


def test_counts_of_the_cap_fade() -> None:
    rule = Limits([admission("fixed", most_refused=0.5)])
    assert rule.most_refused.tolist() == [0.5]
    state = state_after(rule, tick(refused=10), tick(refused=4))
    assert state.offered[0] == pytest.approx([20 * FORGET**2 + 14 * FORGET, 2 * FORGET**2 + 2 * FORGET])
    assert state.refused[0] == pytest.approx([10 * FORGET**2 + 4 * FORGET, 0])


def test_environments_do_not_see_each_other() -> None:
    one, other = admission("aimd_thresh", start=2.0), admission("aimd_thresh", (1.0, 3.0), start=1.0, cut=0.7)
    both = Limits([one, other])
    counts = TickCounts(
        *(np.concatenate([a, b]) for a, b in zip(vars(LATE).values(), vars(IN_TIME).values(), strict=True))
    )
    found = both.of(both.after(both.start(), counts))
    assert found[0].tolist() == limits_after(Limits([one]), LATE)[1]
    assert found[1].tolist() == limits_after(Limits([other]), IN_TIME)[1]


def test_a_batch_has_one_rule() -> None:
    with pytest.raises(ConfigError, match="rules, ticks or groups differ"):
        Limits([admission("fixed"), admission("thresh")])
