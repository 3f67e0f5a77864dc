"""Snapshot files: written crash-safe, read back exactly, old and torn ones included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actuators.contract.topology import social_network
from actuators.errors import DataError, StatusError
from actuators.statistics.recording import SnapshotWriter, from_json, read_snapshots, to_json
from actuators.statistics.vts import parse
from actuators.statistics.windows import difference
from tests.support.paths import VTS
from tests.support.vts_documents import A, document, kinds

TOPOLOGY = social_network(("127.0.0.1:18101", "127.0.0.1:18102", "127.0.0.1:18103"))


def snapshots() -> list[Any]:
    return [parse(json.loads((VTS / f"{name}.json").read_text())) for name in ("before_load", "after_load")]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with SnapshotWriter(path) as writer:
        for snapshot in snapshots():
            writer.write(snapshot)
    recording = read_snapshots(path)
    assert recording.skipped == 0
    before, after = snapshots()
    expected, actual = difference(before, after, TOPOLOGY), difference(*recording.snapshots, TOPOLOGY)
    assert actual.faults == ()
    for name in ("requests", "in_bytes", "out_bytes", "responses", "response_ms_sum", "latency_histogram", "weight"):
        assert getattr(actual, name).tolist() == getattr(expected, name).tolist(), name
    assert actual.duration_s == expected.duration_s


def twice(name: str) -> dict[str, Any]:
    """A document of a configuration that lists a server of a group twice."""
    doc = document(name)
    entries = doc["upstreamZones"]["home_read_backend"]
    entries.append({**next(each for each in entries if each["server"] == A), "weight": 3})
    return doc


def test_servers_that_are_listed_twice_are_read_back_as_such(tmp_path: Path) -> None:
    with SnapshotWriter(tmp_path / "x.json") as writer:
        for name in ("before_load", "after_load"):
            writer.write(parse(twice(name)))
    recording = read_snapshots(tmp_path / "x.json")
    assert [each.duplicates for each in recording.snapshots] == [{("home_read_backend", A)}] * 2
    window = difference(*recording.snapshots, TOPOLOGY)
    assert kinds(window) == {"duplicate_server"}
    assert "duplicates" not in json.loads(to_json(snapshots()[0]))


def test_a_group_may_have_the_name_of_a_key() -> None:
    servers = document("after_load")["upstreamZones"]["home_read_backend"]
    doc = twice("after_load")
    doc["upstreamZones"]["duplicates"] = servers
    again = from_json(json.loads(to_json(parse(doc))))
    assert again.groups.keys() == parse(doc).groups.keys()
    assert again.groups["duplicates"].keys() == again.groups["home_read_backend"].keys()
    assert again.duplicates == {("home_read_backend", A)}
    # As an earlier version wrote it.
    old = from_json({"duplicates": {"a:1": {"requestCounter": 7}}})
    assert (old.groups["duplicates"]["a:1"].request_counter, old.duplicates) == (7, frozenset())


@pytest.mark.parametrize("pairs", [["app"], [["app"]], [["app", 1]], [{"app": "a:1"}], [None]])
def test_other_lists_of_duplicates_are_refused(pairs: Any) -> None:
    line = {"app": {"a:1": {"requestCounter": 7}}}
    with pytest.raises(StatusError, match="wrong 'duplicates'"):
        from_json({**line, "duplicates": pairs})
    assert from_json({**line, "duplicates": [["app", "b:1"], ["other", "a:1"]]}).duplicates == frozenset()


def test_a_line_has_the_keys_of_the_first_data_set(tmp_path: Path) -> None:
    with SnapshotWriter(tmp_path / "x.json") as writer:
        writer.write(snapshots()[1])
    line = json.loads((tmp_path / "x.json").read_text())
    server = line["user_read_backend"]["127.0.0.1:18103"]
    assert server["Non 2xx/3xx responses"] == 3
    assert server["requestCounter"] == 331
    old = {
        "requestCounter",
        "inBytes",
        "outBytes",
        "requestMsecCounter",
        "weight",
        "maxFails",
        "failTimeout",
        "backup",
        "down",
    }
    new = {"requestMsec", "responses", "responseMsecCounter", "requestBuckets", "responseBuckets"}
    assert old | new <= set(server)
    assert {"nowMsec", "loadMsec", "hostName", "connections"} <= set(line)


def test_a_torn_last_line_is_counted_and_a_new_writer_begins_on_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with SnapshotWriter(path) as writer:
        writer.write(snapshots()[0])
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    assert (len(read_snapshots(path).snapshots), read_snapshots(path).skipped) == (1, 1)
    with SnapshotWriter(path) as writer:
        writer.write(snapshots()[1])
    recording = read_snapshots(path)
    assert (len(recording.snapshots), recording.skipped) == (2, 1)


def test_old_files_load(tmp_path: Path) -> None:
    def line(requests: int, bad: int) -> dict[str, Any]:
        server = {
            "requestCounter": requests, "inBytes": 10 * requests, "outBytes": 20 * requests,
            "Non 2xx/3xx responses": bad, "requestMsecCounter": 3 * requests,
            "weight": 5, "maxFails": 1, "failTimeout": 10, "backup": False, "down": False,
        }  # fmt: skip
        return {group.name: dict.fromkeys(group.servers, server) for group in TOPOLOGY.groups}

    path = tmp_path / "old.json"
    path.write_text("\n".join(json.dumps(line(n, n // 10)) for n in (0, 100, 250)) + '\n{"torn": {"10')
    recording = read_snapshots(path)
    assert recording.skipped == 1
    window = difference(recording.snapshots[1], recording.snapshots[2], TOPOLOGY)
    assert window.faults == ()
    assert window.duration_s == pytest.approx(0.5)
    assert (window.requests == 150).all()
    assert (window.response_ms_sum == 450).all()
    assert (window.server_errors == 15).all()


def test_a_reading_without_a_group_is_not_written(tmp_path: Path) -> None:
    with SnapshotWriter(tmp_path / "x.json") as writer:
        writer.write(parse({**document("after_load"), "upstreamZones": {}}))
        assert writer.written == 0
    assert not (tmp_path / "x.json").exists()


def test_a_file_without_snapshots_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('hello\n[1]\n{"a": 1}\n')
    with pytest.raises(DataError, match="no snapshot in 3 lines"):
        read_snapshots(tmp_path / "x.json")
    with pytest.raises(DataError, match="cannot read"):
        read_snapshots(tmp_path / "missing.json")
    with pytest.raises(DataError, match="cannot write"):
        SnapshotWriter(tmp_path / "no" / "x.json")
