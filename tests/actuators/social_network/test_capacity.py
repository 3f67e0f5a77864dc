"""Emulated capacity: the virtual queue against a plain reference, draws against their distribution.

Seeds are fixed and the clock plays no part: a comparison with a threshold repeats exactly, its error rate is 0.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actuators.contract.script import Behaviour, Script, ServerProfile, ServiceDistribution
from actuators.contract.topology import Topology, social_network
from actuators.errors import ConfigError
from actuators.social_network.capacity import ServerPlan, VirtualQueue, WorkDraws, plan_of, uniforms

GAPS = st.floats(0, 2, allow_nan=False)
Jobs = list[tuple[float, float]]
JOBS = st.lists(st.tuples(GAPS, GAPS), min_size=1, max_size=40)


def reference(jobs: Jobs, workers: int, limit: int) -> list[float | None]:
    """Finish time of each (gap, service) by its definition; None for those that find the queue full."""
    free, now_s, finishes, starts = [0.0] * workers, 0.0, [], []
    for gap_s, service_s in jobs:
        now_s += gap_s
        worker = min(range(workers), key=free.__getitem__)
        if free[worker] > now_s and sum(start > now_s for start in starts) >= limit:
            finishes.append(None)
            continue
        start_s = max(now_s, free[worker])
        free[worker] = start_s + service_s
        starts.append(start_s)
        finishes.append(free[worker])
    return finishes


def offer_all(queue: VirtualQueue[int], jobs: Jobs) -> list[float | None]:
    now_s, finishes = 0.0, []
    for number, (gap_s, service_s) in enumerate(jobs):
        now_s += gap_s
        finishes.append(queue.offer(now_s, service_s, number))
    return finishes


def drain(queue: VirtualQueue[int], now_s: float = math.inf) -> list[tuple[float, int]]:
    popped = []
    while (finished := queue.pop_finished(now_s)) is not None:
        popped.append(finished)
    return popped


@given(JOBS, st.integers(1, 4), st.integers(0, 5))
def test_finish_times_are_those_of_a_bounded_fifo_queue(jobs: Jobs, workers: int, limit: int) -> None:
    queue: VirtualQueue[int] = VirtualQueue(workers, limit)
    finishes = offer_all(queue, jobs)
    assert finishes == reference(jobs, workers, limit)
    taken = sorted(finish for finish in finishes if finish is not None)
    assert [finish for finish, _ in drain(queue)] == taken
    assert queue.next_finish_s is None


@given(JOBS, st.integers(1, 4))
def test_waiting_and_busy_count_what_the_definition_says(jobs: Jobs, workers: int) -> None:
    queue: VirtualQueue[int] = VirtualQueue(workers, 1000)
    finishes = offer_all(queue, jobs)
    now_s = sum(gap for gap, _ in jobs)
    unfinished = sum(finish > now_s for finish in finishes if finish is not None)
    assert queue.busy(now_s) == min(unfinished, workers)
    assert queue.waiting(now_s) <= max(unfinished - workers, 0)
    assert queue.busy(now_s) + queue.waiting(now_s) == unfinished


@given(JOBS, st.integers(1, 3), st.floats(0.1, 10))
def test_a_new_speed_stretches_exactly_the_work_that_is_left(jobs: Jobs, workers: int, factor: float) -> None:
    """Of a batch that arrives at once, everything after the change takes `factor` times as long."""
    queue: VirtualQueue[int] = VirtualQueue(workers, 1000)
    batch = [(0.0, service_s) for _, service_s in jobs]
    finishes = offer_all(queue, batch)
    change_s = sum(service for _, service in batch) / workers / 3
    queue.stretch(change_s, factor)
    expected = sorted(f if f <= change_s else change_s + (f - change_s) * factor for f in finishes if f is not None)
    assert [finish for finish, _ in drain(queue)] == pytest.approx(expected)


@given(JOBS, st.integers(1, 3), st.floats(0.1, 10))
def test_stretching_back_at_once_changes_nothing(jobs: Jobs, workers: int, factor: float) -> None:
    queue: VirtualQueue[int] = VirtualQueue(workers, 1000)
    finishes = offer_all(queue, jobs)
    now_s = sum(gap for gap, _ in jobs)
    queue.stretch(now_s, factor)
    queue.stretch(now_s, 1 / factor)
    late = queue.offer(now_s, 1.0, len(jobs))
    assert [f for f, _ in drain(queue)] == pytest.approx(sorted(f for f in [*finishes, late] if f is not None))


@given(JOBS, st.integers(1, 3), st.floats(0, 3), st.floats(0, 5))
def test_a_standstill_delays_exactly_what_was_unfinished(
    jobs: Jobs, workers: int, since_s: float, lost_s: float
) -> None:
    queue: VirtualQueue[int] = VirtualQueue(workers, 1000)
    finishes = offer_all(queue, [(0.0, service_s) for _, service_s in jobs])
    queue.delay(since_s, since_s + lost_s)
    expected = sorted(f + lost_s if f > since_s else f for f in finishes if f is not None)
    assert queue.busy(since_s + lost_s) == min(workers, sum(f > since_s + lost_s for f in expected))
    assert [finish for finish, _ in drain(queue)] == pytest.approx(expected)


def test_items_come_out_once_and_only_when_finished() -> None:
    queue: VirtualQueue[str] = VirtualQueue(1, 1)
    assert queue.offer(0.0, 2.0, "first") == 2.0
    assert queue.offer(0.5, 1.0, "second") == 3.0
    assert queue.offer(0.6, 1.0, "one too many") is None
    assert queue.pop_finished(1.9) is None
    assert queue.pop_finished(2.5) == (2.0, "first")
    assert queue.pop_finished(2.5) is None
    queue.clear()
    assert queue.pop_finished(math.inf) is None
    assert queue.offer(2.5, 1.0, "after") == 3.5


@pytest.mark.parametrize(("distribution", "cv", "expected_cv"), [
    ("constant", 1.0, 0.0), ("exponential", 1.0, 1.0), ("lognormal", 1.0, 1.0), ("lognormal", 0.5, 0.5),
])  # fmt: skip
def test_draws_have_mean_one_and_the_right_spread(
    distribution: ServiceDistribution, cv: float, expected_cv: float
) -> None:
    draws = WorkDraws(11, distribution, cv)
    work = [draws.draw(f"home_read-{number}")[0] for number in range(40_000)]
    assert statistics.fmean(work) == pytest.approx(1.0, abs=0.02)
    assert statistics.pstdev(work) == pytest.approx(expected_cv, abs=0.05)
    assert min(work) > 0


def test_a_draw_depends_on_seed_and_name_only() -> None:
    first, again, other = (WorkDraws(seed, "exponential", 1.0) for seed in (3, 3, 4))
    names = ["compose-0", "compose-1", "home_read-0", "user_read-7", "named by hand", ""]
    drawn = [first.draw(name) for name in names]
    assert [again.draw(name) for name in reversed(names)] == drawn[::-1]
    assert len({work for work, _ in drawn}) == len(names)
    assert all(other.draw(name) != values for name, values in zip(names, drawn, strict=True))


@given(st.integers(0, 2**64 - 1), st.text(max_size=30))
def test_uniforms_never_reach_the_ends(state: int, sequence: str) -> None:
    assert all(0 < value < 1 for value in uniforms(state, sequence))


def test_work_and_fate_are_uncorrelated() -> None:
    pairs = [uniforms(5, f"compose-{number}") for number in range(20_000)]
    assert abs(statistics.correlation(*zip(*pairs, strict=True))) < 0.03
    assert abs(statistics.correlation([a for a, _ in pairs[1:]], [a for a, _ in pairs[:-1]])) < 0.03


def script(**changes: object) -> Script:
    base = Script(
        name="test", seed=9, duration_s=10, streams=(), mean_service_s=(0.018, 0.0044, 0.0033),
        servers=(ServerProfile((1.0, 1.0, 1.0)), ServerProfile((2.0, 0.5, 1.0), workers=3, queue_limit=7)),
        behaviours=(Behaviour(1, 0, 0.5), Behaviour(2, 1, 0.25), Behaviour(3, 1)),
    )  # fmt: skip
    return replace(base, **changes)


def test_a_plan_is_the_servers_own_part_and_survives_json() -> None:
    plan = plan_of(script(), social_network(("a:1", "b:1")), 1)
    assert dict(plan.service_s) == {"compose": 0.009, "home_read": 0.0088, "user_read": 0.0033}
    assert (plan.seed, plan.workers, plan.queue_limit) == (9, 3, 7)
    assert [behaviour.at_s for behaviour in plan.behaviours] == [2, 3]
    assert ServerPlan.from_json(plan.to_json()) == plan


def test_a_script_that_does_not_fit_is_refused() -> None:
    topology = social_network(("a:1", "b:1"))
    with pytest.raises(ConfigError, match="does not fit server 2"):
        plan_of(script(), topology, 2)
    with pytest.raises(ConfigError, match="did you mean '/wrk2-api/post/compose'"):
        plan_of(script(), Topology((replace(topology.groups[0], path="/wrk2-api/compose"), *topology.groups[1:])), 0)
    with pytest.raises(ConfigError, match="workers"):
        ServerPlan(workers=0)
    with pytest.raises(ConfigError, match="negative"):
        ServerPlan(service_s=(("compose", -1.0),))
