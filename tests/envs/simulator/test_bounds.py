"""Whatever rates, times, counts and scripts come: memory follows the need, or one line refuses before it is played.

Seeds are fixed and the clock plays no part: a comparison repeats exactly.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actuators.contract.control import BalancingMethod
from actuators.contract.script import Behaviour, Cache, Clients, RateStep, Script, Stage, StageBehaviour, Stream
from actuators.contract.script_check import MAX_RATE_RPS, check_script
from actuators.errors import ConfigError, TestbedError
from envs.simulator import engine
from envs.simulator.batch import SimulatedBatch, SimulationOptions
from envs.simulator.compiling import compiled
from envs.simulator.counting import bucket_of_ms, bucket_table
from envs.simulator.rivals import RIVAL_CODES
from tests.support.simulated import line_of, run, script_of

GOOD = script_of(100.0, 0.01, servers=2)


def with_behaviour(**fields: Any) -> Script:
    return replace(GOOD, behaviours=(Behaviour(**{"at_s": 1.0, "server": 0, **fields}),))


def with_steps(*steps: RateStep) -> Script:
    return replace(GOOD, streams=(Stream("read", steps),))


HIDDEN = Stage(4, (0.01,), (1.0,))


def with_stage(**fields: Any) -> Script:
    return replace(GOOD, stages=(replace(HIDDEN, **fields),))


def with_cache(**fields: Any) -> Script:
    return with_stage(cache=replace(Cache((True,), 0.5, 100.0), **fields))


def with_clients(**fields: Any) -> Script:
    return replace(GOOD, clients=(replace(Clients(1.0), **fields),))


BAD = {
    "server 2 of 2": with_behaviour(server=2),
    "server -1 of 2": with_behaviour(server=-1),
    "server 90000000 of 2": with_behaviour(server=90_000_000),
    "at_s of a behaviour is nan": with_behaviour(at_s=math.nan),
    "error_ratio of a behaviour is 2": with_behaviour(error_ratio=2.0),
    "error_service_s of a behaviour is inf": with_behaviour(error_service_s=math.inf),
    "a speed is 0": with_behaviour(speed=0.0),
    "the rate of 'read' is inf": with_steps(RateStep(0.0, math.inf)),
    "the rate of 'read' is 1e\\+300": with_steps(RateStep(0.0, 1e300)),
    "the rate of 'read' is -1": with_steps(RateStep(0.0, -1.0)),
    "rate steps do not ascend": with_steps(RateStep(0.0, 1.0), RateStep(5.0, 1.0), RateStep(4.0, 1.0)),
    "unknown arrival distribution": with_steps(RateStep(0.0, 1.0, "exponentail")),  # type: ignore[arg-type]
    "does not begin at 0 s": with_steps(RateStep(1.0, 1.0)),
    "a mean service time is nan": replace(GOOD, mean_service_s=(math.nan,)),
    "duration_s is inf": replace(GOOD, duration_s=math.inf),
    "service_cv is nan": replace(GOOD, service_cv=math.nan),
    "load_balancers is 0": replace(GOOD, load_balancers=0),
    "workers is 1e\\+09": replace(GOOD, servers=(replace(GOOD.servers[0], workers=10**9),) * 2),
    "queue_limit is -1": replace(GOOD, servers=(replace(GOOD.servers[0], queue_limit=-1),) * 2),
    "profiles do not fit": replace(GOOD, servers=GOOD.servers[:1]),
    "connections is 0": with_stage(connections=0),
    "2 work_s": with_stage(work_s=(0.1, 0.1)),
    "work_s is nan": with_stage(work_s=(math.nan,)),
    "visits is 1.5": with_stage(visits=(1.5,)),
    "contention is -1": with_stage(contention=-1.0),
    "hit of the cache is 0.99": with_cache(hit=0.99),
    "fill of the cache is 0": with_cache(fill=0.0),
    "decay_s of the cache is 0": with_cache(decay_s=0.0),
    "0 cached": with_cache(cached=()),
    "number of stages is 5": replace(GOOD, stages=(HIDDEN,) * 5),
    "names stage 0 of 0": replace(GOOD, stage_behaviours=(StageBehaviour(1.0, 0),)),
    "a stage's speed is 0": replace(GOOD, stages=(HIDDEN,), stage_behaviours=(StageBehaviour(1.0, 0, 0.0),)),
    "stage 0 has no cache": replace(GOOD, stages=(HIDDEN,), stage_behaviours=(StageBehaviour(1.0, 0, flush=True),)),
    "2 clients": replace(GOOD, clients=(Clients(1.0),) * 2),
    "patience_s is 0": with_clients(patience_s=0.0),
    "retries is -1": with_clients(retries=-1),
    "retry_failed is 2": with_clients(retry_failed=2.0),
    "retry_refused is nan": with_clients(retry_refused=math.nan),
    "backoff_s is inf": with_clients(backoff_s=math.inf),
    "a deadline is 0": replace(GOOD, deadlines_s=(0.0,)),
    "an importance is inf": replace(GOOD, importance=(math.inf,)),
    "too many to simulate": replace(GOOD, servers=(replace(GOOD.servers[0], queue_limit=10**6),) * 2),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_played_is_one_line(what: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        SimulatedBatch(line_of(2), 1).reset(0, BAD[what])
    assert "\n" not in str(caught.value)
    assert "script 'test'" in str(caught.value)


def test_a_good_script_passes() -> None:
    check_script(GOOD, line_of(2))


METHODS = (*get_args(BalancingMethod), "shortest_delay", "join_shortest", "central_queue", *RIVAL_CODES)


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, Script, str, dict[str, Any]]:
    servers = draw(st.sampled_from((1, 2, 3, 62, 63, 64, 65, 130, 300)))
    rate_rps, mean_s = draw(st.floats(0.0, 3000.0)), draw(st.floats(1e-4, 2.0))
    behaviours = draw(
        st.lists(
            st.builds(
                Behaviour,
                at_s=st.floats(0.0, 1.0),
                server=st.integers(0, servers - 1),
                speed=st.floats(0.01, 100.0),
                error_ratio=st.floats(0.0, 1.0),
                refused=st.booleans(),
                hang=st.booleans(),
            ),
            max_size=8,
        )
    )
    script = script_of(
        rate_rps, mean_s, servers=servers, workers=draw(st.integers(1, 40)), behaviours=behaviours,
        queue_limit=draw(st.sampled_from((0, 1, 5, 512))), overhead_s=draw(st.sampled_from((0.0, 0.001, 0.9))),
        load_balancers=draw(st.sampled_from((1, 3))), seed=draw(st.integers(0, 99)), duration_s=1.0,
        service=draw(st.sampled_from(("constant", "exponential", "lognormal"))),
        arrivals=draw(st.sampled_from(("exponential", "normal", "fixed", "zipf"))),
    )  # fmt: skip
    options = {
        "retry_http_500": draw(st.booleans()), "retry_post": True, "count_by_in_flight": True,
        "discipline": draw(st.sampled_from(("fifo", "processor_sharing"))),
        "max_fails": draw(st.integers(0, 3)), "read_timeout_s": draw(st.sampled_from((0.1, 60.0))),
    }  # fmt: skip
    return servers, script, draw(st.sampled_from(METHODS)), options


@settings(max_examples=60)
@given(cases())
def test_every_arrival_is_answered_or_in_flight(case: tuple[int, Script, str, dict[str, Any]]) -> None:
    servers, script, method, options = case
    batch = SimulatedBatch(line_of(servers), 1, method, options=SimulationOptions(**options))  # type: ignore[arg-type]
    batch.reset(0, script)
    if method == "expected_delay":
        batch.set_service_times(np.full((1, 1, servers), 0.01), np.full((1, servers), 2.0))
    window = batch.advance(1.5)
    attempts = window.responses.sum(axis=(0, 1, 3)).sum()
    assert window.requests.sum() == attempts == window.latency_histogram.sum()
    in_flight = window.planned.sum() - window.answered.sum()
    if method == "central_queue":  # waiting requests have no server yet
        assert in_flight >= window.active.sum() >= 0
    else:
        assert in_flight == window.active.sum()
    assert (window.active >= 0).all()
    assert window.latency_counts.sum() == window.answered.sum() - window.failed.sum()


@pytest.mark.parametrize("method", ["least_conn", "central_queue"])
def test_memory_grows_with_the_requests_in_flight_and_changes_nothing(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topology, script = line_of(2), script_of(1000.0, 0.005, servers=2, overhead_s=0.9, duration_s=5.0)
    windows = []
    for first_slots in (2, 5000):
        monkeypatch.setattr("envs.simulator.lane.MOST_AT_FIRST", first_slots)
        windows.append(run(topology, script, 5.0, method))
    assert windows[0].active.sum() > 512
    for name in ("requests", "latency_counts", "latency_histogram", "active", "latency_s_sum"):
        assert np.array_equal(getattr(windows[0], name), getattr(windows[1], name)), name


def test_memory_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.simulator.lane.MOST_AT_FIRST", 256)
    monkeypatch.setattr("envs.simulator.lane.MAX_SLOTS", 512)
    with pytest.raises(TestbedError, match="more than 512 requests are in flight"):
        run(line_of(1), script_of(1000.0, 0.001, overhead_s=0.9, duration_s=5.0), 5.0)


def test_more_servers_than_bits_in_a_word_are_each_tried_once() -> None:
    servers = 150
    crashes = tuple(Behaviour(0.0, server, refused=True) for server in range(servers - 1))
    window = run(line_of(servers), script_of(50.0, 0.001, servers=servers, behaviours=crashes), 1.0, max_fails=0)
    assert window.failed.sum() == 0
    assert window.responses[0, 0, -1, 1] == window.answered.sum() > 20
    assert window.responses[0, 0, :-1, 4].max() <= window.answered.sum()


def test_long_bounds_need_no_long_table() -> None:
    bounds_ms = (5, 100, 86_400_000)
    table = bucket_table(bounds_ms)
    assert len(table) < 100_000

    @compiled
    def column_of(elapsed_ms: int, table: Any, bounds: Any) -> Any:
        return bucket_of_ms(elapsed_ms, table, bounds)

    for ms in (0, 5, 6, 100, 101, 59_999, 60_000, 86_400_000, 86_400_001):
        assert column_of(ms, table, np.array(bounds_ms)) == np.searchsorted(bounds_ms, ms, side="left"), ms
    with pytest.raises(ConfigError, match="bounds ascend"):
        SimulatedBatch(line_of(1), 1, bounds_ms=(-5, 10))


def test_the_highest_rate_is_played() -> None:
    window = run(line_of(1), script_of(MAX_RATE_RPS, 0.001, duration_s=0.01), 0.02)
    assert window.planned.sum() == pytest.approx(MAX_RATE_RPS * 0.01, rel=0.05)


def test_the_pause_for_signals_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[int] = []
    real = engine.advance

    def counting(lane: Any, until_s: float) -> int:
        ends.append(real(lane, until_s))
        return ends[-1]

    monkeypatch.setattr(engine, "advance", counting)
    window = run(line_of(1), script_of(1e6, 1e-9, service="constant", duration_s=4.0), 5.0)
    assert engine.PAUSED in ends
    assert ends[-1] == engine.DONE
    assert window.answered.sum() == window.planned.sum() == pytest.approx(4e6, rel=0.01)
