"""The decision core: every guard speaks when it should, names itself, and is silent otherwise."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from actuators.contract.control import Weights
from actuators.contract.window import Fault
from tests.support.steering_cases import EQUAL, UNEVEN, Run, advice, options
from tests.support.windows import TOPOLOGY, window
from tuning.steering.decide import NO_BUCKETS
from tuning.steering.options import GUARDS

GOOD, LATE, FAILING = window(10.0), window(400.0), window(10.0, errors=50)
BLIND = window(10.0, faults=(Fault("gap", "no answer"),))
QUIET = window(10.0, requests=1)


def test_shadow_decides_and_changes_nothing() -> None:
    run = Run(options(mode="shadow"))
    decisions = run.steps([GOOD] * 20, advice())
    assert all(d.source == "policy" and not d.change for d in decisions)
    assert run.steering.in_force == EQUAL
    assert decisions[0].control != EQUAL


def test_the_baseline_is_measured_before_the_policy_acts() -> None:
    run = Run(options(guards={"reference_windows": 5}))
    first = run.steps([GOOD] * 4, advice())
    assert [(d.source, d.guards) for d in first] == [("baseline", ("measuring",))] * 4
    assert run.step(GOOD, advice()).source == "policy"


def test_active_arrives_at_the_policys_weights_in_limited_steps() -> None:
    run = Run(options(guards={"largest_step": 1.2}))
    before = EQUAL.shares()
    for decision in run.steps([GOOD] * 12, advice()):
        if decision.change:
            after = decision.control.shares()
            assert (after / before).max() < 1.2 * 1.02, "2 % for integer weights"
            before = after
    assert run.steering.in_force == UNEVEN
    assert "step" in run.decisions[3].guards


def test_canary_stops_at_its_share_of_the_way() -> None:
    run = Run(options(mode="canary", canary_percent=25.0))
    run.steps([GOOD] * 12, advice())
    expected = EQUAL.shares() + 0.25 * (UNEVEN.shares() - EQUAL.shares())
    assert run.steering.in_force.shares() == pytest.approx(expected, abs=0.01)


def test_a_canary_in_memory_has_the_whole_control_for_its_part_of_the_requests() -> None:
    run = Run(options(mode="canary", canary_percent=25.0))
    run.steering.splits = True
    run.steps([GOOD] * 12, advice())
    canary = run.steering.canary
    assert run.steering.in_force == UNEVEN
    assert canary is not None
    assert (canary.percent, canary.base) == (25.0, EQUAL)
    way = UNEVEN.shares() - EQUAL.shares()
    assert run.steering.shown.shares() == pytest.approx(EQUAL.shares() + 0.25 * way, abs=0.005)
    assert not run.step(GOOD, advice()).change
    # Another percentage is a change although the control is the same; active mode goes on from the shares in force.
    run.steering.options = run.steering.options.model_copy(update={"canary_percent": 50.0})
    assert run.step(GOOD, advice()).change
    before = run.steering.shown.shares()
    run.steering.options = run.steering.options.model_copy(update={"mode": "active"})
    after = run.step(GOOD, advice())
    assert after.canary is None
    assert (after.control.as_weights().shares() / before).max() < run.steering.options.guards.largest_step * 1.02
    run.steering.options = run.steering.options.model_copy(update={"mode": "canary", "canary_percent": 0.0})
    none = run.step(GOOD, advice())
    assert (none.control, none.canary) == (EQUAL, None)


def test_at_most_one_change_per_time() -> None:
    run = Run(options(guards={"min_between_changes_s": 3.0, "largest_step": 1.1}))
    run.until_steering(GOOD, advice())
    following = run.steps([GOOD] * 6, advice())
    assert [d.change for d in following] == [False, False, True, False, False, True]
    assert "rate" in following[0].guards


def test_reloads_are_rarer_unless_a_server_dies() -> None:
    run = Run(options(guards={"min_between_reloads_s": 6.0, "largest_step": 1.1}))
    run.until_steering(GOOD, advice())
    following = run.steps([GOOD] * 12, advice())
    assert [d.change for d in following] == [False] * 5 + [True] + [False] * 5 + [True]
    requests = np.full(TOPOLOGY.shape, 100)
    requests[:, 1] = 0
    dying = run.steps([window(10.0, requests=requests)] * 4, advice())
    assert any(d.change and "silent" in d.guards for d in dying)


def test_floor_and_cap() -> None:
    extreme = Weights(TOPOLOGY, np.tile([100, 1, 1], (3, 1)))
    run = Run(options(guards={"floor": 20, "cap_share": 0.6, "largest_step": 100.0}))
    decision = run.until_steering(GOOD, advice(extreme))
    assert {"floor", "cap"} & set(decision.guards)
    assert decision.control.shares().max() <= 0.61
    assert decision.control.values.min() >= 20


def test_too_little_traffic_holds() -> None:
    run = Run(options())
    run.until_steering(GOOD, advice())
    decision = run.step(QUIET, advice(EQUAL))
    assert (decision.source, decision.guards, decision.change) == ("hold", ("traffic",), False)


def test_a_quiet_group_keeps_its_weights_while_others_move() -> None:
    requests = np.full(TOPOLOGY.shape, 100)
    requests[1] = 1
    run = Run(options(guards={"largest_step": 100.0}))
    run.steps([GOOD] * 2, advice(EQUAL))
    decision = run.step(window(10.0, requests=requests), advice())
    assert "traffic" in decision.guards
    assert decision.control.shares()[1] == pytest.approx([1 / 3] * 3)
    assert decision.control.shares()[0] == pytest.approx(UNEVEN.shares()[0], abs=0.01)


def test_unreadable_statistics_hold_then_the_baseline() -> None:
    run = Run(options(guards={"stale_after_s": 5.0}))
    run.until_steering(GOOD, advice())
    held = run.steps([BLIND] * 4, None)
    assert all((d.source, d.change, d.guards) == ("hold", False, ("stale",)) for d in held)
    then = run.step(BLIND, None)
    assert (then.source, then.change, then.alarms) == ("baseline", True, ("statistics missing",))
    assert run.steering.in_force == EQUAL


def test_a_reload_alone_is_no_reason_to_hold() -> None:
    run = Run(options())
    decision = run.until_steering(replace(GOOD, faults=(Fault("reload", "reloaded"),)), advice())
    assert decision.source == "policy"


def test_unknown_traffic_goes_to_the_baseline_and_comes_back_after_the_dwell_time() -> None:
    run = Run(options(guards={"largest_step": 100.0, "dwell_s": 20.0, "novel_windows": 5, "familiar_windows": 10}))
    run.until_steering(GOOD, advice())
    decisions = run.steps([GOOD] * 5, advice(novelty=4.0))
    assert [d.source for d in decisions] == ["policy"] * 4 + ["baseline"]
    assert decisions[-1].alarms == ("recalibrate",)
    assert run.steering.in_force == EQUAL
    # Between 0.8 and 1 it is neither novel nor familiar.
    assert {d.source for d in run.steps([GOOD] * 30, advice(novelty=0.9))} == {"baseline"}
    again = run.steps([GOOD] * 10, advice(novelty=0.5))
    assert [d.source for d in again] == ["baseline"] * 9 + ["policy"]
    # The second time it takes twice as many windows, and the baseline stays for twice 20 s, however familiar the
    # traffic is.
    assert [d.source for d in run.steps([GOOD] * 10, advice(novelty=4.0))] == ["policy"] * 9 + ["baseline"]
    waiting = run.steps([GOOD] * 39, advice(novelty=0.5))
    assert {d.source for d in waiting} == {"baseline"}
    assert "may act again" in waiting[-1].reason
    assert run.step(GOOD, advice(novelty=0.5)).source == "policy"


def test_a_few_novel_windows_are_no_unknown_state() -> None:
    run = Run(options())
    run.until_steering(GOOD, advice())
    assert {d.source for d in run.steps([GOOD] * 19, advice(novelty=4.0))} == {"policy"}
    assert run.step(GOOD, advice()).source == "policy"


def test_a_policy_that_fails_now_and_then_does_not_flap() -> None:
    run = Run(options())
    run.until_steering(GOOD, advice())
    sources = [run.step(GOOD, None if index % 10 == 0 else advice()).source for index in range(100)]
    assert sum(a != b for a, b in itertools.pairwise(["policy", *sources])) <= 4


def test_more_load_is_no_harm_and_a_sudden_rise_is() -> None:
    """The wave doubles requests and lateness over 400 windows; then the lateness alone doubles at once."""
    run = Run(options(guards={"art_windows": 4, "art_windows_higher_load": 20}))
    run.until_steering(window(30.0), advice())
    wave = [window(30.0 * (1 + index / 400), 100 + index // 4, seed=index) for index in range(400)]
    assert {d.source for d in run.steps(wave, advice())} == {"policy"}
    # How late the baseline would be under this load is unknown: a burst is no harm, lasting lateness is.
    burst = run.steps([window(200.0, 200, seed=index) for index in range(15)], advice())
    assert {d.source for d in burst} == {"policy"}
    run.steps([window(60.0, 200, seed=index) for index in range(30)], advice())
    then = run.steps([window(200.0, 200, seed=index) for index in range(24)], advice())
    assert "art" in {guard for d in then for guard in d.guards}


def test_the_same_lateness_without_more_load_is_harm() -> None:
    run = Run(options(guards={"art_windows": 4}))
    run.until_steering(window(30.0), advice())
    rising = [window(30.0 * (1 + index / 50), 100, seed=index) for index in range(100)]
    assert "art" in {guard for d in run.steps(rising, advice()) for guard in d.guards}


def test_one_response_of_half_an_hour_is_no_harm() -> None:
    run = Run(options())
    run.until_steering(GOOD, advice())
    histogram, total = GOOD.latency_histogram.copy(), GOOD.response_ms_sum.copy()
    histogram[0, 0, -1] += 1
    total[0, 0] += 1_800_000
    long = replace(GOOD, latency_histogram=histogram, response_ms_sum=total)
    assert {d.source for d in run.steps([long, GOOD, GOOD, GOOD, GOOD, GOOD], advice())} == {"policy"}


def test_attempts_that_another_server_answered_are_no_errors_of_clients() -> None:
    run = Run(options())
    run.until_steering(GOOD, advice())
    hidden = replace(FAILING, client_errors=0)
    assert {d.source for d in run.steps([hidden] * 6, advice())} == {"policy"}
    assert run.steps([replace(FAILING, client_errors=450)] * 2, advice())[-1].guards == ("errors",)


def test_without_buckets_it_steers_on_means_and_says_so() -> None:
    run = Run(options())
    means = replace(GOOD, bounds_ms=(), latency_histogram=GOOD.requests[..., None])
    run.steps([means] * 3, advice())
    decision = run.step(means, advice())
    assert (decision.source, decision.alarms) == ("policy", (NO_BUCKETS,))
    late = replace(LATE, bounds_ms=(), latency_histogram=LATE.requests[..., None])
    assert "art" in {guard for d in run.steps([late] * 4, advice()) for guard in d.guards}


@pytest.mark.parametrize("given", [None, advice(None, problem="NotANumberError: nan")])
def test_a_policy_that_fails_gives_way_to_the_baseline(given: object) -> None:
    run = Run(options(guards={"largest_step": 100.0}))
    run.until_steering(GOOD, advice())
    decision = run.step(GOOD, given)  # type: ignore[arg-type]
    assert (decision.source, decision.guards, decision.change) == ("baseline", ("policy",), True)
    assert decision.alarms == ("policy failed",)


def test_lateness_reverts_backs_off_and_tries_again() -> None:
    run = Run(options(guards={"art_windows": 3, "back_off_s": 10.0}))
    run.until_steering(GOOD, advice())
    decisions = run.steps([LATE] * 3, advice())
    assert [d.source for d in decisions] == ["policy", "policy", "baseline"]
    assert decisions[-1].guards == ("art",)
    assert "back to the baseline for 10 s" in decisions[-1].alarms[0]
    assert run.steering.in_force == EQUAL
    waiting = run.steps([GOOD] * 9, advice())
    assert {d.source for d in waiting} == {"baseline"}
    assert run.until_steering(GOOD, advice()).change
    # The second time it waits twice as long.
    run.steps([LATE] * 3, advice())
    assert {d.source for d in run.steps([GOOD] * 19, advice())} == {"baseline"}


def test_a_surge_of_errors_reverts_within_two_windows() -> None:
    run = Run(options())
    run.until_steering(GOOD, advice())
    decisions = run.steps([FAILING] * 2, advice())
    assert decisions[-1].guards == ("errors",)
    assert (decisions[-1].source, run.steering.in_force == EQUAL) == ("baseline", True)


def test_requests_that_find_no_server_count_as_errors() -> None:
    run = Run(options())
    run.until_steering(GOOD, advice())
    nobody = replace(GOOD, faults=(Fault("server_down", "7 requests found no live server", "home_read_backend"),))
    assert run.steps([nobody] * 2, None)[-1].guards == ("errors",)


def test_what_the_baseline_suffers_too_is_no_harm() -> None:
    run = Run(options())
    run.steps([FAILING] * 5, advice())
    assert {d.source for d in run.steps([FAILING] * 10, advice())} == {"policy"}


def test_the_baseline_is_measured_again_when_its_measure_is_old() -> None:
    run = Run(options(guards={"reference_age_s": 20.0}))
    run.until_steering(GOOD, advice())
    sources = [d.source for d in run.steps([GOOD] * 40, advice())]
    assert sources.count("baseline") >= 2
    assert sources[-1] == "policy" or "policy" in sources[-8:]


def test_overload_pulls_to_equal() -> None:
    run = Run(options(guards={"largest_step": 100.0, "overload_pull": 1.0, "art_windows": 100}))
    run.until_steering(GOOD, advice())
    decision = run.step(window(80.0), advice())
    assert ("overload" in decision.guards, decision.alarms) == (True, ("overload",))
    assert decision.control.shares() == pytest.approx(EQUAL.shares(), abs=0.01)


def test_the_operator_pauses_resumes_and_reverts() -> None:
    run = Run(options(guards={"largest_step": 100.0}))
    run.until_steering(GOOD, advice())
    run.steering.override = "paused"
    paused = run.steps([GOOD, LATE, FAILING], advice(EQUAL))
    assert all((d.source, d.change, d.guards) == ("hold", False, ("operator",)) for d in paused)
    run.steering.override = "reverted"
    assert [d.change for d in run.steps([GOOD] * 2, advice())] == [True, False]
    assert run.steering.in_force == EQUAL
    run.steering.override = ""
    assert run.step(GOOD, advice()).source == "policy"


def test_back_to_shadow_takes_the_policys_weights_out() -> None:
    run = Run(options())
    run.until_steering(GOOD, advice())
    run.steering.options = run.steering.options.model_copy(update={"mode": "shadow"})
    assert run.step(GOOD, advice()).change
    assert run.steering.in_force == EQUAL
    assert not run.step(GOOD, advice()).change


OTHERS = Weights(TOPOLOGY, np.tile([10, 20, 70], (3, 1)))
FIRST_OUT = TOPOLOGY.mask & (np.arange(3) == 0)


def shadowed(run: Run) -> Run:
    run.steering.options = run.steering.options.model_copy(update={"mode": "shadow"})
    return run


def test_shadow_leaves_weights_that_somebody_else_has_set_over_the_policys() -> None:
    run = Run(options())
    run.until_steering(GOOD, advice())
    run.steering.adopt(OTHERS, external=True, original=EQUAL)
    decisions = shadowed(run).steps([GOOD, LATE, FAILING] * 10, advice())
    assert not any(decision.change for decision in decisions)
    assert run.steering.in_force == OTHERS
    assert not {"art", "errors"} & {guard for decision in decisions for guard in decision.guards}
    # In active mode the first weights are measured before the policy acts.
    run.steering.options = run.steering.options.model_copy(update={"mode": "active"})
    decision = run.step(GOOD, advice())
    assert (decision.source, decision.guards, decision.change) == ("baseline", ("measuring",), True)


def test_shadow_takes_the_policys_weights_back_although_somebody_has_taken_a_server_out() -> None:
    run = Run(options())
    run.until_steering(GOOD, advice())
    drained, first = (replace(weights, down=FIRST_OUT) for weights in (run.steering.in_force, EQUAL))
    run.steering.adopt(drained, external=True, original=first)
    assert [decision.change for decision in shadowed(run).steps([GOOD] * 3, advice())] == [True, False, False]
    assert run.steering.in_force == first


def test_shadow_leaves_the_weights_that_an_nginx_has_after_its_restart() -> None:
    run = Run(options(mode="shadow"))
    run.steps([GOOD] * 3, advice())
    run.steering.adopt(OTHERS, external=False)
    assert not any(decision.change for decision in run.steps([GOOD] * 3, advice()))
    assert run.steering.in_force == OTHERS


@pytest.mark.parametrize("external", [True, False])
def test_shadow_takes_back_what_an_earlier_controller_left(external: bool) -> None:
    run = Run(options(mode="shadow"))
    run.steering.adopt(OTHERS, external=external, original=EQUAL)
    assert run.step(GOOD, advice()).change is not external
    assert run.steering.in_force == (OTHERS if external else EQUAL)


def test_servers_that_were_down_stay_down() -> None:
    down = np.zeros(TOPOLOGY.shape, bool)
    down[:, 1] = True
    run = Run(options(guards={"largest_step": 100.0}), Weights(TOPOLOGY, np.full(TOPOLOGY.shape, 5), down))
    decision = run.until_steering(GOOD, advice())
    assert np.array_equal(decision.control.down, down)
    assert decision.control.shares()[0] == pytest.approx([0.8, 0.0, 0.2], abs=0.01)


def test_whatever_comes_the_weights_are_legal() -> None:
    generator = np.random.default_rng(1)
    windows, given = [GOOD, LATE, FAILING, BLIND, QUIET], [advice(), advice(None), None, advice(novelty=9.0)]
    run = Run(options(guards={"back_off_s": 5.0, "stale_after_s": 3.0}))
    for _ in range(500):
        wild = advice(Weights(TOPOLOGY, generator.integers(1, 101, TOPOLOGY.shape)))
        decision = run.step(windows[generator.integers(5)], [*given, wild, wild][generator.integers(6)])
        # Weights refuses what is not legal; an unusable window never changes to the policy's.
        assert decision.control.values.min() >= 1
        assert set(decision.guards) <= set(GUARDS)
        assert decision.reason
    assert {d.source for d in run.decisions} == {"policy", "baseline", "hold"}
