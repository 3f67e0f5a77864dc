"""The load engine against servers that answer, break, hang and stall: everything is accounted for."""

import csv
import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actuators.contract.script import RateStep, Stream
from actuators.contract.window import LoadWindow
from actuators.errors import ConfigError, LoadError
from actuators.load.engine import MOST_UNREAD, LoadEngine, LoadOptions
from actuators.load.summary import LoadSummary
from actuators.social_network.costs import SPANS
from tests.support.http_server import CLOSE, HANG, LATER, OK, Received, ScriptedServer
from tests.support.load_runs import TOPOLOGY, constant, run
from tests.support.stand_in_engine import fake_engine, part
from tests.support.waiting import PATIENCE_S, wait_until


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[LoadEngine]:
    # Only a hang takes so long, on a machine as busy as it may be; tests of time-outs have an engine of their own.
    with LoadEngine(LoadOptions(timeout_s=30.0, connect_timeout_s=30.0), tmp_path) as engine:
        yield engine


def assert_accounted(summary: LoadSummary) -> None:
    errors = summary.errors
    assert (summary.planned == summary.sent + errors["connect"] + errors["not_sent"]).all()
    assert (summary.sent == summary.answered + errors["timeout"] + errors["closed"]).all()
    good = summary.answered - errors["status_4xx"] - errors["status_5xx"]
    assert (summary.latency_counts.sum(axis=1) == good).all()
    assert (summary.raw_counts.sum(axis=1) == good).all()


def poll_to_the_end(engine: LoadEngine, windows: list[LoadWindow]) -> None:
    while True:
        windows += engine.poll()


def answers(*replies: bytes) -> Any:
    """Cycles through the replies."""
    count = iter(range(10**9))
    return lambda _: replies[next(count) % len(replies)]


def test_reads_ask_for_as_many_posts_as_the_law_says(engine: LoadEngine) -> None:
    asked: list[int] = []

    def answer(request: Received) -> bytes:
        fields = dict(word.split("=") for word in request.line.split()[1].partition("?")[2].split("&"))
        asked.append(int(fields["stop"]) - int(fields["start"]))
        return OK

    with ScriptedServer(answer) as server:
        run(engine, server, constant(400, "home_read"), seed=3, duration_s=1.0, varied=True)
    counts = Counter(asked)
    assert sum(counts.values()) == 400
    # Binomial: five standard deviations of the rarest are 27 of 32.
    assert {span: counts[span] for span in SPANS} == {
        span: pytest.approx(400 * share, abs=5 * (400 * share * (1 - share)) ** 0.5) for span, share in SPANS.items()
    }


def test_every_request_is_answered_and_the_windows_add_up(engine: LoadEngine) -> None:
    with ScriptedServer() as server:
        summary = run(engine, server, constant(200, "compose", "user_read"))
        assert summary.planned.tolist() == [100, 0, 100]
        assert summary.answered.tolist() == [100, 0, 100]
        assert len(server.requests) == 200
    assert_accounted(summary)
    windows = engine.poll()
    assert len(windows) >= 5
    assert all(later.start_s == earlier.end_s for earlier, later in itertools.pairwise(windows))
    for name in ("planned", "sent", "answered", "late", "retried", "latency_counts"):
        assert (sum(getattr(w, name) for w in windows) == getattr(summary, name)).all(), name
    assert sum(w.latency_s_sum for w in windows) == pytest.approx(summary.latency_s_sum, rel=1e-6)


FORMS = [
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;x=y\r\nabc\r\n0\r\nTrailer: t\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
    b"HTTP/1.1 204 No Content\r\nX-Long: " + b"x" * 5000 + b"\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300000,
]


@pytest.mark.parametrize("reply", FORMS)
def test_all_forms_of_a_response_are_understood(engine: LoadEngine, reply: bytes) -> None:
    with ScriptedServer(lambda _: reply) as server:
        summary = run(engine, server, constant(100, "home_read"), duration_s=0.3)
    assert summary.answered.tolist() == [0, 30, 0]
    assert summary.received_bytes[1] == 30 * len(reply)
    assert_accounted(summary)


@pytest.mark.parametrize("piece_bytes", [1, 7])
def test_a_response_may_come_in_pieces(tmp_path: Path, piece_bytes: int) -> None:
    # 5000 pieces take long on a busy machine; only a hang takes a minute.
    short_forms = answers(*(form for form in FORMS if len(form) < 10000))
    with LoadEngine(LoadOptions(timeout_s=60), tmp_path) as engine, ScriptedServer(short_forms) as server:
        server.piece_bytes = piece_bytes
        summary = run(engine, server, constant(40, "home_read"), duration_s=0.25, within_s=60)
    assert summary.answered[1] == 10
    assert_accounted(summary)


def test_errors_are_counted_by_class(tmp_path: Path) -> None:
    missing, broken = (b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status for status in (404, 503))
    garbage = b"what? content-length\r\n\r\n"
    cut = b"HTTP/1.1 200 OK\r\nX-Why: no length\r\nTransfer-Encoding: identity, chunke\r\n\r\n"
    with (
        ScriptedServer(answers(OK, missing, broken, garbage, HANG, cut)) as server,
        LoadEngine(LoadOptions(timeout_s=2.0), tmp_path) as engine,
    ):
        summary = run(engine, server, constant(120, "home_read"))
    errors = {name: int(counts[1]) for name, counts in summary.errors.items()}
    assert errors == {"connect": 0, "timeout": 10, "closed": 10, "status_4xx": 10, "status_5xx": 10, "not_sent": 0}
    assert_accounted(summary)


def test_a_stale_keep_alive_connection_is_retried_once_and_counted(engine: LoadEngine) -> None:
    def answer(request: Received) -> bytes:
        return OK if request.served == 0 else CLOSE

    with ScriptedServer(answer) as server:
        summary = run(engine, server, constant(50, "home_read"))
        sequences = [request.headers["X-Request-Sequence"] for request in server.requests]
    assert summary.answered[1] == summary.sent[1] == 25
    assert summary.retried[1] > 0
    assert len(sequences) == 25 + summary.retried[1]
    assert len(set(sequences)) == 25, "a retry keeps the request's number"
    assert_accounted(summary)


def test_a_new_connection_that_is_closed_is_not_retried(engine: LoadEngine) -> None:
    with ScriptedServer(lambda _: CLOSE) as server:
        summary = run(engine, server, constant(50, "home_read"))
    assert summary.errors["closed"][1] == 25
    assert summary.retried[1] == 0


def test_requests_that_could_not_be_sent_are_counted(tmp_path: Path) -> None:
    options = LoadOptions(timeout_s=0.3, max_connections=2)
    with ScriptedServer(lambda _: HANG) as server, LoadEngine(options, tmp_path) as engine:
        summary = run(engine, server, constant(100, "home_read"))
        windows = engine.poll()
    assert summary.errors["not_sent"][1] > 30
    assert summary.errors["timeout"][1] == summary.sent[1] > 0
    assert summary.late[1] > 0
    assert any(window.saturated for window in windows)
    assert_accounted(summary)


def test_connection_refused_mid_run_is_a_connect_error(engine: LoadEngine) -> None:
    with ScriptedServer(lambda _: b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n") as server:
        engine.start(server.address, TOPOLOGY, constant(200, "home_read"), seed=1, duration_s=600.0, window_s=0.1)
        wait_until(lambda: len(server.requests) >= 20)
        # `with` ends the server here, while the load goes on.
    wait_until(lambda: any(window.errors["connect"].any() for window in engine.poll()))
    engine.stop()
    server_gone = engine.finish(60.0)
    # The listening socket of a closed asyncio server answers with a refusal.
    assert server_gone.errors["connect"][1] > 0
    assert_accounted(server_gone)


def test_latency_counts_from_the_intended_send_time(tmp_path: Path) -> None:
    options = LoadOptions(timeout_s=5.0, max_connections=4)
    with ScriptedServer() as server, LoadEngine(options, tmp_path) as engine:
        engine.start(server.address, TOPOLOGY, constant(200, "home_read"), seed=1, duration_s=600.0)
        wait_until(lambda: len(server.requests) >= 50)
        server.stall(0.6)
        before = len(server.requests)
        wait_until(lambda: len(server.requests) >= before + 200)
        engine.stop()
        summary = engine.finish(60.0)
    corrected, raw = summary.percentiles_ms()["home_read"], summary.percentiles_ms(raw=True)["home_read"]
    assert corrected["p99"] > 450
    # With four connections, all but four requests of the stall were sent only after it.
    assert raw["p95"] < corrected["p95"] / 2
    assert_accounted(summary)


def test_an_answer_counts_from_when_it_arrived_not_from_when_the_engine_read_it(tmp_path: Path) -> None:
    log, timeout_s, held = tmp_path / "requests.csv", 5.0, 10

    def answer(_: Received) -> bytes:
        return LATER if len(server.requests) > held else OK

    with ScriptedServer(answer) as server, LoadEngine(LoadOptions(timeout_s=timeout_s), tmp_path) as engine:
        streams = [Stream("home_read", (RateStep(0.0, 100.0, "fixed"), RateStep((held + 0.5) / 100, 0.0, "fixed")))]
        extra = {"requests-csv": str(log)}
        engine.start(server.address, TOPOLOGY, streams, seed=1, duration_s=1.0, extra=extra)
        wait_until(lambda: server.waiting == 1, "the last request arrives")
        os.kill(engine.pid, signal.SIGSTOP)
        try:
            server.answer_next()
            # Longer than the engine waits for an answer.
            time.sleep(timeout_s + 0.5)
            stopped_until_s = time.monotonic() - engine.started_at_s
        finally:
            os.kill(engine.pid, signal.SIGCONT)
        summary = engine.finish(60.0)
    assert summary.answered[1] == held + 1, "no time-out"
    assert_accounted(summary)
    with log.open(newline="") as file:
        last_s = max(int(row["done_ns"]) for row in csv.DictReader(file)) / 1e9
    assert last_s < stopped_until_s - 0.5


def test_where_answers_wait_for_the_next_send_all_are_counted(tmp_path: Path) -> None:
    with ScriptedServer(answers(OK, *FORMS)) as server, LoadEngine(LoadOptions(timeout_s=60.0), tmp_path) as engine:
        summary = run(engine, server, constant(3000, "home_read"), duration_s=0.3)
    assert summary.answered[1] == summary.planned[1] == 900
    assert_accounted(summary)


def test_stop_drains_and_still_gives_the_summary(engine: LoadEngine) -> None:
    with ScriptedServer() as server:
        engine.start(server.address, TOPOLOGY, constant(100), seed=1, duration_s=600.0, window_s=0.1)
        wait_until(lambda: bool(engine.poll()))
        engine.stop()
        summary = engine.finish(60.0)
        again = run(engine, server, constant(20))
    assert summary.interrupted
    assert summary.end_s < 60
    assert_accounted(summary)
    assert again.planned.sum() == 30, "the engine can be started again"


def test_a_killed_engine_is_an_error_that_keeps_what_was_counted(engine: LoadEngine) -> None:
    with ScriptedServer() as server:
        engine.start(server.address, TOPOLOGY, constant(100), seed=1, duration_s=600.0, window_s=0.1)
        windows: list[LoadWindow] = []

        def three_windows() -> bool:
            windows.extend(engine.poll())
            return len(windows) >= 3

        wait_until(three_windows)
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(LoadError, match="died"):
            engine.finish(5.0)
        with pytest.raises(LoadError, match="died with code 137"):
            poll_to_the_end(engine, windows)
    partial = engine.partial_summary()
    assert not partial.complete
    assert (partial.sent == sum(window.sent for window in windows)).all()
    assert (partial.unaccounted >= 0).all()


def test_of_windows_that_nobody_polls_the_oldest_become_one(tmp_path: Path) -> None:
    parts = [part(TOPOLOGY.request_types, float(second), answered=1) for second in range(MOST_UNREAD + 500)]
    binary = fake_engine(tmp_path, parts, summary=parts[0])
    with LoadEngine(LoadOptions(engine=binary), tmp_path / "work") as engine:
        engine.start("127.0.0.1:9", TOPOLOGY, constant(1.0), seed=1, duration_s=1.0)
        assert engine.wait(PATIENCE_S)
        windows = engine.poll()
    assert len(windows) == MOST_UNREAD
    assert (windows[0].start_s, windows[0].end_s) == (0.0, 501.0)
    assert all(later.start_s == earlier.end_s for earlier, later in itertools.pairwise(windows))
    assert np.sum([window.answered for window in windows], axis=0).tolist() == [len(parts)] * 3


def test_without_a_time_out_the_end_is_awaited_as_long_as_requests_may_take(tmp_path: Path) -> None:
    options = LoadOptions(timeout_s=0.3, connect_timeout_s=0.2)
    with ScriptedServer(lambda _: HANG) as server, LoadEngine(options, tmp_path) as engine:
        engine.start(server.address, TOPOLOGY, constant(100, "home_read"), seed=1, duration_s=600.0)
        wait_until(lambda: len(server.requests) > 0)
        with pytest.raises(LoadError, match=r"not ended after 2\.5 s"):
            engine.finish()
        engine.stop()
        assert engine.finish(60.0).errors["timeout"].sum() > 0


def test_closing_twice_leaves_nothing(engine: LoadEngine) -> None:
    with ScriptedServer() as server:
        engine.start(server.address, TOPOLOGY, constant(10), seed=1, duration_s=600.0)
        pid = engine.pid
        engine.close()
        engine.close()
    assert not Path(f"/proc/{pid}").exists()
    assert engine.poll() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"duration_s": -1.0}, "duration is -1 s"),
        ({"window_s": 0.0}, "window is 0 s"),
        ({"streams": [Stream("compse", ())]}, "did you mean 'compose'"),
        ({"streams": constant(-5.0)}, "rate is -5"),
        ({"streams": [Stream("compose", (RateStep(0, 1, "expnential"),))]}, "did you mean 'exponential'"),  # type: ignore[arg-type]
        ({"streams": [Stream("compose", (RateStep(3, 1),))]}, "must begin at 0"),
        ({"streams": [*constant(1, "compose"), *constant(1, "compose")]}, "listed twice"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(engine: LoadEngine, change: dict[str, Any], message: str) -> None:
    arguments = {"streams": constant(1.0), "seed": 1, "duration_s": 1.0, **change}
    with pytest.raises(ConfigError, match=message):
        engine.start("127.0.0.1:9", TOPOLOGY, **arguments)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "does not accept connections: Connection refused"),
        ("nowhere.invalid:80", "target host 'nowhere.invalid'"),
        ("no url", "is not http://HOST:PORT"),
        ("127.0.0.1:99999", "is not http://HOST:PORT"),
        ("https://127.0.0.1:443", "TLS is not supported"),
    ],
)
def test_a_bad_target_is_one_clear_line(engine: LoadEngine, address: str, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        engine.start(address, TOPOLOGY, constant(1.0), seed=1, duration_s=1.0)


def test_a_missing_body_file_is_refused(tmp_path: Path) -> None:
    engine = LoadEngine(LoadOptions(body_files={"compose": tmp_path / "none.bin"}), tmp_path)
    with pytest.raises(ConfigError, match="no body file"):
        engine.start("127.0.0.1:9", TOPOLOGY, constant(1.0), seed=1, duration_s=1.0)


def test_summaries_of_parts_add_up() -> None:
    empty = LoadSummary.empty(("a", "b"))
    assert (empty + empty).planned.tolist() == [0, 0]
    assert np.isnan(empty.percentiles_ms()["a"]["p99"])
    assert empty.offered_rps.tolist() == [0, 0]
