"""What the load engine sends: DeathStarBench's requests, a function of seed, type and number alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from actuators.load.engine import LoadEngine, LoadOptions
from tests.support.http_server import Received, ScriptedServer
from tests.support.load_runs import TOPOLOGY, constant, run


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[LoadEngine]:
    with LoadEngine(LoadOptions(timeout_s=30.0, connect_timeout_s=30.0), tmp_path) as engine:
        yield engine


def test_requests_look_like_deathstarbench(engine: LoadEngine) -> None:
    with ScriptedServer() as server:
        run(engine, server, constant(100))
        received = server.requests
    by_type: dict[str, list[Received]] = {name: [] for name in TOPOLOGY.request_types}
    for request in received:
        by_type[request.headers["X-Request-Sequence"].rpartition("-")[0]].append(request)
    ordinals = sorted(int(r.headers["X-Request-Sequence"].rpartition("-")[2]) for r in by_type["compose"])
    assert ordinals == list(range(50))
    for request in by_type["compose"]:
        assert request.line == "POST /wrk2-api/post/compose HTTP/1.1"
        assert request.headers["Content-Type"] == "application/x-www-form-urlencoded"
        fields = dict(pair.split("=", 1) for pair in request.body.decode().split("&"))
        assert fields["username"] == f"username_{fields['user_id']}"
        assert 0 <= int(fields["user_id"]) < 962
        words = fields["text"].split()
        assert len(words[0]) == 256
        assert 1 <= sum(w.startswith("@username_") for w in words) <= 6
        assert 1 <= sum(w.startswith("http://") and len(w) == 71 for w in words) <= 6
        assert fields["media_ids"].count(",") == fields["media_types"].count(",") <= 4
        assert fields["post_type"] == "0"
    for name, path in (("home_read", "home-timeline"), ("user_read", "user-timeline")):
        for request in by_type[name]:
            method, url, _ = request.line.split()
            path_found, query = url.split("?")
            fields = dict(pair.split("=") for pair in query.split("&"))
            assert (method, path_found) == ("GET", f"/wrk2-api/{path}/read")
            assert int(fields["stop"]) == int(fields["start"]) + 10
            assert 0 <= int(fields["user_id"]) < 962


def test_equal_seeds_send_equal_requests(engine: LoadEngine) -> None:
    seen = []
    for seed in (7, 7, 8):
        with ScriptedServer() as server:
            run(engine, server, constant(50), seed=seed)
            seen.append({r.headers["X-Request-Sequence"]: (r.line, r.body) for r in server.requests})
    assert seen[0] == seen[1] != seen[2]


def test_a_body_file_is_sent(tmp_path: Path) -> None:
    body = tmp_path / "my body.bin"
    body.write_bytes(b"a=1\x00&b=2")
    with ScriptedServer() as server, LoadEngine(LoadOptions(body_files={"compose": body}), tmp_path) as engine:
        run(engine, server, constant(20, "compose"))
        assert {request.body for request in server.requests} == {b"a=1\x00&b=2"}
