"""The simulated testbed as a whole: determinism, common random numbers, arrivals, what windows hold.

Seeds are fixed and the clock plays no part: a comparison with a threshold repeats exactly, its error rate is 0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from actuators.contract import histogram
from actuators.contract.script import Behaviour, RateStep, Stream
from actuators.contract.topology import social_network
from actuators.errors import ConfigError, TestbedError
from envs.scenarios.lookup import scenario
from envs.simulator.compiling import compiled
from envs.simulator.counting import bucket_table, latency_bucket
from envs.simulator.rivals import RIVAL_CODES
from envs.simulator.testbed import SimulatedBatch, SimulationOptions
from tests.support.simulated import line_of, mean_s, run, script_of

TOPOLOGY = social_network()
METHODS = ("round_robin", "least_conn", "random_two", "expected_delay", "shortest_delay", "join_shortest", *RIVAL_CODES)


def batch_of(*seeds: int, method: str = "least_conn", name: str = "S7") -> SimulatedBatch:
    batch = SimulatedBatch(TOPOLOGY, len(seeds), method)  # type: ignore[arg-type]
    for index, seed in enumerate(seeds):
        batch.reset(index, scenario(name, 100.0).script(TOPOLOGY, seed))
    return batch


@pytest.mark.parametrize("method", METHODS)
def test_equal_seeds_give_equal_windows_and_other_seeds_others(method: str) -> None:
    one = batch_of(1, 1, 2, method=method).advance(80.0)
    assert np.array_equal(one.latency_counts[0], one.latency_counts[1])
    assert np.array_equal(one.requests[0], one.requests[1])
    assert one.latency_s_sum[0].tolist() == one.latency_s_sum[1].tolist()
    assert not np.array_equal(one.requests[0], one.requests[2])


def test_the_interval_changes_nothing_but_the_windows() -> None:
    whole, parts = batch_of(3), batch_of(3)
    windows = [parts.advance(4.0) for _ in range(20)]
    total = whole.advance(80.0)
    for name in ("requests", "responses", "response_ms_sum", "latency_histogram", "latency_counts", "planned"):
        assert np.array_equal(sum(getattr(w, name) for w in windows), getattr(total, name)), name
    assert windows[-1].active.tolist() == total.active.tolist()
    assert [w.start_s[0] for w in windows] == [4.0 * k for k in range(20)]


def test_threads_change_nothing() -> None:
    windows = []
    for threads in (1, 3):
        batch = SimulatedBatch(TOPOLOGY, 7, "least_conn", threads=threads)
        for index in range(7):
            batch.reset(index, scenario("S7", 100.0).script(TOPOLOGY, index))
        windows.append([batch.advance(5.0) for _ in range(4)])
    for one, other in zip(*windows, strict=True):
        assert np.array_equal(one.latency_counts, other.latency_counts)
        assert one.latency_s_sum.tolist() == other.latency_s_sum.tolist()
        assert one.active.tolist() == other.active.tolist()


def test_every_policy_meets_the_same_arrivals() -> None:
    planned = [batch_of(5, method=method).advance(80.0).planned.tolist() for method in METHODS]
    assert all(p == planned[0] for p in planned)


def test_one_server_serves_the_same_work_whatever_balances() -> None:
    script = script_of(50.0, 0.01, service="lognormal")
    sums = {method: run(line_of(1), script, 100.0, method).latency_s_sum.sum() for method in METHODS}
    assert len(set(sums.values())) == 1, sums


@pytest.mark.parametrize(("arrivals", "cv"), [("exponential", 1.0), ("normal", 0.478), ("fixed", 0.0), ("zipf", None)])
def test_arrivals_keep_rate_and_spread(arrivals: str, cv: float | None) -> None:
    batch = SimulatedBatch(line_of(1), 1)
    batch.reset(0, script_of(1000.0, 1e-6, arrivals=arrivals, service="constant"))  # type: ignore[arg-type]
    counts = np.array([batch.advance(0.1).planned.sum() for _ in range(4000)])
    assert counts.sum() == pytest.approx(400_000, rel=0.02)
    if cv is not None:  # for a renewal process the variance of the count tends to cv² times its mean
        assert counts.var() / counts.mean() == pytest.approx(cv**2, abs=0.1)


@pytest.mark.parametrize(("arrivals", "cv"), [("gamma", 2.0), ("weibull", 1.5), ("gamma", 0.5)])
def test_arrivals_of_chosen_spread_keep_rate_and_spread(arrivals: Any, cv: float) -> None:
    batch = SimulatedBatch(line_of(1), 1)
    steps = (RateStep(0.0, 1000.0, arrivals, cv),)
    batch.reset(0, script_of(0.0, 1e-6, steps=steps, service="constant"))
    counts = np.array([batch.advance(0.2).planned.sum() for _ in range(4000)])
    assert counts.mean() == pytest.approx(200, rel=0.02)
    assert counts.var() / counts.mean() == pytest.approx(cv**2, rel=0.12)


def test_a_variation_that_the_gaps_cannot_have_is_refused() -> None:
    batch = SimulatedBatch(line_of(1), 1)
    for step, words in ((RateStep(0.0, 1.0, "zipf", 2.0), "fixed cv"), (RateStep(0.0, 1.0, "gamma", 30.0), "30")):
        with pytest.raises(ConfigError, match=words):
            batch.reset(0, script_of(0.0, 0.01, steps=(step,)))


def test_rates_follow_their_steps_and_silence_is_silent() -> None:
    steps = (RateStep(0.0, 0.0), RateStep(10.0, 100.0), RateStep(20.0, 0.0), RateStep(30.0, 400.0))
    batch = SimulatedBatch(line_of(1), 1)
    batch.reset(0, script_of(0.0, 1e-4, steps=steps, duration_s=40.0))
    planned = [int(batch.advance(10.0).planned.sum()) for _ in range(5)]
    assert planned[0] == planned[2] == planned[4] == 0
    assert planned[1] == pytest.approx(1000, rel=0.15)
    assert planned[3] == pytest.approx(4000, rel=0.1)


def test_a_window_after_the_script_says_so() -> None:
    batch = SimulatedBatch(line_of(1), 1)
    batch.reset(0, script_of(100.0, 0.001, duration_s=2.0))
    assert batch.advance(2.0).window(0).usable
    assert [fault.kind for fault in batch.advance(1.0).window(0).faults] == ["load_ended"]


def test_response_times_are_differences_of_a_millisecond_clock() -> None:
    # Arrivals every 10.3 ms, each served in 2.6 ms: NGINX shows 2 or 3 ms, in the right mean.
    script = script_of(1 / 0.0103, 0.0026, arrivals="fixed", service="constant")
    window = run(line_of(1), script, 103.0).window(0)
    assert window.latency_histogram[0, 0, 2:3].sum() > 0.5 * window.requests.sum()
    assert window.latency_histogram[0, 0, 1:3].sum() == window.requests.sum()
    assert window.mean_response_s()[0, 0] == pytest.approx(0.0026, rel=0.01)


def test_bounds_are_inclusive() -> None:
    table = bucket_table((1, 2, 5))
    assert table.tolist() == [0, 0, 1, 2, 2, 2, 3]


@compiled
def _buckets(latencies_s: Any, buckets: Any) -> None:
    for i in range(len(latencies_s)):
        buckets[i] = latency_bucket(latencies_s[i])


def test_latencies_are_counted_as_the_load_engine_counts_them() -> None:
    edges = np.concatenate([histogram.bounds_us()[0], histogram.bounds_us()[1]]).astype(np.int64)
    values_us = np.concatenate([edges, np.maximum(edges - 1, 0), np.arange(3000)])
    buckets = np.zeros(len(values_us), dtype=np.int64)
    _buckets((values_us + 0.5) / 1e6, buckets)
    assert buckets.tolist() == [histogram.bucket_of(int(value)) for value in values_us]


def test_wrong_scripts_are_refused_with_a_remedy() -> None:
    batch = SimulatedBatch(TOPOLOGY, 1)
    script = scenario("S1").script(TOPOLOGY, 1)
    with pytest.raises(ConfigError, match="did you mean 'compose'"):
        batch.reset(0, replace(script, streams=(Stream("compost", (RateStep(0.0, 1.0),)),)))
    with pytest.raises(ConfigError, match="profiles"):
        batch.reset(0, replace(script, servers=script.servers[:2]))
    with pytest.raises(ConfigError, match="hang"):
        batch.reset(0, replace(script, behaviours=(Behaviour(1.0, 0, speed=0.0),)))
    with pytest.raises(ConfigError, match="did you mean 'least_conn'"):
        SimulatedBatch(TOPOLOGY, 1, "least_con")  # type: ignore[arg-type]
    with pytest.raises(TestbedError):
        batch.advance(1.0)
    batch.reset(0, script)
    with pytest.raises(ConfigError):
        batch.set_weights(np.zeros((1, 3, 3), dtype=np.int64))


def test_contexts_share_the_traffic_and_degrade_least_conn() -> None:
    script = scenario("S2", 200.0).script(TOPOLOGY, 1)
    one, eight = (run(TOPOLOGY, replace(script, load_balancers=n), 200.0, "least_conn") for n in (1, 8))
    assert one.planned.tolist() == eight.planned.tolist()
    assert mean_s(eight) > 1.1 * mean_s(one)
    shared = run(TOPOLOGY, replace(script, load_balancers=8), 200.0, "least_conn", workers_sharing_memory=8)
    assert shared.latency_s_sum.tolist() == one.latency_s_sum.tolist()


def test_options_are_typo_proof() -> None:
    with pytest.raises(ValueError, match="extra"):
        SimulationOptions(retry_http_50=True)  # type: ignore[call-arg]


def first_server_share(batch: SimulatedBatch, interval_s: float) -> float:
    requests = batch.advance(interval_s).requests[0]
    return float(requests[:, 0].sum() / requests.sum())


def test_weights_come_into_force_after_their_delay_each_in_its_turn() -> None:
    light_load = replace(scenario("S1", 100.0), load=0.2).script(TOPOLOGY, 1)
    batch = SimulatedBatch(TOPOLOGY, 1, "round_robin", options=SimulationOptions(actuation_delay_s=1.5))
    batch.reset(0, light_load)
    seen = []
    for first in (100, 1, 1, 1, 1):
        batch.set_weights(np.array([[[first, 10, 10]] * 3]))
        seen.append(first_server_share(batch, 1.0))
    equal, heavy, light = 1 / 3, 100 / 120, 1 / 21
    expected = [equal, (equal + heavy) / 2, (heavy + light) / 2, light, light]
    assert seen == pytest.approx(expected, abs=0.05)
    batch.reset(0, light_load)
    assert first_server_share(batch, 1.0) == pytest.approx(equal, abs=0.02)


def test_a_reload_forgets_connections_in_flight() -> None:
    active = {}
    for actuation in ("memory", "reload"):
        options = SimulationOptions(actuation=actuation)  # type: ignore[arg-type]
        batch = SimulatedBatch(line_of(2), 1, "least_conn", options=options)
        batch.reset(0, script_of(100.0, 1.0, servers=2, workers=200, service="constant"))
        assert batch.advance(5.0).active.sum() == pytest.approx(100, abs=30)
        batch.set_weights(np.array([[[1, 2]]]))
        active[actuation] = int(batch.advance(0.1).active.sum())
        drained = batch.drain(5.0)
        assert drained.active.sum() == 0
        assert drained.failed.sum() == 0
    assert active["reload"] < 30 < active["memory"]


def test_oracles_are_better_than_what_nginx_can_do() -> None:
    script = scenario("S3", 200.0).script(TOPOLOGY, 101)
    means = {method: mean_s(run(TOPOLOGY, script, 200.0, method)) for method in (*METHODS, "central_queue")}
    assert means["shortest_delay"] < 0.8 * means["least_conn"] < 0.8 * means["round_robin"]
    assert means["central_queue"] == pytest.approx(means["shortest_delay"], rel=0.05)


def test_expected_delay_needs_service_times_and_uses_them() -> None:
    script = scenario("S3", 200.0).script(TOPOLOGY, 101)
    batch = SimulatedBatch(TOPOLOGY, 1, "expected_delay")
    batch.reset(0, script)
    unlearned = batch.advance(200.0)
    assert mean_s(unlearned) == mean_s(run(TOPOLOGY, script, 200.0, "least_conn"))
    batch.reset(0, script)
    true_s = np.array([[m / p.speeds[g] for p in script.servers] for g, m in enumerate(script.mean_service_s)])
    batch.set_service_times(true_s[None], np.full((1, 3), 4.0))
    learned = batch.advance(200.0)
    assert mean_s(learned) < 0.75 * mean_s(unlearned)
    assert learned.planned.tolist() == unlearned.planned.tolist()
    delay = learned.delay[0]
    assert (delay[..., 0] <= learned.requests[0]).all()
    assert delay[..., 1].sum() / delay[..., 0].sum() < mean_s(learned)
    predicted_s = delay[..., 2:].sum() / learned.requests.sum()
    assert predicted_s == pytest.approx(mean_s(learned), rel=0.15)
