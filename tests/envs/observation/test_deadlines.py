"""Deadlines follow the plan's equations; ART follows its definition; disturbed phases are refused or flagged.

Seeds are fixed and the clock plays no part: a comparison with a threshold repeats exactly, its error rate is 0.
"""

from __future__ import annotations

import numpy as np
import pytest

from actuators.contract.topology import social_network
from actuators.contract.window import DEFAULT_BOUNDS_MS, Fault
from actuators.errors import DataError
from envs.observation.deadlines import derive_deadlines, tardiness
from envs.scenarios.lookup import scenario
from envs.simulator.testbed import SimulatedTestbed
from tests.support.windows import TOPOLOGY, window


def test_deadline_is_mean_plus_priority_times_deviation() -> None:
    windows = [window(np.array([[50.0], [20.0], [10.0]]), 400, seed=s, spread=0.6) for s in range(10)]
    found = derive_deadlines(windows, TOPOLOGY)
    # Lognormal with σ = 0.6: standard deviation = mean × √(e^0.36 − 1); nginx cuts to whole milliseconds.
    assert found.mean_s == pytest.approx([0.0495, 0.0195, 0.0095], rel=0.02)
    assert found.deviation_s == pytest.approx(np.array([0.05, 0.02, 0.01]) * 0.6583, rel=0.06)
    assert found.seconds == pytest.approx(found.mean_s + 1.5 * found.deviation_s)
    assert found.warnings == ()


def test_a_higher_priority_gets_a_tighter_deadline() -> None:
    from dataclasses import replace

    from actuators.contract.topology import Topology

    groups = social_network().groups
    topology = Topology((replace(groups[0], priority=10.0), *groups[1:]))
    windows = [window(20.0, 400, seed=s, topology=topology) for s in range(5)]
    found = derive_deadlines(windows, topology).seconds
    assert found[0] < found[1] * 0.95


def test_faulty_windows_are_left_out_and_too_many_are_refused() -> None:
    fault = (Fault("restart", "nginx restarted"),)
    clean = [window(10.0, seed=s) for s in range(9)]
    mixed = derive_deadlines([*clean, window(500.0, faults=fault)], TOPOLOGY)
    assert mixed.mean_s == pytest.approx(derive_deadlines(clean, TOPOLOGY).mean_s)
    flagged = derive_deadlines([*clean[:3], *[window(faults=fault)] * 3], TOPOLOGY)
    assert "3 of 6 windows were left out: restart (nginx restarted)" in flagged.warnings[0]
    with pytest.raises(DataError, match=r"only 3 of 9 windows are usable: restart"):
        derive_deadlines([*clean[:3], *[window(faults=fault)] * 6], TOPOLOGY)


def test_too_few_requests_name_the_type() -> None:
    with pytest.raises(DataError, match="compose"):
        derive_deadlines([window(10.0, np.array([[1], [100], [100]]))], TOPOLOGY)


def test_errors_in_the_observation_phase_are_flagged() -> None:
    found = derive_deadlines([window(10.0, errors=10, seed=s) for s in range(3)], TOPOLOGY)
    assert len(found.warnings) == 3
    assert "failed" in found.warnings[0]


def test_tardiness_of_exact_answers_matches_the_definition() -> None:
    one = window(60.0, 5000, spread=0.8, seed=3)
    deadlines_s = np.array([0.03, 0.05, 0.1])
    found = tardiness(one.latency_histogram, one.server_errors, one.bounds_ms, deadlines_s)
    generator = np.random.default_rng(11)
    for group, deadline_s in enumerate(deadlines_s):
        times = 0.06 * generator.lognormal(-0.32, 0.8, 200_000)
        expected = 15000 * np.maximum(times - deadline_s, 0).mean() / deadline_s
        assert found[group] == pytest.approx(expected, rel=0.06)


def test_nothing_late_costs_nothing() -> None:
    one = window(5.0, 1000)
    assert tardiness(one.latency_histogram, one.server_errors, one.bounds_ms, np.full(3, 10.5)).sum() == 0


def test_an_error_costs_at_least_the_worst_answer_and_a_second() -> None:
    histogram = np.zeros((1, 1, len(DEFAULT_BOUNDS_MS) + 1), dtype=np.int64)
    none, one = np.zeros((1, 1), dtype=np.int64), np.ones((1, 1), dtype=np.int64)
    deadline_s = np.array([0.1])
    assert tardiness(histogram, one, DEFAULT_BOUNDS_MS, deadline_s)[0] == pytest.approx(9.0)
    histogram[0, 0, -2] = 1
    base = tardiness(histogram, none, DEFAULT_BOUNDS_MS, deadline_s)[0]
    assert tardiness(histogram, one, DEFAULT_BOUNDS_MS, deadline_s)[0] - base >= 99.0


def test_shedding_load_never_pays() -> None:
    """The study's reward hack: failing requests instead of serving them late must not look better."""
    late = window(3000.0, 100, spread=0.1)
    shed = window(3000.0, 100, spread=0.1, errors=50)
    deadlines_s = np.full(3, 0.1)
    cost = [tardiness(w.latency_histogram, w.server_errors, w.bounds_ms, deadlines_s).sum() for w in (late, shed)]
    assert cost[1] > cost[0]


@pytest.mark.parametrize(("name", "flagged"), [("S1", False), ("S5", True)])
def test_a_disturbed_observation_phase_is_flagged_and_a_quiet_one_is_not(name: str, flagged: bool) -> None:
    # The study's case: servers slowed down at random under round robin make deadlines of a second, and ART blind.
    with SimulatedTestbed(TOPOLOGY, "round_robin") as testbed:
        testbed.reset(scenario(name), 3)
        found = derive_deadlines([testbed.advance(0.5) for _ in range(120)], TOPOLOGY)
    assert any("disturbed the servers" in warning for warning in found.warnings) == flagged
    assert (found.seconds.max() > 0.5) == flagged
