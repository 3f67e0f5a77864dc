"""Load plans: what each kind asks for, and what is refused."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actuators.contract.script import RateStep, Stream
from actuators.contract.topology import social_network
from actuators.errors import ConfigError
from actuators.load.plans import PlanOptions, make_streams, parse_plan, plan_text
from tests.support.stand_in_engine import fake_engine


def rate_at(stream: Stream, at_s: float) -> float:
    return [step.rate_rps for step in stream.steps if step.start_s <= at_s][-1]


def total_rate(streams: tuple[Stream, ...], at_s: float) -> float:
    return sum(rate_at(stream, at_s) for stream in streams)


def test_constant_shares_the_rate_by_the_mix() -> None:
    streams = make_streams(PlanOptions(plan="constant", rate_rps=100, mix={"compose": 1, "user_read": 3}))
    assert {s.request_type: [step.rate_rps for step in s.steps] for s in streams} == {
        "compose": [25],
        "user_read": [75],
    }


def test_steps_change_the_rate_and_may_be_silent() -> None:
    streams = make_streams(PlanOptions(plan="steps", steps=("0:100", "5:0", "7.5:50"), distribution="fixed"))
    assert [round(total_rate(streams, at_s), 9) for at_s in (0, 4.9, 5, 7.4, 8)] == [100, 100, 0, 0, 50]
    assert {step.distribution for stream in streams for step in stream.steps} == {"fixed"}


def test_diurnal_swings_between_low_and_high() -> None:
    streams = make_streams(PlanOptions(plan="diurnal", low_rps=10, high_rps=110, period_s=60, duration_s=120))
    assert total_rate(streams, 0) == pytest.approx(10, abs=0.1)
    assert total_rate(streams, 15) == pytest.approx(60, abs=2)
    assert total_rate(streams, 30) == pytest.approx(110, abs=0.1)
    assert total_rate(streams, 90) == pytest.approx(110, abs=0.1)
    mean = sum(total_rate(streams, at_s / 2) for at_s in range(240)) / 240
    assert mean == pytest.approx(60, rel=1e-6)


def test_a_trace_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("time_s,compose,home_read\n# a remark\n2,10,20\n4,0,40.5\n")
    streams = make_streams(PlanOptions(plan="trace", trace=path))
    assert [s.request_type for s in streams] == ["compose", "home_read"]
    assert [[rate_at(s, at_s) for s in streams] for at_s in (0, 2, 5)] == [[0, 0], [10, 20], [0, 40.5]]


def test_random_bursts_stay_within_their_bounds_and_repeat() -> None:
    bounds: dict[str, Any] = {"min_rate_rps": 5, "max_rate_rps": 9, "min_burst_s": 2, "max_burst_s": 4}
    options = PlanOptions(plan="random", duration_s=300, min_backoff_s=1, max_backoff_s=2, **bounds)
    streams = make_streams(options)
    assert [s.request_type for s in streams] == ["compose", "home_read", "user_read"]
    assert streams == make_streams(options)
    assert streams != make_streams(options.model_copy(update={"seed": 2}))
    used = set()
    for stream in streams:
        for burst, pause, after in zip(stream.steps[::2], stream.steps[1::2], stream.steps[2::2], strict=False):
            assert 5 <= burst.rate_rps <= 9
            assert pause.rate_rps == 0
            assert 2 <= pause.start_s - burst.start_s <= 4.000001
            assert 0.999999 <= after.start_s - pause.start_s <= 2.000001
            used.add(burst.distribution)
    assert used == {"exponential", "normal", "fixed", "zipf"}


def test_the_given_engine_draws_the_random_plan(tmp_path: Path) -> None:
    plan = "stream compose POST /compose compose\nstep 0 5 fixed\nstep 2 0 fixed\n"
    drawn = make_streams(PlanOptions(), fake_engine(tmp_path, [], plan=plan))
    assert drawn == (Stream("compose", (RateStep(0.0, 5.0, "fixed"), RateStep(2.0, 0.0, "fixed"))),)
    with pytest.raises(ConfigError, match="printed no plan"):
        make_streams(PlanOptions(), fake_engine(tmp_path, []))
    with pytest.raises(ConfigError, match="does not run"):
        make_streams(PlanOptions(), tmp_path / "nowhere")


def test_a_body_file_of_no_type_is_refused(tmp_path: Path) -> None:
    streams = make_streams(PlanOptions(plan="constant"))
    with pytest.raises(ConfigError, match="did you mean 'compose'"):
        plan_text(social_network(), streams, {"compse": tmp_path})


def test_on_off_jumps_around_its_rate_for_all_types_at_once() -> None:
    options = PlanOptions(plan="on_off", duration_s=20_000, rate_rps=100, on_s=2, off_s=6, off_factor=0.2)
    streams = make_streams(options)
    assert streams == make_streams(options)
    assert streams != make_streams(options.model_copy(update={"seed": 2}))
    starts = [[step.start_s for step in stream.steps] for stream in streams]
    assert starts[0] == starts[1] == starts[2]
    rates = np.array([[step.rate_rps for step in stream.steps] for stream in streams]).sum(axis=0)
    assert sorted({round(rate, 6) for rate in rates}) == [20.0, 340.0]
    lengths_s = np.diff([*starts[0], 20_000.0])
    assert rates @ lengths_s / 20_000 == pytest.approx(100, rel=0.15)


def test_a_variation_of_gaps_goes_into_the_plan_and_back() -> None:
    options = PlanOptions(plan="constant", distribution="gamma", gap_cv=13.0)
    streams = make_streams(options)
    assert {(step.distribution, step.cv) for stream in streams for step in stream.steps} == {("gamma", 13.0)}
    text = plan_text(social_network(), streams, {})
    assert text.count(" gamma 13.0\n") == 3
    assert parse_plan(text) == streams
    wrong = (Stream("compose", (RateStep(0.0, 1.0, "exponential", 2.0),)),)
    with pytest.raises(ConfigError, match="exponential gaps have a fixed cv"):
        plan_text(social_network(), wrong, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plan": "steps", "steps": ("0-100",)}, "'0-100' is not a step"),
        ({"plan": "constant", "mix": {"compose": 0, "home_read": 0}}, "mix is"),
        ({"plan": "diurnal", "period_s": 0.001}, "72000000 steps"),
        ({"plan": "random", "duration_s": 1e6, "min_burst_s": 0.01, "min_backoff_s": 0.01}, "50000000 bursts"),
        ({"plan": "diurnal", "low_rps": 5, "high_rps": 4}, "low_rps 5 exceeds"),
        ({"plan": "trace"}, "needs a file"),
        ({"plan": "trace", "trace": Path("/nowhere.csv")}, "cannot read the trace"),
        ({"plan": "random", "min_rate_rps": 20, "max_rate_rps": 10}, "more than --max-rate-rps"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_streams(PlanOptions(**options))


@pytest.mark.parametrize(
    ("text", "message"),
    [("time_s\n0\n", "no trace"), ("when,compose\n0,1\n", "no trace"), ("time_s,compose\n0,x\n", "row 1"),
     ("time_s,compose\n0,1\n1,2,3\n", "3 columns")],
)  # fmt: skip
def test_a_broken_trace_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        make_streams(PlanOptions(plan="trace", trace=path))


def test_rates_are_finite() -> None:
    for plan in ("constant", "steps", "diurnal"):
        for stream in make_streams(PlanOptions(plan=plan)):  # type: ignore[arg-type]
            assert all(math.isfinite(step.rate_rps) for step in stream.steps)
