"""`deepsched collect`: which groups, what the statistics lack, and the exit status; and the history of Prometheus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayjobs.cli.main import run_verb
from rayjobs.collect import VERB, time_of
from tests.support.http_server import ScriptedServer
from tests.support.metrics import StandIn, as_text, scrapes
from tests.support.nginx_site import answer
from tests.support.stand_in_engine import fake_engine, part
from tests.support.vts_documents import document


def served(doc: dict[str, Any]) -> ScriptedServer:
    body = json.dumps(doc).encode()
    return ScriptedServer(lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def collect(out: Path, *words: str) -> int:
    return run_verb(VERB, [str(out), "--duration-s=0.05", "--interval-s=0.02", *words])


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_only_the_named_groups_are_recorded(tmp_path: Path) -> None:
    with served(document("after_load")) as server:
        url = f"--status-url=http://{server.address}/status/format/json"
        assert collect(tmp_path / "x.json", url, "--groups=user_read_backend,compose_backend") == 0
    groups = {name for name in lines(tmp_path / "x.json")[0] if name.endswith("_backend") or name.startswith("::")}
    assert groups == {"user_read_backend", "compose_backend"}


def test_an_unknown_group_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(document("after_load")) as server:
        url = f"--status-url=http://{server.address}/status/format/json"
        assert collect(tmp_path / "x.json", url, "--groups=compose_backnd") == 2
    assert "did you mean 'compose_backend'?" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


def test_a_long_recording_tells_how_far_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayjobs.collect.SILENT_S", 0.01)
    with served(document("after_load")) as server:
        url = f"--status-url=http://{server.address}/status/format/json"
        assert collect(tmp_path / "x.json", url, "--duration-s=1") == 0
    *told, _ = (line for line in capsys.readouterr().err.splitlines() if "snapshots and 0 gaps" in line)
    assert told
    assert all(line.endswith("so far") for line in told)


def test_nothing_recorded_is_exit_status_1_and_no_password_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedServer(lambda _: b"HTTP/1.1 401 X\r\nContent-Length: 0\r\n\r\n") as server:
        assert collect(tmp_path / "x.json", f"--status-url=http://me:secret@{server.address}/status") == 1
        assert "Authorization" in server.requests[0].headers
    said = capsys.readouterr()
    assert "HTTP status 401" in said.err
    assert "user and password" in said.err
    assert "secret" not in said.out + said.err + (tmp_path / "x.json").read_text()


def test_what_the_statistics_lack_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doc = document("after_load")
    doc["sharedZones"] |= {"maxSize": 65536, "usedNode": 14, "freeSize": 0}
    first, *others = doc["upstreamZones"]["compose_backend"]
    first |= {"requestCounter": 0}
    for entry in others:
        entry["responseBuckets"] = {"msecs": [], "counters": []}
    with served(doc) as server:
        assert collect(tmp_path / "x.json", f"--status-url=http://{server.address}/status") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("the statistics zone is full") == 1
    assert f"at 0 now: compose_backend/{first['server']}" in said
    assert "vhost_traffic_status_zone shared:vhost_traffic_status:1m" in said
    assert f"a reload added it later: compose_backend/{others[0]['server']}" in said
    assert "cmd=delete&group=upstream@group&zone=*'; a reset does not help), or restart NGINX" in said


@pytest.mark.parametrize("text", [False, True])
def test_readings_without_an_upstream_are_not_recorded(
    text: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    doc = document("before_load")  # no server had a request, so that metrics show none
    body = as_text(doc) if text else json.dumps({**doc, "upstreamZones": {}})
    with ScriptedServer(lambda _: answer(200, body)) as server:
        assert collect(tmp_path / "x.json", f"--status-url=http://{server.address}/status") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("the statistics show no upstream block") == 1
    assert ("after its first request" in said) == text
    assert "0 snapshots and 0 gaps" in said
    assert not (tmp_path / "x.json").exists()


LOADED = ["--plan=constant", "--mix={compose: 1}", "--target=http://127.0.0.1:9"]


def test_a_load_engine_that_died_is_told_and_the_recording_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    binary = fake_engine(tmp_path, [part(("compose",), 0.0, answered=3)], code=3)
    with served(document("after_load")) as server:
        words = [f"--status-url=http://{server.address}/status", "--set", f"live.load.engine={binary}", *LOADED]
        assert collect(tmp_path / "x.json", *words) == 2
    assert "the load engine died with code 3" in " ".join(capsys.readouterr().err.split())
    assert lines(tmp_path / "x.json")


@pytest.mark.parametrize(("answered", "told"), [(0, True), (1, False)])
def test_a_load_of_errors_only_is_told(
    answered: int, told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = part(("compose",), 0.0, answered=answered, refused=3)
    binary = fake_engine(tmp_path, [whole], summary=whole)
    with served(document("after_load")) as server:
        words = [f"--status-url=http://{server.address}/status", "--set", f"live.load.engine={binary}", *LOADED]
        assert collect(tmp_path / "x.json", *words) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert ("no request of the load was answered without an error" in said) == told


def test_a_target_that_is_no_address_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--status-url=http://127.0.0.1:9/status", "--target=http://[::1:8080"]
    assert collect(tmp_path / "x.json", *words) == 2
    assert "is not http://HOST:PORT" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_history_becomes_a_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    later = {125.25: as_text(document("after_load"))}
    with ScriptedServer(StandIn(scrapes() | later)) as server:
        words = [f"--prometheus=http://me:secret@{server.address}", '--match={instance="a:80"}', "--step-s=5"]
        span = ["--start=1970-01-01T00:01:30Z", "--end=1970-01-01T00:02:10"]
        assert run_verb(VERB, [str(tmp_path / "x.json"), *words, *span]) == 0
        found = lines(tmp_path / "x.json")
        assert [line["nowMsec"] for line in found] == [115_500, 125_250], "the first one shows no server"
        assert run_verb(VERB, [str(tmp_path / "y.json"), *words, "--start=1h"]) == 1
        assert run_verb(VERB, [str(tmp_path / "z.json"), *words, *span, "--duration-s=9"]) == 2
    said = capsys.readouterr().err
    assert "weights, down, backup and max_fails are not in it" in said
    assert "'duration_s' has no effect" in said
    assert "secret" not in said


@pytest.mark.parametrize("text", ["yesterday", "-1d", "5y", "9" * 12 + "d", "99999999-01-01"])
def test_what_is_no_time_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--prometheus=http://127.0.0.1:1", f"--start={text}"]
    assert run_verb(VERB, [str(tmp_path / "x.json"), *words]) == 2
    assert "is not a time" in capsys.readouterr().err
    assert time_of("2026-11-01", "") == time_of("2026-11-01T01:00:00+01:00", "")
