"""Stages behind the servers: queueing theory, blocking workers, contention, caches, slow stages, crashes.

Seeds are fixed and the clock plays no part: a comparison repeats exactly. Work at the servers is next to nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from actuators.contract.histogram import midpoints_s
from actuators.contract.script import Behaviour, Cache, RateStep, Script, Stage, StageBehaviour
from envs.simulator.testbed import SimulatedBatch
from tests.support.simulated import line_of, mean_s, run, script_of

NOTHING_S = 1e-9


def at_stage(*stages: Stage, rate_rps: float = 50.0, work_s: float = NOTHING_S, **more: Any) -> Script:
    """Constant work, arrivals at equal distances unless said; the first comes after one distance."""
    given: dict[str, Any] = {"service": "constant", "arrivals": "fixed", **more}
    changes = given.pop("stage_behaviours", ())
    return replace(script_of(rate_rps, work_s, **given), stages=stages, stage_behaviours=tuple(changes))


def stage(work_s: float = 0.01, connections: int = 1, visits: float = 1.0, **more: Any) -> Stage:
    return Stage(connections, (work_s,), (visits,), **more)


def latencies_ms(script: Script, duration_s: float, method: str = "least_conn", servers: int = 1) -> list[float]:
    """Of all good answers, ascending, as precise as the histogram."""
    counts = run(line_of(servers), script, duration_s, method).latency_counts[0, 0]
    return [round(float(ms)) for ms in np.repeat(midpoints_s() * 1e3, counts)]


def test_queues_in_a_row_have_the_sum_of_their_means() -> None:
    # Burke: what leaves a queue of Markov's kind is a Poisson stream. 0.01 / (1 - 0.5) + 0.012 / (1 - 0.6)
    script = at_stage(stage(0.012), work_s=0.01, service="exponential", arrivals="exponential")
    assert mean_s(run(line_of(1), script, 20_000.0)) == pytest.approx(0.05, rel=0.02)


def test_visits_are_a_share_and_stages_come_in_turn() -> None:
    script = at_stage(stage(0.002, visits=0.3), stage(0.004, connections=3), rate_rps=10.0, duration_s=1000.0)
    found = latencies_ms(script, 1001.0)
    assert set(found) == {4, 6}
    assert found.count(6) / len(found) == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(("blocking", "answered"), [(False, 197), (True, 99)])
def test_a_blocking_worker_is_held_until_the_answer(blocking: bool, answered: int) -> None:
    script = at_stage(stage(0.009, connections=10), rate_rps=200.0, work_s=0.001, duration_s=1.0)
    script = replace(script, servers=(replace(script.servers[0], blocking=blocking),))
    assert run(line_of(1), script, 1.0).answered.sum() == answered


def test_waiting_makes_work_slower_but_not_without_end() -> None:
    # At 1, 2, 3 ms. The first takes 10 ms; the second sees one waiting: 20 ms, ends at 31; the third ends at 41.
    burst = (RateStep(0.0, 1000.0, "fixed"), RateStep(0.0035, 0.0))
    assert latencies_ms(at_stage(stage(contention=1.0), steps=burst), 1.0) == [10, 29, 38]
    # With so much contention the second has the largest factor, 3: it ends at 41, the third at 51.
    assert latencies_ms(at_stage(stage(contention=99.0), steps=burst), 1.0) == [10, 39, 48]


def test_a_cache_fills_by_misses_fades_and_is_emptied() -> None:
    whole = Cache((True,), hit=0.0, fill=1.0, most=1.0, decay_s=1e9)
    script = at_stage(stage(0.005, cache=whole), duration_s=1.0)
    assert latencies_ms(script, 2.0).count(5) == 1
    emptied = replace(script, stage_behaviours=(StageBehaviour(0.5, 0, flush=True),))
    assert latencies_ms(emptied, 2.0).count(5) == 2
    fading = replace(script, stages=(stage(0.005, cache=replace(whole, decay_s=0.02 / np.log(2))),), duration_s=100.0)
    slow = latencies_ms(fading, 101.0).count(5)
    assert 1000 < slow < 4000  # half is forgotten between two arrivals
    uncached = replace(script, stages=(stage(0.005, cache=replace(whole, cached=(False,))),))
    assert latencies_ms(uncached, 2.0).count(5) == 49


def test_a_slow_stage_slows_work_in_progress() -> None:
    slower = [StageBehaviour(0.025, 0, speed=0.5), StageBehaviour(0.1, 0)]
    # The only request comes at 20 ms: 5 ms at full speed, then 10 ms of work left at half of it: 20 ms.
    steps = (RateStep(0.0, 50.0, "fixed"), RateStep(0.03, 0.0))
    assert latencies_ms(at_stage(stage(0.015), steps=steps, stage_behaviours=slower), 1.0) == [25]


def test_what_a_crashed_server_waits_for_is_lost_and_tried_elsewhere() -> None:
    steps = (RateStep(0.0, 50.0, "fixed"), RateStep(0.03, 0.0))
    script = at_stage(stage(0.03), steps=steps, servers=2, behaviours=[Behaviour(0.03, 0, refused=True)])
    window = run(line_of(2), script, 1.0, "round_robin")
    assert window.responses[0, 0].tolist() == [[0, 0, 0, 0, 1], [0, 1, 0, 0, 0]]
    assert latencies_ms(script, 1.0, "round_robin", 2) == [60]
    alone = run(line_of(1), replace(script, servers=script.servers[:1]), 1.0)
    assert alone.failed.sum() == alone.answered.sum() == 1


def test_a_crash_frees_held_workers() -> None:
    crash = [Behaviour(0.05, 0, refused=True), Behaviour(0.06, 0)]
    script = at_stage(stage(0.1), rate_rps=100.0, behaviours=crash, duration_s=0.2)
    script = replace(script, servers=(replace(script.servers[0], blocking=True),))
    batch = SimulatedBatch(line_of(1), 1)
    batch.reset(0, script)
    batch.advance(0.5)
    window = batch.drain(10.0)
    assert window.active.sum() == 0
    assert window.attempts.inside.sum() == 0


def test_many_servers_wait_in_the_oracles_line_while_workers_are_held() -> None:
    script = at_stage(stage(0.009, connections=10), rate_rps=200.0, work_s=0.001, duration_s=1.0, servers=2)
    script = replace(script, servers=tuple(replace(profile, blocking=True) for profile in script.servers))
    window = run(line_of(2), script, 2.0, "central_queue")
    assert window.answered.sum() == window.planned.sum() == 199
    assert set(latencies_ms(script, 2.0, "central_queue", 2)) == {10}
