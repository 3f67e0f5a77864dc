"""vts' Prometheus text and the history of a Prometheus server give the snapshots that vts' JSON gives, with less."""

from __future__ import annotations

import dataclasses
import json

import pytest

from actuators.errors import ConfigError, StatusError
from actuators.statistics import history as history_module
from actuators.statistics.history import History
from actuators.statistics.lacks import lacks
from actuators.statistics.prometheus import parse_text
from actuators.statistics.reader import StatusReader
from actuators.statistics.recording import from_json, to_json
from actuators.statistics.vts import Snapshot, parse
from actuators.statistics.windows import difference
from tests.support.http_server import ScriptedServer
from tests.support.metrics import StandIn, as_text, scrapes
from tests.support.vts_documents import TOPOLOGY, A, document


def read(name: str) -> Snapshot:
    doc = document(name)
    return parse_text(as_text(doc).encode(), doc["nowMsec"])


def test_a_window_of_metrics_has_the_numbers_of_a_window_of_json() -> None:
    ours = difference(read("before_load"), read("after_load"), TOPOLOGY)
    theirs = difference(parse(document("before_load")), parse(document("after_load")), TOPOLOGY)
    assert ours.faults == theirs.faults == ()
    for name in ("requests", "in_bytes", "out_bytes", "responses", "response_ms_sum", "latency_histogram"):
        assert (getattr(ours, name) == getattr(theirs, name)).all(), name
    assert ours.connections == theirs.connections


def test_what_metrics_lack_is_said_and_not_recorded() -> None:
    snapshot = read("after_load")
    assert [lack.name for lack in lacks(snapshot)] == ["source"]
    line = json.loads(to_json(snapshot))
    assert line["source"] == "prometheus"
    assert not {"weight", "down", "maxFails", "failTimeout", "backup"} & set(line["compose_backend"][A])
    assert from_json(json.loads(json.dumps(line))) == dataclasses.replace(snapshot, module_version="")


def test_a_server_without_requests_is_not_shown_and_counts_as_zero() -> None:
    before, after = read("before_load"), read("after_load")
    empty = dataclasses.replace(before, groups={})
    whole = difference(empty, after, TOPOLOGY)
    assert whole.usable
    assert whole.requests.sum() == sum(each.request_counter for g in after.groups.values() for each in g.values())
    forgotten = dataclasses.replace(after, groups={}, now_ms=after.now_ms + 1000)
    assert {fault.kind for fault in difference(after, forgotten, TOPOLOGY).faults} == {"reset"}


def test_requests_without_a_live_server_are_kept_apart() -> None:
    doc = document("all_refused")
    shown = parse_text(as_text(doc).encode(), doc["nowMsec"])
    assert {name: count for name, count in shown.unserved.items() if count} == {
        name: count for name, count in parse(doc).unserved.items() if count
    }


@pytest.mark.parametrize(
    "text",
    [
        "# nothing\n",
        "nginx_vts_start_time_seconds x\n",
        "nginx_vts_start_time_seconds NaN\n",
        "nginx_vts_start_time_seconds -1\n",
        'nginx_vts_start_time_seconds 1\nnginx_vts_upstream_requests_total{upstream="g\n',
        'nginx_vts_start_time_seconds 1\nnginx_vts_upstream_requests_total{upstream="",backend="a",code="2xx"} 1e400\n',
        f'nginx_vts_start_time_seconds 1\nnginx_vts_upstream_bytes_total{{upstream="g",backend="a"}} {"9" * 400}\n',
        "nginx_vts_start_time_seconds 1\n"
        'nginx_vts_upstream_response_duration_seconds_bucket{upstream="g",backend="a",le="x"} 1\n',
        'nginx_vts_start_time_seconds 1\nnginx_vts_upstream_requests_total{upstream="g\\n",backend="a",code="2xx"} 1\n',
        "nginx_vts_start_time_seconds{\n",
        "nginx_vts_start_time_seconds{,,}\n",
    ],
)
def test_other_text_is_one_line(text: str) -> None:
    with pytest.raises(StatusError):
        parse_text(text.encode(), 1)


def test_steering_refuses_text_with_the_reason() -> None:
    body = as_text(document("after_load")).encode()
    with ScriptedServer(lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body) as server:
        with StatusReader(f"http://{server.address}/") as reader, pytest.raises(StatusError, match="Prometheus text"):
            reader.snapshot()
        with StatusReader(f"http://{server.address}/", takes_text=True) as reader:
            assert reader.snapshot().groups == read("after_load").groups


def snapshots(stand_in: StandIn, match: str = '{instance="a:80"}', **span: float) -> list[Snapshot]:
    with ScriptedServer(stand_in) as server, History(f"http://u:secret@{server.address}/", match) as history:
        return list(history.snapshots(**{"start_s": 90.0, "end_s": 130.0, "step_s": 5.0, **span}))


@pytest.mark.parametrize("per_query", [240, 3, 1])
def test_history_is_read_at_the_times_of_the_scrapes(monkeypatch: pytest.MonkeyPatch, per_query: int) -> None:
    monkeypatch.setattr(history_module, "_STEPS_PER_QUERY", per_query)
    stand_in = StandIn(scrapes())
    found = snapshots(stand_in)
    assert [snapshot.now_ms for snapshot in found] == [100_250, 115_500]
    window = difference(*found, TOPOLOGY)
    assert (window.usable, window.requests.sum(), window.duration_s) == (True, 2632, 15.25)
    assert 'nginx_vts_upstream_bytes_total{instance="a:80"}' in {asked["query"] for asked in stand_in.queries}


def test_only_the_wanted_upstreams_are_asked_for() -> None:
    stand_in = StandIn(scrapes())
    with (
        ScriptedServer(stand_in) as server,
        History(f"http://{server.address}", "{job='x',}", ["a.b", "c"]) as history,
    ):
        assert len(list(history.snapshots(90.0, 130.0, 5.0))) == 2
    queries = {asked["query"] for asked in stand_in.queries}
    assert "nginx_vts_main_connections{job='x',}" in queries
    assert r"""nginx_vts_upstream_bytes_total{job='x',upstream=~"a\\.b|c"}""" in queries


def test_answers_that_are_too_long_are_asked_for_in_parts() -> None:
    assert len(snapshots(StandIn(scrapes(), tall=20_000), step_s=1.0)) == 2


def test_several_nginx_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r'several NGINX match: \{instance="a:80"\}, \{instance="b:80"\}'):
        snapshots(StandIn(scrapes(), instances=("a:80", "b:80")))


@pytest.mark.parametrize(
    ("status", "body", "error", "match"),
    [
        (400, '{"status":"error","errorType":"bad_data","error":"parse error"}', ConfigError, "parse error.*--match"),
        (401, "Unauthorized", StatusError, "HTTP status 401.*user and the password"),
        (200, "<html>", StatusError, "not an answer of Prometheus"),
        (
            200,
            '{"status":"success","data":{"result":[{"metric":{},"values":[["x","1"]]}]}}',
            StatusError,
            "not an answer",
        ),
    ],
)
def test_what_is_no_prometheus_is_one_line(status: int, body: str, error: type[Exception], match: str) -> None:
    answer = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    with (
        ScriptedServer(lambda _: answer) as server,
        History(f"http://u:secret@{server.address}/") as history,
        pytest.raises(error, match=match) as caught,
    ):
        list(history.snapshots(0, 10, 5))
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="is not a selector"):
        History("http://127.0.0.1:1", "up")
