"""When a rule of admission may refuse: after it has counted that little would be refused, and never in shadow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from actuators.contract.admission import Admission
from actuators.contract.window import AdmissionWindow, Fault, Window
from tests.support.windows import TOPOLOGY, window
from tuning.steering.admission import REMEMBERED_REQUESTS, AdmissionGuards, AdmissionWatch, IdleLatency

IDLE_S = np.array([0.01, 0.01, 0.01])
GUARDS = AdmissionGuards(proving_windows=4, ordinary_refused=0.01)


def counted(offered: int = 100, *, refused: int = 0, spared: int = 0, late: int = 0) -> Window:
    """A window in which the first of three groups has this and the others have nothing."""

    def row(count: int) -> np.ndarray:
        return np.array([count, 0, 0])

    admission = AdmissionWindow(
        row(offered), row(refused), row(spared), row(offered - refused), row(late), row(0), row(3),
        np.full(3, 20.0), peak=5,
    )  # fmt: skip
    return replace(window(10.0), admission=admission)


def rule(rate_rps: float) -> Admission:
    """Of three groups that come at this rate each."""
    ones = np.ones(3)
    return Admission(TOPOLOGY, "aimd_thresh", 0.1 * ones, ones, IDLE_S, rate_rps * ones)


def measured(*windows: Window, rate_rps: float) -> np.ndarray:
    idle = IdleLatency(rule(rate_rps))
    for each in windows:
        idle.see(each)
    return idle.measured(IDLE_S)


def watch(*windows: Window, proved: bool = False) -> AdmissionWatch:
    made = AdmissionWatch(GUARDS, 0.14, proved=proved)
    for each in windows:
        made.see(each)
    return made


def test_it_only_counts_until_enough_windows_have_shown_that_it_would_refuse_little() -> None:
    three = [counted()] * 3
    assert watch(*three).decide("active", 10.0).percent == 0
    assert watch(*three, counted(spared=4)).decide("active", 10.0).percent == 100
    assert watch(*three, counted(spared=4)).decide("canary", 10.0).percent == 10
    assert watch(*three, counted(spared=4)).decide("shadow", 10.0).percent == 0
    assert "until 4 windows" in watch(*three).decide("active", 10.0).reason


def test_windows_that_say_nothing_prove_nothing() -> None:
    silent, without = counted(0), replace(counted(), admission=None)
    broken = replace(counted(), faults=(Fault("gap", "no statistics"),))
    assert not watch(*[silent, without, broken] * 4).proved
    assert watch(*[silent, counted(), without, broken] * 4).proved


def test_a_rule_that_would_refuse_at_ordinary_times_stays_out_of_force_and_says_so() -> None:
    tight = watch(*[counted(spared=5)] * 6)
    verdict = tight.decide("active", 10.0)
    assert verdict.percent == 0
    assert "would refuse 5.0%" in verdict.alarms[0]
    assert tight.decide("shadow", 10.0).alarms == ()
    for _ in range(4):
        tight.see(counted())
    assert tight.decide("active", 10.0).percent == 100


def test_once_it_refuses_an_overload_does_not_take_it_away() -> None:
    surge = watch(*[counted()] * 4, *[counted(refused=60, spared=5, late=5)] * 20)
    verdict = surge.decide("active", 10.0)
    assert (verdict.percent, verdict.alarms) == (100, ())
    assert watch(*[counted(refused=60)] * 20, proved=True).decide("active", 10.0).percent == 100


def test_refusals_that_do_not_help_are_an_alarm() -> None:
    late = [counted(refused=20, late=30)] * 4
    assert "38% of the answers are late all the same" in watch(*late, proved=True).decide("active", 10.0).alarms[0]
    assert watch(*late[:3], proved=True).decide("active", 10.0).alarms == ()
    assert watch(*[counted(late=60)] * 4, proved=True).decide("active", 10.0).alarms == ()


def test_response_times_at_low_load_are_measured_again_only_there() -> None:
    """300 requests of 20 ms a second and group are 18 in flight: little at 4000 per second of 10 ms, not at 1000."""
    slower = [window(20.0, 100)] * 3
    assert measured(*slower, rate_rps=4000.0) == pytest.approx(0.0195, rel=0.05)
    assert measured(*slower, rate_rps=1000.0) is IDLE_S
    failing = [window(20.0, 100, errors=5)] * 3
    assert measured(*failing, rate_rps=4000.0) is IDLE_S
    assert measured(*[window(10.5, 100)] * 3, rate_rps=4000.0) is IDLE_S
    assert measured(window(20.0, 50), rate_rps=4000.0) is IDLE_S


def test_response_times_of_long_ago_are_forgotten() -> None:
    before, after = [window(20.0, 100)] * 30, [window(5.0, 100)] * 30
    assert 4 * REMEMBERED_REQUESTS < 30 * 300
    assert measured(*before, *after, rate_rps=4000.0) == pytest.approx(0.0046, rel=0.1)
