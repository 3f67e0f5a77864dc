"""Servers as queues against theory, and against examples that can be computed by hand.

Seeds are fixed and the clock plays no part: a comparison with a threshold repeats exactly, its error rate is 0.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from actuators.contract.script import Behaviour
from envs.simulator.testbed import SimulatedBatch, SimulationOptions
from tests.support.simulated import line_of, mean_s, run, script_of


def erlang_c_mean_s(rate_rps: float, mean_service_s: float, workers: int) -> float:
    load = rate_rps * mean_service_s
    terms = [load**k / math.factorial(k) for k in range(workers)]
    last = load**workers / math.factorial(workers) / (1 - load / workers)
    return mean_service_s + last / (sum(terms) + last) * mean_service_s / (workers - load)


@pytest.mark.parametrize(("workers", "rate_rps", "hours"), [(1, 70.0, 12), (3, 240.0, 8), (8, 640.0, 3)])
def test_markov_queues_have_erlangs_mean(workers: int, rate_rps: float, hours: float) -> None:
    script = script_of(rate_rps, 0.01, workers=workers, queue_limit=4096, duration_s=1e9)
    window = run(line_of(1), script, hours * 3600)
    assert mean_s(window) == pytest.approx(erlang_c_mean_s(rate_rps, 0.01, workers), rel=0.01)


@pytest.mark.parametrize(("service", "cv"), [("constant", 0.0), ("lognormal", 1.0), ("lognormal", 2.0)])
def test_general_service_has_pollaczek_and_khinchines_mean(service: str, cv: float) -> None:
    script = script_of(70.0, 0.01, service=service, service_cv=cv, queue_limit=4096, duration_s=1e9)
    expected_s = 0.01 + 0.7 * 0.01 * (1 + cv**2) / 2 / 0.3
    assert mean_s(run(line_of(1), script, 16 * 3600)) == pytest.approx(expected_s, rel=0.01)


@pytest.mark.parametrize("service", ["exponential", "lognormal", "constant"])
def test_processor_sharing_is_insensitive_to_the_distribution(service: str) -> None:
    script = script_of(70.0, 0.01, service=service, queue_limit=4096, duration_s=1e9)
    window = run(line_of(1), script, 12 * 3600, discipline="processor_sharing")
    assert mean_s(window) == pytest.approx(0.01 / 0.3, rel=0.01)


def test_interference_reaches_work_in_progress() -> None:
    # One request arrives at 10 s and means 2 s of work; from 11 s on the server is half as fast.
    script = script_of(
        0.1, 2.0, arrivals="fixed", service="constant", duration_s=15.0, behaviours=[Behaviour(11.0, 0, 0.5)]
    )
    assert run(line_of(1), script, 20.0).latency_s_sum.sum() == pytest.approx(3.0)


def test_a_full_line_answers_503_at_once() -> None:
    script = script_of(1000.0, 1.0, service="constant", queue_limit=5, workers=2, duration_s=10.0)
    window = run(line_of(1), script, 10.0)
    assert window.active.sum() == 7
    assert window.responses[0, 0, 0, 1] == pytest.approx(20, abs=2)
    assert window.responses[0, 0, 0, 4] == window.failed.sum() > 9000


def test_a_crash_loses_what_is_in_progress_and_nginx_tries_the_others() -> None:
    lost = {}
    for method in ("GET", "POST"):
        crash = [Behaviour(5.0, 0, refused=True), Behaviour(8.0, 0)]
        script = script_of(200.0, 0.1, servers=3, workers=20, service="constant", behaviours=crash, duration_s=10.0)
        batch = SimulatedBatch(line_of(3, method), 1, "least_conn")
        batch.reset(0, script)
        batch.advance(4.999)
        before, after = batch.advance(3.0), batch.drain(5.0)
        assert before.requests[0, 0, 0] < 12  # what was in progress, and one refused connection
        assert after.requests[0, 0, 0] == 0  # still passed over: 10 s are not over
        assert after.active.sum() == 0
        lost[method] = int(before.failed.sum())
    assert lost["GET"] == 0
    assert lost["POST"] == pytest.approx(200 * 0.1 / 3, abs=4)


def test_a_failed_server_is_tried_again_after_its_time() -> None:
    crash = [Behaviour(5.0, 0, refused=True), Behaviour(6.0, 0)]
    batch = SimulatedBatch(line_of(2), 1, options=SimulationOptions(fail_timeout_s=3))
    batch.reset(0, script_of(100.0, 0.001, servers=2, behaviours=crash))
    batch.advance(6.0)
    assert batch.advance(2.0).requests[0, 0, 0] == 0
    batch.advance(2.0)
    again = batch.advance(5.0).requests[0, 0]
    assert again[0] == pytest.approx(again[1], rel=0.25)


def test_errors_are_quick_and_can_be_retried() -> None:
    failing = [Behaviour(0.0, 0, error_ratio=0.5)]
    script = script_of(100.0, 0.01, servers=2, service="constant", behaviours=failing, duration_s=100.0)
    plain = run(line_of(2), script, 100.0, max_fails=0)
    assert plain.responses[0, 0, 0, 4] == pytest.approx(plain.requests[0, 0, 0] / 2, rel=0.1)
    assert plain.failed.sum() == plain.responses[..., 4].sum()
    retried = run(line_of(2), script, 100.0, max_fails=0, retry_http_500=True)
    assert retried.failed.sum() == 0
    assert retried.responses[0, 0, 0, 4] > 1000
    ejected = run(line_of(2), script, 100.0, retry_http_500=True)
    assert ejected.responses[0, 0, 0, 4] < 20


def test_a_hanging_server_costs_the_read_timeout_and_no_request() -> None:
    hang = [Behaviour(5.0, 0, hang=True)]
    script = script_of(50.0, 0.02, servers=2, workers=4, service="constant", behaviours=hang, duration_s=30.0)
    batch = SimulatedBatch(line_of(2), 1, "round_robin", options=SimulationOptions(read_timeout_s=2.0))
    batch.reset(0, script)
    window = batch.advance(30.0)
    rest = batch.drain(10.0)
    assert rest.active.sum() == 0
    assert (window.answered + rest.answered).sum() == window.planned.sum()
    assert (window.failed + rest.failed).sum() == 0
    assert window.responses[0, 0, 0, 4] > 40  # 504s of the attempts at the hanging server
    slow = window.latency_counts[0, 0] * (np.arange(window.latency_counts.shape[-1]) > 960)
    assert slow.sum() == window.responses[0, 0, 0, 4]


def test_a_server_that_wakes_up_goes_on_where_it_stood() -> None:
    nap = [Behaviour(11.0, 0, hang=True), Behaviour(14.0, 0)]
    script = script_of(0.1, 2.0, arrivals="fixed", service="constant", duration_s=15.0, behaviours=nap)
    assert run(line_of(1), script, 20.0).latency_s_sum.sum() == pytest.approx(5.0)


def test_overhead_adds_to_latency_and_not_to_work() -> None:
    light = script_of(10.0, 0.02, service="constant", workers=4, arrivals="fixed", duration_s=100.0)
    assert mean_s(run(line_of(1), light, 100.0, overhead_ms=3.0)) == pytest.approx(0.023)
    overload = script_of(1000.0, 0.02, service="constant", workers=4, queue_limit=20)
    answered = run(line_of(1), overload, 50.0, overhead_ms=3.0).latency_counts.sum()
    assert answered == pytest.approx(50 * 4 / 0.02, rel=0.01)
    for discipline in ("fifo", "processor_sharing"):
        script = script_of(160.0, 0.02, workers=4)
        plain, longer = (
            mean_s(run(line_of(1), script, 1000.0, overhead_ms=ms, discipline=discipline)) for ms in (0.0, 2.0)
        )
        assert longer - plain == pytest.approx(0.002, rel=0.2)
