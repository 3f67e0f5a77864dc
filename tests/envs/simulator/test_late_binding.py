"""Late binding: without slots it is expected_delay, with them no server gets more; orders, the longest hold, overload.

Seeds are fixed and the clock plays no part: a comparison repeats exactly.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actuators.contract.admission import NEVER
from actuators.contract.late_binding import HoldOrder, LateBinding, LateBindingNumbers, slots_for
from actuators.contract.script import Behaviour, RateStep, Script, ServerProfile, Stream
from actuators.contract.topology import Topology, social_network
from actuators.errors import ConfigError
from envs.environment.study_setup import SHARED_MEMORY
from envs.estimators.registry import DEFAULT_ESTIMATOR
from envs.scenarios.lookup import scenario
from envs.simulator import binding
from envs.simulator.batch import SimulatedBatch
from envs.study.judge import deadlines_s, judge
from envs.study.rules import Learning, late_binding, rule_named
from tests.support.simulated import line_of, script_of

TOPOLOGY = social_network(("a:80", "b:80", "c:80"))
MANY = 10**6


def bound(topology: Topology, slots: int | np.ndarray, **numbers: Any) -> LateBinding:
    """Every deadline is 50 ms."""
    groups, servers = topology.shape
    room = np.broadcast_to(np.asarray(slots), servers).copy()
    return LateBinding(topology, np.full(groups, 0.05), room, LateBindingNumbers(**numbers))


def playing(script: Script, topology: Topology, slots: int | np.ndarray | None, **numbers: Any) -> SimulatedBatch:
    """A batch with true service times; None for `expected_delay`."""
    batch = SimulatedBatch(topology, 1, "expected_delay" if slots is None else "late_binding")
    batch.reset(0, script)
    times_s = [
        [mean_s / server.speeds[g] for server in script.servers] for g, mean_s in enumerate(script.mean_service_s)
    ]
    batch.set_service_times(np.array([times_s]), np.array([[float(server.workers) for server in script.servers]]))
    if slots is not None:
        batch.hold([bound(topology, slots, **numbers)])
    return batch


@pytest.mark.parametrize("name", ["S2", "S7", "S9"])
def test_with_slots_for_all_it_is_expected_delay(name: str) -> None:
    script = scenario(name, duration_s=20.0).script(TOPOLOGY, 7)
    theirs, ours = (playing(script, TOPOLOGY, slots).advance(20.0) for slots in (None, MANY))
    assert theirs.requests.sum() > 1000
    for field in ("requests", "response_ms_sum", "latency_counts", "failed", "delay"):
        assert np.array_equal(getattr(theirs, field), getattr(ours, field)), field


def test_no_server_has_more_than_its_slots_and_none_idles_while_requests_are_held() -> None:
    slots = np.array([1, 4, 2])
    batch = playing(scenario("S8", duration_s=20.0).script(TOPOLOGY, 3), TOPOLOGY, slots, theta=1000.0)
    held = 0
    for _ in range(2000):
        window = batch.advance(0.01)
        in_flight = window.active[0].sum(axis=0) if window.active[0].ndim > 1 else window.active[0]
        assert (in_flight <= slots).all()
        if int(window.attempts.inside.sum()) > in_flight.sum():
            held += 1
            assert (in_flight == slots).all()
    assert held > 100


def test_a_request_waits_for_the_faster_server_only_as_long_as_theta_says() -> None:
    """One worker each, the second server is ten times as slow: it gets requests only when the first one's wait, counted
    θ times, is longer than its own time.
    """
    topology = line_of(2)
    servers = (ServerProfile((1.0,), 1), ServerProfile((0.1,), 1))
    script = Script("two", 1, 1e6, (Stream("read", (RateStep(0.0, 60.0),)),), servers, (0.01,))
    shares = []
    for theta in (1.0, 1.4, 10.0):
        requests = playing(script, topology, 1, theta=theta).advance(60.0).requests[0, 0]
        shares.append(requests[1] / requests.sum())
    assert shares[0] < shares[1] < shares[2]


def rules_of(order: HoldOrder) -> Any:
    """What the event loop has of these numbers."""
    numbers = LateBindingNumbers(order=order)
    return SimpleNamespace(
        order=binding.ORDER_CODES[order], waiting_weight=numbers.waiting_weight, late_weight=numbers.late_weight
    )


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        # (age, expected service, deadline), all in seconds: the last two will be late.
        ("fifo", [3, 4, 1, 0, 2]),
        ("response_ratio", [1, 0, 2, 4, 3]),
        ("earliest_deadline", [1, 2, 0, 4, 3]),
        ("shortest", [1, 0, 2, 4, 3]),
    ],
)
def test_orders(order: HoldOrder, expected: list[int]) -> None:
    held = [(0.03, 0.01, 0.10), (0.04, 0.01, 0.06), (0.02, 0.01, 0.08), (0.20, 0.02, 0.10), (0.10, 0.01, 0.10)]
    ranks = [binding.priority.py_func(rules_of(order), *request, 1.0) for request in held]
    assert [int(index) for index in np.argsort(ranks)[::-1]] == expected


@pytest.mark.parametrize("age_s", [0.0, 0.05, 0.08])
def test_what_will_be_late_comes_after_the_like_and_before_what_takes_much_longer(age_s: float) -> None:
    rank, rules = binding.priority.py_func, rules_of("shortest")
    late, fresh = rank(rules, 0.2, 0.01, 0.1, 1.0), rank(rules, age_s, 0.01, 0.1, 1.0)
    longer = rank(rules, 0.0, 0.03, 0.3, 1.0)
    assert fresh > late > longer


@pytest.mark.parametrize(
    ("order", "moves"), [("fifo", False), ("response_ratio", True), ("earliest_deadline", True), ("shortest", True)]
)
def test_an_important_group_comes_earlier(order: HoldOrder, moves: bool) -> None:
    """Twice as important, both in time and late."""
    rank, code = binding.priority.py_func, rules_of(order)
    for age_s in (0.03, 0.30):
        plain, important = (rank(code, age_s, 0.01, 0.10, worth) for worth in (1.0, 2.0))
        assert (important > plain) == moves
        assert moves or important == plain


def test_what_is_held_for_too_long_gets_503_and_a_full_line_too() -> None:
    topology = line_of(1)
    script = script_of(10.0, 0.01, behaviours=(Behaviour(1.0, 0, hang=True),), duration_s=8.0)
    batch = playing(script, topology, 1, longest_hold_s=3.0)
    first, later = batch.advance(4.5), batch.advance(3.0)
    assert (first.failed.sum(), later.answered.sum()) != (0, 0)
    # One a tenth of a second has been held for 3 s, from the first after the hang on.
    assert later.failed.sum() == pytest.approx(30, abs=15)
    full = playing(script, topology, 1, longest_hold_s=3.0, most_held=5).advance(3.5)
    assert full.failed.sum() == pytest.approx(10 * 2.5 - 6, abs=15)
    assert full.attempts.inside.sum() == 6


@pytest.mark.parametrize(("order", "most_mean"), [("shortest", 0.65), ("earliest_deadline", 0.65)])
def test_in_overload_many_more_requests_are_answered_in_time(order: HoldOrder, most_mean: float) -> None:
    chosen = scenario("S8", duration_s=300.0)
    numbers = LateBindingNumbers(order=order, slots_per_worker=1.0)
    rule = late_binding(deadlines_s(chosen, TOPOLOGY), numbers, Learning(DEFAULT_ESTIMATOR), SHARED_MEMORY)
    base, delayed, ours = (
        judge(each, chosen, TOPOLOGY, (101,)) for each in (rule_named("least_conn"), rule_named("expected_delay"), rule)
    )
    assert ours.goodput > base.goodput + 0.2
    assert ours.goodput > delayed.goodput + 0.2
    assert ours.over(base).mean_ms < most_mean


def refusing(factor: float | None, never: tuple[int, ...] = (), order: HoldOrder = "earliest_deadline") -> Any:
    """S8 for 60 s with true times and slots for the workers; a window over all of it."""
    script = scenario("S8", duration_s=60.0).script(TOPOLOGY, 101)
    batch = playing(script, TOPOLOGY, 1)
    importance = np.array([NEVER if g in never else 1.0 for g in range(3)])
    slots = np.array([server.workers for server in script.servers])
    numbers = LateBindingNumbers(order=order, refuse_factor=factor)
    batch.hold([LateBinding(TOPOLOGY, deadlines_s(scenario("S8"), TOPOLOGY), slots, numbers, importance)])
    return batch.advance(60.0)


def test_what_would_be_late_is_refused_at_once_but_of_a_group_that_is_never_refused() -> None:
    plain, strict, lenient, spared = refusing(None), refusing(1.0), refusing(3.0), refusing(1.0, never=(0,))
    assert plain.failed.sum() == 0
    assert strict.failed.sum() > lenient.failed.sum() > 0
    assert strict.failed.sum() < 0.2 * strict.requests.sum()
    assert spared.failed[0, 0] == 0
    assert spared.failed[0, 1:].sum() > 0
    # Nobody waits for long in vain.
    means = [window.latency_s_sum.sum() / window.answered.sum() for window in (plain, strict)]
    assert means[1] < 0.9 * means[0]


def test_slots_never_leave_workers_idle() -> None:
    workers = np.array([1.0, 2.5, 8.0])
    assert slots_for(workers, 2.0).tolist() == [2, 5, 16]
    assert slots_for(workers, 1.0).tolist() == [1, 3, 8]
    assert slots_for(workers, 2.0, balancers=4).tolist() == [2, 2, 4]
    assert slots_for(workers, 1.0, balancers=8).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("slots", "deadline_s", "words"), [(0, 0.05, "slots do not fit"), (1, 0.0, "deadlines do not fit")]
)
def test_values_out_of_range_are_refused(slots: int, deadline_s: float, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LateBinding(TOPOLOGY, np.full(3, deadline_s), np.full(3, slots))


def test_a_binding_of_other_servers_is_refused() -> None:
    batch = SimulatedBatch(TOPOLOGY, 1, "late_binding")
    batch.reset(0, scenario("S1", duration_s=5.0).script(TOPOLOGY, 1))
    with pytest.raises(ConfigError, match="do not fit"):
        batch.hold([bound(line_of(1), 1)])
