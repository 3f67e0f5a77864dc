"""Clients that give up and repeat, and the gate: every request ends once, limits hold, a collapse ends.

Seeds are fixed and the clock plays no part: a comparison repeats exactly.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actuators.contract.admission import NEVER, Admission, AdmissionNumbers, AdmissionRule
from actuators.contract.late_binding import LateBinding, LateBindingNumbers
from actuators.contract.script import Behaviour, Cache, Clients, RateStep, Script, Stage, StageBehaviour, Stream
from actuators.contract.topology import Group, Topology, social_network
from actuators.errors import ActuationError, ConfigError
from envs.admission.nominal import idle_moments_s, nominal_admission
from envs.scenarios.lookup import scenario
from envs.simulator.testbed import SimulatedBatch, SimulatedTestbed
from envs.simulator.window_batch import WindowBatch
from tests.support.simulated import line_of, script_of

TWO = Topology(tuple(Group(name, name, "GET", "/", 2.0, ("s:80",)) for name in ("a", "b")))
RULES: tuple[AdmissionRule, ...] = ("none", "fixed", "thresh", "aimd_thresh", "gradient", "aimd")


def fixed_limit(limit: float, topology: Topology, importance: Any = None, **more: Any) -> Admission:
    """One request is in flight at nominal rates, so that the multiple is the limit."""
    groups = len(topology.groups)
    numbers = {"most_refused": 1.0, **more.pop("numbers", {})}
    return Admission(
        topology, "fixed", np.full(groups, 10.0), np.ones(groups) if importance is None else np.array(importance),
        np.full(groups, 1.0), np.full(groups, 1.0 / groups), AdmissionNumbers(multiple=limit, headroom=1.0, **numbers),
        **more,
    )  # fmt: skip


def clients(script: Script, deadline_s: float = 1.0, groups: int = 1, **habits: Any) -> Script:
    return replace(script, clients=(Clients(**habits),) * groups, deadlines_s=(deadline_s,) * groups)


def play(script: Script, duration_s: float, admission: Admission | None = None, topology: Topology | None = None,
         method: Any = "least_conn") -> WindowBatch:  # fmt: skip
    batch = SimulatedBatch(topology or line_of(len(script.servers)), 1, method)
    batch.reset(0, script)
    batch.admit(admission)
    return batch.advance(duration_s)


def ended(window: WindowBatch) -> Any:
    counts = window.attempts
    return counts.good + counts.slow + counts.lost_refused + counts.lost_gave_up + counts.lost_failed


def test_clients_give_up_and_the_server_works_on() -> None:
    # 10 ms of work each, given up after 5: NGINX sees 499s, the server is busy all the time.
    script = clients(script_of(50.0, 0.01, service="constant", arrivals="fixed", duration_s=1.0), patience_s=0.005)
    window = play(script, 2.0)
    assert window.planned.sum() == window.attempts.gave_up.sum() == window.attempts.lost_gave_up.sum() == 49
    assert window.responses[0, 0, 0].tolist() == [0, 0, 0, 49, 0]
    assert window.response_ms_sum.sum() == pytest.approx(5 * 49, abs=49)
    assert window.answered.sum() == window.attempts.good.sum() == window.active.sum() == 0
    client = window.window(0).client
    assert client is not None
    assert client.errors["timeout"].tolist() == [49]
    assert client.good is not None
    assert client.good.tolist() == [0]


def test_abandoned_work_delays_those_who_come_later() -> None:
    # 100/s of capacity, 125/s of arrivals: after 1 s a request waits behind 25 others, most of them abandoned.
    script = clients(script_of(125.0, 0.01, service="constant", arrivals="fixed", duration_s=5.0), patience_s=0.1)
    batch = SimulatedBatch(line_of(1), 1)
    batch.reset(0, script)
    assert batch.advance(0.4).attempts.good.sum() == 39
    batch.advance(2.0)
    late = batch.advance(2.0)
    assert late.attempts.good.sum() == 0
    assert late.active.sum() <= 13  # what NGINX has in flight: those who still wait
    after = batch.drain(20.0)
    assert after.end_s[0] > 4.8 + 0.5  # 125 × 0.2 × 4.8 requests of 10 ms less than 1.2 s are left


def test_attempts_are_repeated_as_often_as_said() -> None:
    script = script_of(20.0, 0.01, service="constant", duration_s=10.0)
    script = clients(script, patience_s=0.005, retries=2, retry_failed=1.0, backoff_s=0.02)
    counts = play(script, 20.0).attempts
    planned = play(script, 20.0).planned.sum()
    assert counts.offered.sum() == 3 * planned
    assert counts.lost_gave_up.sum() == planned
    once = replace(script, clients=(replace(script.clients[0], retry_failed=0.5),))
    assert play(once, 20.0).attempts.offered.sum() == pytest.approx((1 + 0.5 + 0.25) * planned, rel=0.1)


def test_a_repeated_attempt_is_good_by_its_own_start() -> None:
    # The server hangs until 1 s; the first attempt is given up after 0.5 s and repeated once the server is back.
    hang = [Behaviour(0.0, 0, hang=True), Behaviour(1.0, 0)]
    steps = (RateStep(0.0, 10.0, "fixed"), RateStep(0.15, 0.0))
    script = script_of(0.0, 0.01, service="constant", behaviours=hang, steps=steps, duration_s=5.0)
    script = clients(script, deadline_s=0.2, patience_s=0.5, retries=1, backoff_s=1.0)
    counts = play(script, 5.0).attempts
    assert (counts.offered.sum(), counts.gave_up.sum(), counts.good.sum(), counts.good_first.sum()) == (2, 1, 1, 0)
    patient = replace(script, clients=(replace(script.clients[0], patience_s=2.0),))
    counts = play(patient, 5.0).attempts
    assert (counts.offered.sum(), counts.good.sum(), counts.slow.sum()) == (1, 0, 1)


def test_a_limit_holds_and_refusals_cost_nothing() -> None:
    script = script_of(400.0, 0.01, service="constant", duration_s=10.0)
    window = play(script, 11.0, fixed_limit(3.0, line_of(1)))
    assert window.attempts.peak.tolist() == [3]
    assert window.attempts.refused.sum() > 2000
    assert window.answered.sum() == window.requests.sum() == window.planned.sum() - window.attempts.refused.sum()
    assert window.failed.sum() == 0
    assert window.answered.sum() == pytest.approx(1000, abs=20)  # the server is never idle
    admission = window.window(0).admission
    assert admission is not None
    assert (admission.limits.tolist(), admission.peak) == ([3.0], 3)


def test_refused_attempts_are_repeated() -> None:
    script = clients(script_of(400.0, 0.01, service="constant", duration_s=10.0), patience_s=9.0, retries=3,
                     retry_refused=0.5, backoff_s=0.1)  # fmt: skip
    window = play(script, 11.0, fixed_limit(1.0, line_of(1)))
    counts = window.attempts
    assert counts.offered.sum() > 1.5 * window.planned.sum()
    assert counts.lost_refused.sum() + counts.good.sum() == window.planned.sum()


def test_part_of_the_requests_may_be_refused() -> None:
    script = script_of(400.0, 0.01, service="constant", duration_s=10.0, queue_limit=10_000)
    shadow = play(script, 10.0, fixed_limit(2.0, line_of(1), percent=0.0))
    assert shadow.attempts.refused.sum() == 0
    assert shadow.attempts.spared.sum() > 3000
    canary = play(script, 10.0, fixed_limit(2.0, line_of(1), percent=25.0)).attempts
    over = canary.refused.sum() + canary.spared.sum()
    assert canary.refused.sum() / over == pytest.approx(0.25, abs=0.02)


def test_no_more_than_a_share_of_a_group_is_refused() -> None:
    script = script_of(400.0, 1.0, service="constant", duration_s=20.0, queue_limit=100_000)
    for share in (0.5, 0.9):
        counts = play(script, 20.0, fixed_limit(1.0, line_of(1), numbers={"most_refused": share})).attempts
        assert counts.refused.sum() / counts.offered.sum() == pytest.approx(share, abs=0.01)
    counts = play(script, 20.0, fixed_limit(1.0, line_of(1))).attempts
    assert counts.refused.sum() >= counts.offered.sum() - 21


def test_a_group_that_is_never_refused_is_not() -> None:
    script = Script("two", 1, 10.0, tuple(Stream(name, (RateStep(0.0, 100.0),)) for name in "ab"),
                    script_of(1.0, 1.0).servers, (0.02, 0.02))  # fmt: skip
    script = replace(script, servers=(replace(script.servers[0], speeds=(1.0, 1.0)),))
    counts = play(script, 10.0, fixed_limit(2.0, TWO, importance=(NEVER, 1.0)), TWO).attempts
    assert counts.refused[0, 0] == 0
    assert counts.refused[0, 1] > 500


def test_limits_follow_the_ticks_and_not_the_windows() -> None:
    topology, windows = social_network(), []
    for length_s in (0.3, 2.0, 6.0):
        batch = SimulatedBatch(topology, 2)
        scripts = [scenario("H-surge").script(topology, seed) for seed in (3, 4)]
        for index, script in enumerate(scripts):
            batch.reset(index, script)
        batch.admit([nominal_admission(script, topology, "aimd_thresh") for script in scripts])
        windows.append([batch.advance(length_s) for _ in range(round(30 / length_s))])
    for name in ("offered", "refused", "good", "good_first", "late", "finished"):
        sums = [sum(getattr(w.attempts, name) for w in several).tolist() for several in windows]
        assert sums[0] == sums[1] == sums[2], name
    assert [several[-1].attempts.limits.tolist() for several in windows[1:]] == [
        windows[0][-1].attempts.limits.tolist()
    ] * 2
    assert sum(w.attempts.refused for w in windows[0]).sum() > 100
    peaks = [np.max([w.attempts.peak for w in several], axis=0).tolist() for several in windows]
    assert peaks[0] == peaks[1] == peaks[2]


def test_environments_threads_and_resets_change_nothing() -> None:
    topology = social_network()
    scripts = [scenario("H").script(topology, seed) for seed in range(5)]
    found = []
    for threads in (1, 3):
        batch = SimulatedBatch(topology, 5, threads=threads)
        for index, script in enumerate(scripts):
            batch.reset(index, script)
        batch.admit([nominal_admission(script, topology, "aimd_thresh") for script in scripts])
        found.append(batch.advance(20.0))
        batch.reset(2, scripts[2])
        batch.reset(3, scripts[1], nominal_admission(scripts[1], topology, "aimd_thresh"))
        again = batch.advance(20.0)
        for name in ("offered", "refused", "good", "late", "limits"):
            assert np.array_equal(getattr(again.attempts, name)[2], getattr(found[-1].attempts, name)[2]), name
            assert np.array_equal(getattr(again.attempts, name)[3], getattr(found[-1].attempts, name)[1]), name
    assert np.array_equal(found[0].attempts.good, found[1].attempts.good)
    assert np.array_equal(found[0].latency_counts, found[1].latency_counts)


def test_what_is_never_over_its_limit_is_as_without_admission() -> None:
    topology, script = social_network(), scenario("S7", 60.0).script(social_network(), 1)
    windows = [
        play(script, 60.0, admission, topology)
        for admission in (None, fixed_limit(1e2, topology, numbers={"most": 1e3}))
    ]
    assert windows[1].attempts.refused.sum() == 0
    for name in ("latency_counts", "responses", "response_ms_sum", "failed", "active"):
        assert np.array_equal(getattr(windows[0], name), getattr(windows[1], name)), name
    assert windows[0].window(0).admission is None


def test_every_method_takes_limits_and_every_rule_plays() -> None:
    topology, script = social_network(), scenario("H-surge", 25.0).script(social_network(), 5)
    for method in ("round_robin", "random_two", "expected_delay", "shortest_delay", "join_shortest", "central_queue"):
        window = play(script, 25.0, nominal_admission(script, topology, "aimd_thresh"), topology, method)
        assert window.attempts.refused.sum() > 0, method
    for rule in RULES:
        window = play(script, 25.0, nominal_admission(script, topology, rule), topology)
        assert (window.attempts.refused.sum() > 0) == (rule != "none"), rule


def test_a_collapse_stays_without_admission_and_ends_with_it() -> None:
    """A bottleneck of 100/s behind the servers, 70/s, and 210/s for 5 s; each client makes three attempts."""
    steps = (RateStep(0.0, 70.0), RateStep(10.0, 210.0), RateStep(15.0, 70.0))
    script = replace(script_of(0.0, 0.001, workers=1000, steps=steps), stages=(Stage(4, (0.04,), (1.0,)),))
    script = clients(script, deadline_s=0.4, patience_s=1.0, retries=2, backoff_s=0.3)
    script = replace(script, servers=(replace(script.servers[0], queue_limit=10_000),))
    good = {}
    for rule in ("none", "aimd_thresh"):
        batch = SimulatedBatch(line_of(1), 1)
        batch.reset(0, script)
        batch.admit(nominal_admission(script, line_of(1), rule))  # type: ignore[arg-type]
        before, surge, after = batch.advance(10.0), batch.advance(10.0), batch.advance(30.0)
        good[rule] = [float(w.attempts.good.sum() / w.planned.sum()) for w in (before, surge, after)]
    assert good["none"][0] > 0.95
    assert good["none"][2] < 0.1
    assert good["aimd_thresh"][0] > 0.95
    assert good["aimd_thresh"][1] > good["none"][1] + 0.15
    assert good["aimd_thresh"][2] > 0.95


def test_what_was_inside_is_out_when_traffic_ends() -> None:
    topology = social_network()
    for seed in range(8):
        script = scenario("H").script(topology, seed)
        batch = SimulatedBatch(topology, 1)
        batch.reset(0, script)
        batch.admit(nominal_admission(script, topology, "aimd_thresh"))
        batch.advance(30.0)
        batch.drain(300.0)
        last = batch.advance(1.0)
        assert last.attempts.inside.sum() == last.active.sum() == 0


def test_wrong_admissions_are_refused() -> None:
    batch = SimulatedBatch(line_of(1), 2)
    with pytest.raises(ConfigError, match="2 groups of 1"):
        batch.admit(fixed_limit(1.0, TWO))
    with pytest.raises(ConfigError, match="1 admissions for 2 environments"):
        batch.admit([fixed_limit(1.0, line_of(1))])
    with pytest.raises(ConfigError, match="no admission is in force"):
        batch.reset(0, script_of(1.0, 1.0), fixed_limit(1.0, line_of(1)))
    with SimulatedTestbed(line_of(1)) as testbed, pytest.raises(ActuationError, match="another topology"):
        testbed.admit(fixed_limit(1.0, TWO))
    with pytest.raises(ConfigError, match="there are no deadlines"):
        nominal_admission(script_of(1.0, 1.0), line_of(1), "fixed")


def test_a_testbed_tells_what_it_refused() -> None:
    with SimulatedTestbed(social_network()) as testbed:
        testbed.reset(scenario("H-surge"), 3)
        testbed.admit(fixed_limit(2.0, social_network()))
        window = testbed.advance(5.0)
        assert window.admission is not None
        assert window.admission.refused.sum() > 0
        assert window.client is not None
        assert window.client.good is not None
        assert window.client.repeated is not None
        assert (window.client.repeated >= 0).all()
        assert (window.client.answered >= window.admission.refused).all()
        assert (window.client.errors["status_5xx"] >= window.admission.refused).all()
        testbed.admit(None)
        assert testbed.advance(5.0).admission is None


def test_idle_moments_are_what_an_idle_system_shows() -> None:
    cache = Cache((True,), hit=0.5, fill=1e9, most=0.95, decay_s=1e9)
    script = replace(script_of(1.0, 0.02, service="lognormal"), stages=(Stage(9, (0.03,), (0.6,), cache=cache),
                                                                       Stage(9, (0.01,), (1.0,))))  # fmt: skip
    mean_s, deviation_s = idle_moments_s(script)
    assert mean_s[0] == pytest.approx(0.02 + 0.3 * 0.03 + 0.01)
    window = play(replace(script, streams=(Stream("read", (RateStep(0.0, 2.0),)),)), 20_000.0)
    assert window.latency_s_sum.sum() / window.answered.sum() == pytest.approx(mean_s[0], rel=0.03)
    assert deviation_s[0] == pytest.approx(np.sqrt(0.02**2 + 0.3 * 2 * 0.03**2 - 0.009**2 + 0.01**2))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Script, Admission, str]:
    servers, groups = draw(st.integers(1, 3)), 2
    share, time_s = st.floats(0.0, 1.0), st.floats(0.001, 0.5)
    stages = tuple(
        Stage(
            draw(st.integers(1, 4)), (draw(time_s), draw(time_s)), (draw(share), draw(share)), draw(share),
            draw(st.sampled_from((None, Cache((True, False), 0.5, 2.0)))),
        )
        for _ in range(draw(st.integers(0, 3)))
    )  # fmt: skip
    behaviours = draw(st.lists(
        st.builds(Behaviour, at_s=share, server=st.integers(0, servers - 1), speed=st.floats(0.1, 10.0),
                  error_ratio=share, refused=st.booleans(), hang=st.booleans()), max_size=5,
    ))  # fmt: skip
    script = Script(
        "drawn", draw(st.integers(0, 99)), 1.0,
        tuple(Stream(name, (RateStep(0.0, draw(st.floats(0.0, 500.0))),)) for name in "ab"),
        tuple(replace(script_of(1.0, 1.0).servers[0], speeds=(1.0, 1.0), workers=draw(st.integers(1, 5)),
                      queue_limit=draw(st.sampled_from((0, 3, 512))), blocking=draw(st.booleans()))
              for _ in range(servers)),
        (draw(time_s), draw(time_s)), behaviours=tuple(behaviours), stages=stages,
        stage_behaviours=tuple(StageBehaviour(draw(share), k, draw(st.floats(0.1, 2.0)), stage.cache is not None)
                               for k, stage in enumerate(stages)),
        clients=tuple(
            Clients(draw(st.floats(0.005, 2.0)), draw(st.integers(0, 3)), draw(share), draw(share), draw(share))
            for _ in range(draw(st.sampled_from((0, groups))))
        ),
        deadlines_s=(draw(time_s), draw(time_s)), overhead_s=draw(st.sampled_from((0.0, 0.01))),
        load_balancers=draw(st.sampled_from((1, 3))),
    )  # fmt: skip
    addresses = tuple(f"s{i}:80" for i in range(servers))
    topology = Topology(tuple(Group(name, name, "GET", "/", 2.0, addresses) for name in "ab"))
    methods = ("least_conn", "round_robin", "expected_delay", "central_queue", "shortest_delay", "late_binding")
    method = draw(st.sampled_from(methods))
    return script, nominal_admission(script, topology, draw(st.sampled_from(RULES))), method


@settings(max_examples=60)
@given(cases())
def test_every_request_ends_once(case: tuple[Script, Admission, str]) -> None:
    script, admission, method = case
    batch = SimulatedBatch(admission.topology, 1, method)  # type: ignore[arg-type]
    batch.reset(0, script)
    batch.admit(admission)
    if method in ("expected_delay", "late_binding"):
        batch.set_service_times(np.full((1, *admission.topology.shape), 0.01), np.full((1, len(script.servers)), 2.0))
    if method == "late_binding":
        numbers = LateBindingNumbers(order="earliest_deadline", longest_hold_s=3.0, most_held=40)
        slots = np.full(len(script.servers), 2)
        batch.hold([LateBinding(admission.topology, np.array(script.deadlines_s), slots, numbers)])
    windows = [batch.advance(0.7), batch.advance(3.0)]
    open_ones = sum(w.planned - ended(w) for w in windows)
    assert (open_ones >= 0).all()
    counts = [w.attempts for w in windows]
    entered = sum(c.offered - c.refused for c in counts)
    out = sum(c.finished + c.quick for c in counts)
    assert (entered - out == counts[-1].inside).all()
    answered = sum(w.answered for w in windows)
    assert (out == answered + sum(c.gave_up for c in counts)).all()
    assert (sum(c.good + c.slow for c in counts) == sum(w.latency_counts.sum(axis=2) for w in windows)).all()
    assert (windows[-1].active >= 0).all()
    if method != "central_queue":
        assert (windows[-1].active.sum(axis=2) <= counts[-1].inside.sum()).all()
    if not any(change.hang or change.refused for change in script.behaviours):
        windows += [batch.drain(2000.0), batch.advance(0.1)]
        assert windows[-1].attempts.inside.sum() == windows[-1].active.sum() == 0
        if all(habits.retries == 0 for habits in script.clients):
            assert (sum(w.planned - ended(w) for w in windows) == 0).all()


def test_a_token_bucket_lets_in_its_rate_and_its_burst() -> None:
    script = script_of(400.0, 0.001, service="constant", servers=1, workers=8, duration_s=20.0)
    batch = SimulatedBatch(line_of(1), 1)
    batch.reset(0, script)
    batch.set_rates(np.array([[100.0]]), 0.5)
    batch.advance(1.0)
    counts = batch.advance(10.0).attempts
    assert counts.offered.sum() - counts.refused.sum() == pytest.approx(1000, abs=1)
    assert counts.spared.sum() == 0
    batch.set_rates(np.array([[1e6]]), 0.5)
    assert batch.advance(1.0).attempts.refused.sum() == 0
    batch.reset(0, replace(script, seed=2))  # buckets end with the play
    assert batch.advance(5.0).attempts.refused.sum() == 0


def test_what_is_saved_in_a_bucket_is_bounded() -> None:
    steps = (RateStep(0.0, 0.0), RateStep(10.0, 1000.0, "fixed"))
    script = script_of(0.0, 0.001, service="constant", workers=8, steps=steps, duration_s=20.0)
    batch = SimulatedBatch(line_of(1), 1)
    batch.reset(0, script)
    batch.set_rates(np.array([[20.0]]), 0.5)
    batch.advance(10.0)
    counts = batch.advance(0.1).attempts
    assert counts.offered.sum() - counts.refused.sum() == pytest.approx(10 + 2, abs=1)


def test_buckets_and_admission_exclude_each_other() -> None:
    batch = SimulatedBatch(line_of(1), 1)
    batch.reset(0, script_of(400.0, 0.01, service="constant"))
    with pytest.raises(ConfigError, match="no admission is in force"):
        batch.set_factors(np.ones((1, 1)))
    batch.admit(fixed_limit(3.0, line_of(1)))
    with pytest.raises(ConfigError, match="an admission is in force"):
        batch.set_rates(np.ones((1, 1)), 0.1)
    with pytest.raises(ConfigError, match="factors do not fit"):
        batch.set_factors(np.zeros((1, 1)))
    batch.set_factors(np.full((1, 1), 2.0))
    assert batch.advance(5.0).attempts.peak.tolist() == [6]
    batch.admit(None)
    batch.set_rates(np.full((1, 1), 1.0), 0.1)
    assert batch.advance(5.0).attempts.refused.sum() > 1900
    batch.admit(fixed_limit(3.0, line_of(1)))
    assert batch.advance(5.0).attempts.refused.sum() < 1700


def test_users_of_a_closed_loop_send_as_little_says_and_wait_for_each_answer() -> None:
    """Little's law: users = rate × (think time + response time); no more are in flight than there are users."""
    script = script_of(0.0, 0.01, workers=4, duration_s=500.0)
    script = replace(script, clients=(Clients(3600.0, users=30, think_s=0.2),), deadlines_s=(1.0,))
    batch = SimulatedBatch(line_of(1), 1, "least_conn")
    batch.reset(0, script)
    batch.advance(20.0)
    window = batch.advance(400.0)
    answered = int(window.answered.sum())
    rate_rps, response_s = answered / 400.0, float(window.latency_s_sum.sum()) / answered
    assert rate_rps * (0.2 + response_s) == pytest.approx(30, rel=0.02)
    assert window.planned.sum() == pytest.approx(answered, abs=30)
    assert window.attempts.gave_up.sum() == 0
    assert int(window.active.sum()) <= 30
    drained = batch.drain(5.0)
    assert int(drained.active.sum()) == 0
    assert batch.advance(5.0).planned.sum() == 0


def test_a_closed_loop_sends_less_while_its_server_is_slow() -> None:
    slow = Behaviour(100.0, 0, speed=0.1)
    script = script_of(0.0, 0.01, workers=1, duration_s=300.0, behaviours=(slow,))
    script = replace(script, clients=(Clients(3600.0, users=10, think_s=0.1),), deadlines_s=(1.0,))
    batch = SimulatedBatch(line_of(1), 1, "least_conn")
    batch.reset(0, script)
    usual, slowed = batch.advance(100.0), batch.advance(100.0)
    # At a tenth of the speed the only worker is always busy: ten requests per second, and nobody is lost.
    assert usual.answered.sum() / 100.0 > 60
    assert slowed.answered.sum() / 100.0 == pytest.approx(10, rel=0.15)
    assert slowed.active.sum() <= 10


def test_a_user_whose_request_is_lost_goes_on() -> None:
    down = Behaviour(0.0, 0, refused=True)
    script = script_of(0.0, 0.01, workers=1, duration_s=100.0, behaviours=(down,))
    script = replace(script, clients=(Clients(3600.0, users=5, think_s=0.5),), deadlines_s=(1.0,))
    window = play(script, 100.0)
    assert window.latency_counts.sum() == 0
    assert window.attempts.lost_failed.sum() == pytest.approx(5 * 100 / 0.5, rel=0.15)


@pytest.mark.parametrize(
    ("habits", "told"),
    [({"users": -1}, "users"), ({"users": 3, "think_s": 0.0}, "think_s"), ({"users": 10**7, "think_s": 1.0}, "users")],
)
def test_a_closed_loop_that_cannot_be_played_is_refused(habits: dict[str, Any], told: str) -> None:
    script = script_of(0.0, 0.01, workers=1)
    with pytest.raises(ConfigError, match=told):
        play(replace(script, clients=(Clients(1.0, **habits),)), 1.0)
