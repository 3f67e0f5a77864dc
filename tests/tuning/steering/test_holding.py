"""When requests may be held: after counting that few would be, never a part of them; harm counts from arrival."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from actuators.contract.window import Fault, Window
from tests.support.windows import hold_window, window
from tuning.steering import window_json
from tuning.steering.harm import error_ratio, tardiness_per_request
from tuning.steering.holding import HoldGuards, HoldWatch
from tuning.steering.window_json import WindowModel

GUARDS = HoldGuards(proving_windows=4, ordinary_held=0.05)


def counted(asked: int = 100, **more: int | str) -> Window:
    return replace(window(10.0), holding=hold_window(asked, **more))  # type: ignore[arg-type]


def watch(*windows: Window, proved: bool = False) -> HoldWatch:
    made = HoldWatch(GUARDS, proved=proved)
    for each in windows:
        made.see(each)
    return made


def test_it_only_counts_until_enough_windows_have_shown_that_few_would_be_held() -> None:
    three = [counted()] * 3
    assert not watch(*three).decide("active", 10.0).holds
    assert "until 4 windows" in watch(*three).decide("active", 10.0).reason
    proved = watch(*three, counted(would=20))
    assert proved.decide("active", 10.0).holds
    assert not proved.decide("shadow", 10.0).holds


def test_a_part_of_the_requests_is_never_held() -> None:
    proved = watch(*[counted()] * 4)
    verdict = proved.decide("canary", 10.0)
    assert not verdict.holds
    assert verdict.reason.startswith("canary: a part of the requests cannot be held")
    assert proved.decide("canary", 100.0).holds


def test_windows_that_say_nothing_prove_nothing() -> None:
    silent, without = counted(0), replace(counted(), holding=None)
    broken, off = replace(counted(), faults=(Fault("gap", "no statistics"),)), counted(state="off")
    assert not watch(*[silent, without, broken, off] * 4).proved
    assert watch(*[silent, counted(), without, broken, off] * 4).proved


def test_too_few_slots_are_an_alarm_and_nothing_is_held() -> None:
    tight = watch(*[counted(would=40)] * 6)
    verdict = tight.decide("active", 10.0)
    assert not verdict.holds
    assert "would hold 40.0% of the requests of 4 windows" in verdict.alarms[0]
    assert tight.decide("shadow", 10.0).alarms == ()
    for _ in range(4):
        tight.see(counted(would=1))
    assert tight.decide("active", 10.0).holds


def test_once_it_holds_an_overload_does_not_end_it_and_refusals_are_an_alarm() -> None:
    surge = watch(*[counted(state="holding", held=90)] * 20, proved=True)
    assert (surge.decide("active", 10.0).holds, surge.decide("active", 10.0).alarms) == (True, ())
    full = watch(*[counted(state="holding", held=90, refused=4)] * 4, proved=True).decide("active", 10.0)
    assert full.holds
    assert "refuses 4.0% of the requests" in full.alarms[0]


def test_lateness_and_failures_count_from_arrival_and_with_those_that_were_refused() -> None:
    """Servers answer within 10 ms; held requests took 90 ms, which is twice the deadline of 30 ms too late."""
    deadlines_s = np.full(3, 0.03)
    seen = window(10.0, np.array([[100] * 3, [0] * 3, [0] * 3]))
    quick = replace(seen, holding=hold_window(100, state="holding", answered_ms=10))
    held = replace(seen, holding=hold_window(100, state="holding", held=90, answered_ms=75))
    assert tardiness_per_request(quick, deadlines_s) == 0
    assert tardiness_per_request(held, deadlines_s) == pytest.approx((0.07 - 0.03) / 0.03)
    assert tardiness_per_request(replace(held, holding=replace(hold_window(), state="off")), deadlines_s) == (
        pytest.approx(tardiness_per_request(seen, deadlines_s))
    )
    refusing = replace(seen, holding=hold_window(100, state="holding", refused=100))
    assert error_ratio(seen) == 0
    assert error_ratio(refusing) == pytest.approx(100 / (seen.requests.sum() + 100))


def test_a_window_is_the_same_as_json_and_back() -> None:
    seen = counted(would=3, held=2, refused=1, late=4)
    data = window_json.to_json(seen)
    again = window_json.from_json(WindowModel.model_validate(data), seen.topology)
    assert window_json.to_json(again) == data
    assert again.holding is not None
    assert again.holding.answered.tolist() == [99, 0, 0]
