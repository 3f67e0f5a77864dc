"""Reading statistics over HTTP, and recording them through outages: nothing hangs, nothing is silently wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from actuators.contract.topology import social_network
from actuators.errors import StatusError
from actuators.statistics.reader import CollectOptions, Collector, StatusReader
from actuators.statistics.recording import SnapshotWriter, read_snapshots, record
from rayjobs.cli.main import main
from tests.support.http_server import CLOSE, HANG, Received, ScriptedServer
from tests.support.paths import VTS
from tests.support.waiting import PATIENCE_S, wait_until

BEFORE, AFTER = ((VTS / f"{name}.json").read_bytes() for name in ("before_load", "after_load"))
TOPOLOGY = social_network(("127.0.0.1:18101", "127.0.0.1:18102", "127.0.0.1:18103"))
PATIENT = CollectOptions(connect_timeout_s=PATIENCE_S, read_timeout_s=PATIENCE_S, max_bytes=100_000)
QUICK = CollectOptions(connect_timeout_s=PATIENCE_S, read_timeout_s=0.3, max_bytes=100_000)


def ok(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def answers(*bodies: bytes) -> Callable[[Received], bytes]:
    """One answer after the other, the last one for ever."""
    left = list(bodies)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def test_windows_over_one_kept_connection() -> None:
    with ScriptedServer(answers(ok(BEFORE), ok(AFTER))) as server:
        with Collector(f"http://{server.address}/status", TOPOLOGY, PATIENT) as collector:
            with pytest.raises(StatusError, match="begin"):
                collector.window()
            collector.begin()
            assert collector.window().requests.sum() == 2632
        assert [request.served for request in server.requests] == [0, 1]


def test_an_outage_is_a_gap_and_no_request_is_lost() -> None:
    bad = b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n"
    with (
        ScriptedServer(answers(ok(BEFORE), bad, CLOSE, CLOSE, ok(AFTER))) as server,
        Collector(f"http://{server.address}/status", TOPOLOGY, PATIENT) as collector,
    ):
        collector.begin()
        for _ in range(2):
            window = collector.window()
            assert [fault.kind for fault in window.faults] == ["gap"]
            assert window.requests.sum() == 0
        window = collector.window()
        assert window.usable
        assert window.requests.sum() == 2632


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (HANG, "no answer"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "HTTP status 404.*vts' JSON"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "HTTP status 302"),
        (ok(b"<html>"), "not JSON"),
        (ok(b"[1]"), "not a JSON object"),
        (ok(b"[" * 60000), "not JSON"),
        (ok(b'{"nowMsec": %s}' % (b"9" * 9000)), "not JSON"),
        (ok(b"{}" + b" " * 200_000), "more than 100000 bytes"),
        (b"nonsense", "no answer"),
    ],
)
def test_whatever_the_endpoint_does_is_one_error(answer: bytes, match: str) -> None:
    with (
        ScriptedServer(lambda _: answer) as server,
        StatusReader(f"http://{server.address}/status", QUICK if answer == HANG else PATIENT) as reader,
        pytest.raises(StatusError, match=match),
    ):
        reader.snapshot()


def test_a_recording_goes_on_after_an_outage(tmp_path: Path) -> None:
    bad = b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n"
    notes: list[str] = []
    pauses: list[float] = []

    def pause(duration_s: float) -> bool:
        pauses.append(duration_s)
        return len(pauses) == 6

    with (
        ScriptedServer(answers(ok(BEFORE), bad, bad, bad, ok(AFTER))) as server,
        StatusReader(f"http://{server.address}/s", PATIENT) as reader,
        SnapshotWriter(tmp_path / "x.json") as writer,
    ):
        record(reader.snapshot, writer, 0.5, pause, notes.append)
    assert (writer.written, writer.gaps) == (4, 3)
    assert pauses[1:4] == [0.5, 1.0, 2.0]
    assert pauses[4] <= 0.5
    assert len(notes) == 2
    assert "again after 3 attempts" in notes[1]
    recording = read_snapshots(tmp_path / "x.json")
    assert (len(recording.snapshots), recording.skipped, recording.gaps) == (4, 0, 3)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_the_verb_keeps_what_it_has_whatever_ends_it(tmp_path: Path, number: int, code: int) -> None:
    out = tmp_path / "x.json"
    with ScriptedServer(answers(ok(BEFORE), ok(AFTER))) as server:
        command = [sys.executable, "-m", "rayjobs.collect", str(out), "--interval-s", "0.02"]
        process = subprocess.Popen(
            [*command, "--status-url", f"http://{server.address}/status"], stderr=subprocess.PIPE
        )
        wait_until(lambda: len(server.requests) >= 3 or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        os.kill(process.pid, number)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, said
    recording = read_snapshots(out)
    assert len(recording.snapshots) >= 2
    assert recording.skipped <= (1 if number == signal.SIGKILL else 0)
    if number == signal.SIGINT:
        # The signal may come after a snapshot was written and before it was counted.
        count = len(recording.snapshots)
        assert any(f" {n} snapshots and 0 gaps" in said.decode() for n in (count, count - 1))


def test_wrong_options_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, match in (
        (["--target", "http://127.0.0.1:1"], "--status-url"),
        (["--status-url", "nope"], "is not a URL"),
        (["--status-url", "http://127.0.0.1:1/", "--duration-s", "0.01"], "0 snapshots and 2 gaps"),
    ):
        assert main(["collect", str(tmp_path / "x.json"), *arguments]) != 0
        assert match in capsys.readouterr().err
    assert json.loads((tmp_path / "x.json").read_text().splitlines()[0])["gap"].startswith("no answer")
