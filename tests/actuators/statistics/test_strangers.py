"""Statistics documents from strangers: one line that names group, server and field, and never another exception."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from actuators.errors import StatusError
from actuators.statistics.reader import StatusReader
from actuators.statistics.vts import parse, parse_json
from tests.support.http_server import ScriptedServer
from tests.support.vts_documents import A, document, kinds, later, window

HUGE = 10**400
GROUP = "home_read_backend"


def broken(field: str, value: Any) -> dict[str, Any]:
    doc = copy.deepcopy(document("after_load"))
    doc["upstreamZones"][GROUP][1][field] = value
    return doc


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("requestCounter", HUGE),
        ("requestCounter", -1),
        ("weight", "5"),
        ("maxFails", HUGE),
        ("failTimeout", HUGE),
        ("responses", []),
        ("responses", {"5xx": HUGE}),
        ("responseBuckets", {"msecs": [1], "counters": [HUGE]}),
        ("responseBuckets", {"msecs": [2, 1], "counters": [1, 1]}),
        ("backup", 1),
    ],
)
def test_an_error_names_group_server_and_field(field: str, value: Any) -> None:
    doc = broken(field, value)
    for read in (lambda: parse(doc), lambda: parse_json(json.dumps(doc).encode())):
        with pytest.raises(StatusError) as caught:
            read()
        assert "\n" not in str(caught.value)
    with pytest.raises(StatusError, match=rf"server {doc['upstreamZones'][GROUP][1]['server']} in group {GROUP}"):
        parse(doc)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"upstreamZones": {"app": 3}}, r"got `int` (group app)"),
        ({"upstreamZones": {"app": [3]}}, r"server (NoneType) in group app"),
        ({"serverZones": {"shop": {"requestCounter": "x"}}}, r"requestCounter of server zone shop"),
        ({"serverZones": {"shop": 3}}, r"(server zone shop)"),
    ],
)
def test_an_error_names_the_group_or_zone(change: dict[str, Any], said: str) -> None:
    with pytest.raises(StatusError) as caught:
        parse({**document("after_load"), **change})
    assert said in str(caught.value)
    assert "[...]" not in str(caught.value)


@pytest.mark.parametrize("name", ["a\0b", "a\ud800", "a\nb", "a\x1b[31m"])
def test_names_that_no_message_can_show_are_refused(name: str) -> None:
    for doc in (broken("server", name), {**document("after_load"), "upstreamZones": {name: []}}):
        for read in (lambda: parse(doc), lambda: parse_json(json.dumps(doc).encode())):  # noqa: B023
            with pytest.raises(StatusError) as caught:
                read()
            str(caught.value).encode()
            assert name not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"nowMsec": HUGE},
        {"sharedZones": {"maxSize": HUGE}},
        {"serverZones": {"*": {"requestCounter": HUGE}}},
        {"deepsched": {"version": HUGE}},
        {"deepsched": {"servers": [{"group": "a", "server": "\0"}]}},
        {"hostName": "a\0"},
        {"upstreamZones": {GROUP: "servers"}},
        {"upstreamZones": {GROUP: {"a": 1}}},
        {"upstreamZones": [1]},
    ],
)
def test_every_other_part_is_checked(change: dict[str, Any]) -> None:
    with pytest.raises(StatusError):
        parse({**document("after_load"), **change})


def test_vts_without_an_upstream_leaves_the_key_out() -> None:
    """The other marks of vts are still required."""
    doc = document("after_load")
    del doc["upstreamZones"]
    for brief in (False, True):
        assert parse_json(json.dumps(doc).encode(), for_decisions=brief).groups == {}
    assert parse(doc).groups == {}
    for mark in ("nowMsec", "loadMsec", "connections"):
        with pytest.raises(StatusError, match=f"not vts statistics.*{mark}"):
            parse({key: value for key, value in doc.items() if key != mark})


def test_the_reader_gives_the_same_line() -> None:
    body = json.dumps(broken("requestCounter", HUGE)).encode()
    with (
        ScriptedServer(lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body) as server,
        StatusReader(f"http://me:secret@{server.address}/status") as reader,
        pytest.raises(StatusError, match=f"above 2.*in group {GROUP}"),
    ):
        reader.snapshot()
    assert reader.status_url == f"http://{server.address}/status"


def buckets(doc: dict[str, Any], change: Any) -> None:
    for entries in doc["upstreamZones"].values():
        for entry in entries:
            entry["responseBuckets"] = change(entry["responseBuckets"])


NONE = {"msecs": [], "counters": []}


@pytest.mark.parametrize(
    "change",
    [
        lambda _: NONE,
        lambda found: {"msecs": [7, 70], "counters": [min(found["counters"], default=0)] * 2},
        lambda found: {"msecs": found["msecs"][::2], "counters": found["counters"][::2]},
        lambda found: {"msecs": [2**40], "counters": [max(found["counters"], default=0)]},
    ],
)
def test_buckets_that_are_missing_or_change_leave_the_counts(change: Any) -> None:
    """Without a histogram that both readings have, a window has counts and means, and no histogram of its own."""
    before, after = document("before_load"), document("after_load")
    plain = window(before, after)
    buckets(after, change)
    result = window(before, after)
    assert kinds(result) <= {"reset"}
    assert result.latency_histogram.shape[2] == len(result.bounds_ms) + 1
    whole = plain.requests == result.requests
    assert (whole | (result.requests == 0)).all()
    if not result.faults:
        assert (result.response_ms_sum == plain.response_ms_sum).all()
        assert (result.latency_histogram.sum(axis=2) == result.requests).all()


def test_a_document_without_buckets_keeps_its_key_out() -> None:
    doc = document("after_load")
    for entries in doc["upstreamZones"].values():
        for entry in entries:
            del entry["responseBuckets"]
    result = window(doc, later(doc))
    assert result.bounds_ms == ()
    assert result.usable
    assert parse(doc).groups[GROUP][A].response_buckets.msecs == ()
