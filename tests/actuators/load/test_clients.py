"""Clients of the load engine that give up and repeat: attempts, pauses, and answers within the deadline."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.script import Clients
from actuators.errors import LoadError
from actuators.load.engine import LoadEngine, LoadOptions
from actuators.load.summary import LoadSummary
from tests.support.http_server import HANG, OK, Received, ScriptedServer
from tests.support.load_runs import TOPOLOGY, constant, run

pytestmark = pytest.mark.thorough

REFUSED = b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n"
FAILED = b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[LoadEngine]:
    with LoadEngine(LoadOptions(timeout_s=5.0), tmp_path) as engine:
        yield engine


def play(
    engine: LoadEngine, server: ScriptedServer, clients: Clients, rate_rps: float = 100, deadline_s: float = 0.5
) -> LoadSummary:
    """One second of a fixed rate of one type whose clients are these."""
    return run(
        engine, server, constant(rate_rps, "home_read"), duration_s=1.0, clients=(clients,) * 3,
        deadlines_s=(deadline_s,) * 3,
    )  # fmt: skip


def assert_accounted(summary: LoadSummary) -> None:
    errors = summary.errors
    assert (summary.planned + summary.repeated == summary.sent + errors["connect"] + errors["not_sent"]).all()
    assert (summary.sent == summary.answered + errors["timeout"] + errors["closed"]).all()
    assert (summary.good_first <= summary.good).all()
    assert (summary.good <= summary.planned).all()


@pytest.mark.parametrize("reply", [REFUSED, FAILED, HANG])
def test_a_request_that_fails_is_repeated_as_often_as_its_client_allows(engine: LoadEngine, reply: bytes) -> None:
    with ScriptedServer(lambda _: reply) as server:
        summary = play(engine, server, Clients(0.5 if reply is HANG else 30.0, retries=2, backoff_s=0.02))
        sequences = [request.headers["X-Request-Sequence"] for request in server.requests]
    assert_accounted(summary)
    assert (summary.planned[1], summary.repeated[1]) == (100, 200)
    assert summary.good.sum() == 0
    # An attempt that its client gives up may end before the server reads it.
    counts = {sequences.count(name) for name in set(sequences)}
    assert counts == {3} if reply is not HANG else max(counts) == 3
    kind = "timeout" if reply is HANG else "status_5xx"
    assert summary.errors[kind][1] == 300


def test_the_chance_of_another_attempt_depends_on_how_the_last_one_ended(engine: LoadEngine) -> None:
    clients = Clients(patience_s=30.0, retries=1, retry_failed=0.0, retry_refused=0.5, backoff_s=0.01)
    with ScriptedServer(lambda _: FAILED) as server:
        assert play(engine, server, clients).repeated[1] == 0
    with ScriptedServer(lambda _: REFUSED) as server:
        first, again = (play(engine, server, clients, 300).repeated[1] for _ in range(2))
    # Of 300 with a chance of one half; 5 standard deviations are 43.
    assert abs(first - 150) < 43
    assert first == again, "equal seeds draw equally"


def test_a_second_attempt_is_good_by_its_own_start_only(engine: LoadEngine) -> None:
    seen: set[str] = set()
    lock = threading.Lock()

    def answer(request: Received) -> bytes:
        with lock:
            name = request.headers["X-Request-Sequence"]
            known = name in seen
            seen.add(name)
        return OK if known else REFUSED

    with ScriptedServer(answer) as server:
        summary = play(engine, server, Clients(patience_s=30.0, retries=3, backoff_s=1.0), deadline_s=0.45)
    assert_accounted(summary)
    assert (summary.planned[1], summary.repeated[1], summary.good[1]) == (100, 100, 100)
    # No pause is shorter than half of 1 s, which is longer than the deadline.
    assert summary.good_first[1] == 0


def test_clients_that_do_not_repeat_change_nothing(engine: LoadEngine) -> None:
    with ScriptedServer() as server:
        summary = run(engine, server, constant(100, "home_read"))
    assert summary.repeated.sum() == summary.good.sum() == 0
    with ScriptedServer() as server:
        summary = play(engine, server, Clients(patience_s=30.0), deadline_s=20.0)
    assert summary.repeated.sum() == 0
    assert summary.good.tolist() == summary.good_first.tolist() == [0, 100, 0]
    windows = [window for window in engine.poll() if window.good is not None]
    assert np.sum([window.good for window in windows], axis=0).tolist() == [0, 100, 0]


def test_types_wait_for_different_times(engine: LoadEngine) -> None:
    patient, hasty = Clients(patience_s=0.6), Clients(patience_s=0.05)
    with ScriptedServer(lambda _: HANG) as server:
        engine.start(
            server.address,
            TOPOLOGY,
            constant(20),
            seed=1,
            duration_s=0.3,
            window_s=0.1,
            clients=(patient, hasty, patient),
        )
        engine.finish(10.0)
    ends = dict.fromkeys(TOPOLOGY.request_types, 0.0)
    for window in engine.poll():
        for name, count in zip(ends, window.errors["timeout"], strict=True):
            if count:
                ends[name] = window.end_s
    assert ends["home_read"] < ends["compose"]


def test_an_interrupted_run_repeats_nothing_more(engine: LoadEngine) -> None:
    clients = Clients(patience_s=1.0, retries=5, backoff_s=20.0)
    with ScriptedServer(lambda _: REFUSED) as server:
        engine.start(
            server.address, TOPOLOGY, constant(50), seed=1, duration_s=60.0, window_s=0.1, clients=(clients,) * 3
        )
        while not sum(window.answered.sum() for window in engine.poll()):
            pass
        engine.stop()
        summary = engine.finish(10.0)
    assert summary.interrupted
    assert summary.repeated.sum() == 0


@pytest.mark.parametrize(
    "clients",
    [
        Clients(patience_s=0.0), Clients(patience_s=float("nan")), Clients(1.0, retries=101),
        Clients(1.0, retry_failed=1.5), Clients(1.0, retry_refused=-0.1), Clients(1.0, backoff_s=0.0),
    ],
)  # fmt: skip
def test_habits_that_cannot_be_timed_are_one_line(engine: LoadEngine, clients: Clients) -> None:
    with ScriptedServer() as server, pytest.raises(LoadError) as error:
        play(engine, server, clients)
    assert "of type compose" in str(error.value)
