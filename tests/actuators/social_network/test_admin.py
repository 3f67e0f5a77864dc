"""Behaviour over time: what each pattern does, and what a person may post."""

from __future__ import annotations

from itertools import pairwise

import pytest

from actuators.contract.script import Behaviour
from actuators.errors import ConfigError
from actuators.social_network.admin import PATTERNS, behaviours_from_json, crash, periodic, slow_start, steps, telegraph

ARGUMENTS = {
    "steps": {"speeds": [0.5, 0.8], "step_s": 4},
    "telegraph": {"speed": 0.5, "duration_s": 200},
    "periodic": {"speed": 0.5, "duration_s": 70},
    "slow_start": {},
    "crash": {"down_s": 5, "slow_start_speed": 0.2},
    "errors": {"ratio": 0.5, "duration_s": 20},
}


@pytest.mark.parametrize("name", PATTERNS)
def test_every_pattern_ascends_and_ends_undisturbed(name: str) -> None:
    behaviours = behaviours_from_json({"pattern": name, "server": 2, **ARGUMENTS[name]})
    assert [b.at_s for b in behaviours] == sorted(b.at_s for b in behaviours)
    last = behaviours[-1]
    assert last == Behaviour(last.at_s, 2)
    assert any(b != Behaviour(b.at_s, 2) for b in behaviours)


def test_telegraph_is_bad_for_its_share_of_the_time() -> None:
    behaviours = telegraph(0.5, duration_s=30_000, good_s=10, bad_s=5, seed=1)
    assert telegraph(0.5, duration_s=30_000, good_s=10, bad_s=5, seed=1) == behaviours
    bad_s = sum(b.at_s - a.at_s for a, b in pairwise(behaviours) if a.speed == 0.5)
    assert bad_s / 30_000 == pytest.approx(1 / 3, abs=0.03)


def test_periodic_steps_slow_start_and_crash_change_when_they_should() -> None:
    assert [(b.at_s, b.speed) for b in periodic(0.5, 30, period_s=20, slow_s=5, phase_s=2)] == [
        (2, 0.5), (7, 1.0), (22, 0.5), (27, 1.0), (30, 1.0),
    ]  # fmt: skip
    assert [(b.at_s, b.speed) for b in steps([0.3, 0.6], 10)] == [(0, 0.3), (10, 0.6), (20, 1.0)]
    speeds = [b.speed for b in slow_start(0.2, 9, 5.0)]
    assert speeds == pytest.approx([0.2 + 0.1 * n for n in range(9)])
    down, *recovery = crash(10, slow_start_speed=0.5)
    assert down.refused
    assert recovery[0].at_s == 10
    assert not any(b.refused for b in recovery)


def test_a_single_behaviour_holds_at_once_and_a_list_keeps_its_times() -> None:
    assert behaviours_from_json({"speed": 0.5}) == (Behaviour(0.0, 0, 0.5),)
    assert behaviours_from_json([{"hang": True}, {"at_s": 3}]) == (Behaviour(0.0, 0, hang=True), Behaviour(3, 0))


def test_a_phase_and_the_time_of_an_error_may_be_zero() -> None:
    assert behaviours_from_json({"pattern": "periodic", "speed": 0.5, "duration_s": 9, "phase_s": 0})
    assert behaviours_from_json({"pattern": "errors", "ratio": 1, "duration_s": 9, "error_service_s": 0})


@pytest.mark.parametrize(("posted", "says"), [
    ({"sped": 0.5}, "sped"),
    ({"speed": 0}, "speed 0"),
    ({"speed": float("nan")}, "speed nan"),
    ({"speed": "fast"}, "invalid behaviour"),
    ({"error_ratio": 1.5}, "error ratio 1.5"),
    ([{"at_s": 2}, {"at_s": 1}], "order"),
    ([5], "invalid behaviour"),
    ({"pattern": "telegraf", "speed": 1}, "did you mean 'telegraph'"),
    ({"pattern": "telegraph", "sped": 1}, "did you mean 'speed'"),
    ({"pattern": "telegraph", "speed": 0.5}, "duration_s"),
    ({"pattern": "telegraph", "speed": 0.5, "duration_s": 9, "good_s": 0}, "good_s is 0.*more than 0"),
    ({"pattern": "telegraph", "speed": 0.5, "duration_s": 9, "bad_s": -5}, "bad_s is -5"),
    ({"pattern": "telegraph", "speed": 0.5, "duration_s": float("inf")}, "duration_s is inf.*finite"),
    ({"pattern": "telegraph", "speed": 0.5, "duration_s": 1e9, "good_s": 1e-9}, "more than 100000 changes"),
    ({"pattern": "periodic", "speed": 0.5, "duration_s": 9, "period_s": 0}, "period_s is 0"),
    ({"pattern": "periodic", "speed": 0.5, "duration_s": 9, "period_s": 1e-320}, "more than 100000 changes"),
    ({"pattern": "slow_start", "steps": 10**9}, "more than 100000 changes"),
    ({"pattern": "steps", "speeds": [0.5, float("nan")], "step_s": 1}, "speeds is nan"),
    ({"pattern": "crash", "down_s": 10**400}, "down_s is 1000.*finite"),
    ({"speed": 10**400}, "invalid behaviour"),
])  # fmt: skip
def test_what_no_server_can_play_is_refused_in_words(posted: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        behaviours_from_json(posted)
