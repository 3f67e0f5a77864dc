"""Scenarios re-drawn from published statistics: gaps, dispersion, waves and sizes are those that are named.

Seeds are fixed and the clock plays no part: a comparison with a threshold repeats exactly, its error rate is 0. With
other seeds each would fail with a probability below 1e-5: the limits are more than 4.4 standard errors away.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from actuators.contract.on_off import draw_on_off
from actuators.contract.script import Clients
from actuators.contract.script_check import check_live, check_script
from actuators.contract.topology import social_network
from actuators.errors import ConfigError
from envs.scenarios.catalogue import CONVERSATION_DISPERSION, CONVERSATION_REQUESTS, TRACED
from envs.scenarios.lookup import scenario
from envs.scenarios.timeline import change_times, load_ratio, rates_rps
from envs.simulator import lane as columns
from envs.simulator.compiling import compiled
from envs.simulator.draws import ARRIVAL_CODES, gap_shape, lognormal_sigma, unit_gap

TOPOLOGY = social_network()


@compiled
def _draw(steps: Any, key: Any, gaps: Any) -> None:
    for number in range(len(gaps)):
        gaps[number] = unit_gap(steps[0], key, number)


def gaps_of(distribution: str, cv: float, count: int, key: int = 7) -> np.ndarray:
    steps = np.zeros(1, columns.STEP)
    steps["distribution"] = ARRIVAL_CODES[distribution]
    steps["shape"], steps["scale"] = gap_shape(distribution, cv)
    gaps = np.zeros(count)
    _draw(steps, np.uint64(key), gaps)
    return gaps


@pytest.mark.parametrize(
    ("distribution", "cv"), [("gamma", 13.0), ("gamma", 1.1), ("gamma", 0.5), ("weibull", 3.0), ("weibull", 0.4)]
)
def test_gaps_have_the_mean_and_the_variation_that_are_asked_for(distribution: str, cv: float) -> None:
    gaps = gaps_of(distribution, cv, 2_000_000)
    assert gaps.min() >= 0
    assert gaps.mean() == pytest.approx(1.0, rel=5 * cv / math.sqrt(2_000_000) + 1e-3)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_gamma_of_variation_1_is_exponential() -> None:
    gaps = np.sort(gaps_of("gamma", 1.0, 200_000))
    empirical = (np.arange(len(gaps)) + 0.5) / len(gaps)
    assert np.abs(1 - np.exp(-gaps) - empirical).max() < 0.006


def test_conversations_have_the_dispersion_of_the_trace() -> None:
    """Variance over mean of the count in windows of 330 requests."""
    script = replace(TRACED["T2"], duration_s=4000.0).script(TOPOLOGY, 11)
    total_rps = sum(float(np.mean([s.rate_rps for s in stream.steps])) for stream in script.streams)
    window_s = CONVERSATION_REQUESTS / total_rps
    edges_s = np.arange(0.0, script.duration_s, window_s)
    counts = np.zeros(len(edges_s) - 1)
    for number, stream in enumerate(script.streams):
        starts_s = np.array([*(step.start_s for step in stream.steps), script.duration_s])
        rates = np.array([step.rate_rps for step in stream.steps])
        due = np.concatenate([[0.0], np.cumsum(rates * np.diff(starts_s))])
        cv = stream.steps[0].cv
        at = np.cumsum(gaps_of("gamma", cv, int(1.02 * due[-1]), key=100 + number))
        counts += np.histogram(np.interp(at[at < due[-1]], due, starts_s), edges_s)[0]
    assert counts.mean() == pytest.approx(CONVERSATION_REQUESTS, rel=0.05)
    assert counts.var() / counts.mean() == pytest.approx(CONVERSATION_DISPERSION, rel=0.10)


def test_on_off_jumps_between_two_rates_with_mean_1() -> None:
    steps = draw_on_off(2.0, 6.0, 0.2, 400_000.0, np.random.default_rng(3))
    starts_s = np.array([start_s for start_s, _ in steps] + [400_000.0])
    factors = np.array([factor for _, factor in steps])
    lengths_s = np.diff(starts_s)
    assert set(factors) == {0.2, (1 - 0.75 * 0.2) / 0.25}
    assert (np.diff(factors) != 0).all()
    assert lengths_s @ factors / lengths_s.sum() == pytest.approx(1.0, rel=0.03)
    assert lengths_s[factors == 0.2].mean() == pytest.approx(6.0, rel=0.03)
    assert lengths_s[factors > 1][:-1].mean() == pytest.approx(2.0, rel=0.03)


def test_one_type_makes_nine_tenths_and_a_wave_comes_and_goes() -> None:
    script = scenario("T3").script(TOPOLOGY, 5)
    rates = rates_rps(script, 0.0)
    assert rates.max() / rates.sum() == pytest.approx(0.9)
    assert script.streams[int(rates.argmax())].request_type == "home_read"
    totals = [rates_rps(script, at_s).sum() for at_s in np.arange(1.0, 600.0, 1.0)]
    assert np.mean(totals) == pytest.approx(0.4 * 12 / float(rates / rates.sum() @ script.mean_service_s), rel=0.02)
    assert max(totals) / np.mean(totals) == pytest.approx(1.8, rel=0.02)
    assert {step.distribution for stream in script.streams for step in stream.steps} == {"gamma"}


def test_a_flash_crowd_rises_within_seconds_and_falls_slowly() -> None:
    script = scenario("T4").script(TOPOLOGY, 5)
    loads = np.array([load_ratio(script, at_s) for at_s in change_times(script)])
    assert loads.max() == pytest.approx(0.28 * 3.2)
    assert loads.min() == pytest.approx(0.28)
    seconds = np.array([load_ratio(script, at_s) for at_s in np.arange(0.0, 600.0)])
    rising, falling = (np.diff(seconds) > 1e-9).sum(), (np.diff(seconds) < -1e-9).sum()
    assert falling > 3 * rising > 0


def test_work_spans_three_orders_of_magnitude() -> None:
    """From the first to the last percent."""
    assert math.exp(2 * 2.3263 * lognormal_sigma(TRACED["T5"].service_cv)) == pytest.approx(1000, rel=0.05)


def test_users_in_a_closed_loop_make_the_load_of_their_number_and_think_time() -> None:
    script = TRACED["T6"].script(TOPOLOGY, 1)
    assert all(step.rate_rps == 0 for stream in script.streams for step in stream.steps)
    assert {habits.think_s for habits in script.clients} == {7.0}
    service_s = np.array(script.mean_service_s)
    rates = np.array([habits.users for habits in script.clients]) / (7.0 + service_s)
    assert rates.sum() == pytest.approx(0.85 * 2209.9, rel=1e-3)
    assert load_ratio(script, 0.0) == pytest.approx(0.85, rel=1e-3)
    assert rates / rates.sum() == pytest.approx([0.1, 0.6, 0.3], rel=1e-2)
    with pytest.raises(ConfigError, match="closed loop cannot be played live"):
        check_live(script)


@pytest.mark.parametrize(("retries", "backoff_s"), [(101, 1.0), (1, 0.0)])
def test_repeats_that_the_load_engine_does_not_take_are_told_beforehand(retries: int, backoff_s: float) -> None:
    habits = Clients(3.0, retries=retries, backoff_s=backoff_s)
    script = replace(TRACED["T1"].script(TOPOLOGY, 1), clients=(habits,) * len(TOPOLOGY.groups))
    check_script(script, TOPOLOGY)
    with pytest.raises(ConfigError, match=f"{retries} retries after {backoff_s:g} s cannot be played live"):
        check_live(script)
