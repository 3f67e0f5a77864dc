"""What an onboarding says of admission: a system that more traffic overloads, and one that it does not."""

from __future__ import annotations

from pathlib import Path

from envs.calibration.result import Calibration
from envs.study.promise import Plan
from envs.study.promise_options import PromiseOptions
from envs.study.rules import Rule, fixed_weights
from rayjobs.onboard.protect import Protection, protect

CALIBRATION = Calibration.load(Path("tests/data/runs/calibration.json"))


def protection(growth: float) -> Protection:
    plan = Plan(CALIBRATION, CALIBRATION.topology, PromiseOptions(), 1)
    return protect(Rule("today", CALIBRATION.method, lambda: fixed_weights(CALIBRATION.today)), plan, growth)


def test_an_overload_is_survived_with_admission_only() -> None:
    found = protection(2.5)
    assert found.without.high < 0.5
    assert found.gain.low > 0.2
    assert found.refused.value > 0.05
    assert found.refused_today.high < 0.01
    assert found == protection(2.5)
    said = found.sentence()
    assert said.startswith("At 2.5 × your traffic, when clients give up after 5 × the deadline")
    assert "Simulated" in said


def test_without_an_overload_nothing_is_lost() -> None:
    found = protection(1.05)
    assert found.without.value > 0.95
    assert abs(found.gain.value) < 0.01
    assert found.refused.value < 0.01
