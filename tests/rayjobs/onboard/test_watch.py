"""What a watch makes of its recording: gaps of an earlier one, servers without a histogram, a group that is dead."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from actuators.errors import DataError
from actuators.statistics.recording import SnapshotWriter
from actuators.statistics.vts import parse
from rayjobs.onboard.fit import telling
from rayjobs.onboard.options import OnboardOptions
from rayjobs.onboard.watch import Recorded, Watch
from tests.support.http_server import Received, ScriptedServer
from tests.support.vts_documents import document, entry

DEAD, ALIVE = "compose_backend", ("home_read_backend", "user_read_backend")
URL = "http://127.0.0.1:9/status"
READINGS = 30


def reading(second: int, dead: Iterable[str] = (), silent: Iterable[int] = ()) -> dict[str, Any]:
    """What vts shows after so many seconds of load, in which these groups had no live server.

    Args:
        silent: seconds without a request to these groups.
    """
    doc = copy.deepcopy(document("after_load"))
    doc["nowMsec"] += 1000 * second
    lost = sum(each not in silent for each in range(1, second + 1))
    for name, servers in doc["upstreamZones"].items():
        for each in servers:
            count = (lost if name in dead else 10 * second) if each["requestCounter"] else 0
            each["requestCounter"] += count
            each["responses"]["5xx" if name in dead else "2xx"] += count
            for kind in ("request", "response"):
                each[f"{kind}MsecCounter"] += 10 * count
                buckets = each[f"{kind}Buckets"]
                buckets["counters"] = [counter + count for counter in buckets["counters"]]
        if name in dead:
            unserved = copy.deepcopy(entry(document("all_refused"), DEAD, DEAD))
            servers.append({**unserved, "server": name, "requestCounter": 3 * lost})
    return doc


def recorded(dead: Iterable[str] = (), silent: Iterable[int] = (), groups: tuple[str, ...] = ()) -> Recorded:
    seen = Recorded(groups)
    seen.snapshots += [parse(reading(second, dead, silent)) for second in range(READINGS + 1)]
    return seen


def test_one_group_without_a_live_server_does_not_spoil_the_others() -> None:
    seen = recorded(dead=(DEAD,))
    windows = seen.windows()
    assert (len(windows), all(window.usable for window in windows)) == (READINGS, True)
    assert tuple(group.name for group in windows[0].topology.groups) == ALIVE
    (verdict,) = seen.left_out
    assert (verdict.group, verdict.judgement) == (DEAD, "little_traffic")
    assert f"faults in {READINGS} of {READINGS} windows" in verdict.detail
    assert "requests found no live server" in verdict.detail
    chosen, few = telling(windows, windows[0].topology)
    assert (tuple(group.name for group in chosen.groups), few) == (ALIVE, ())


def test_without_faults_nothing_is_left_out() -> None:
    seen = recorded()
    assert {group.name for group in seen.windows()[0].topology.groups} == {DEAD, *ALIVE}
    assert seen.left_out == ()


def test_a_group_with_a_few_faults_stays() -> None:
    """Ten of thirty windows: the others are enough for all groups."""
    seen = recorded(dead=(DEAD,), silent=range(11, READINGS + 1))
    windows = seen.windows()
    assert len(windows[0].topology.groups) == 3
    assert sum(window.usable for window in windows) == READINGS - 10
    assert seen.left_out == ()


def test_what_is_left_out_follows_the_recording() -> None:
    """A group that dies is left out once most windows have its fault; windows are the same as made at once."""
    quiet, seen = range(1, 11), Recorded(())
    for second in range(READINGS + 1):
        seen.snapshots.append(parse(reading(second, (DEAD,), quiet)))
        windows = seen.windows()
        assert bool(seen.left_out) == (second > 20), second
    whole = recorded(dead=(DEAD,), silent=quiet)
    assert [each.requests.tolist() for each in windows] == [each.requests.tolist() for each in whole.windows()]
    assert seen.left_out == whole.left_out


def test_where_every_group_is_dead_the_fault_is_the_reason() -> None:
    seen = recorded(dead=(DEAD, *ALIVE))
    windows = seen.windows()
    assert seen.left_out == ()
    with pytest.raises(DataError, match=r"30 of 30 windows cannot be used, as .*found no live server") as caught:
        telling(windows, windows[0].topology)
    assert "--groups" in caught.value.remedy


def test_too_little_traffic_is_still_the_reason_where_it_is() -> None:
    seen = Recorded(())
    seen.snapshots += [parse(reading(second)) for second in range(3)]
    windows = seen.windows()
    with pytest.raises(DataError, match="too little traffic"):
        telling(windows, windows[0].topology)


def watched(path: Path, url: str = URL, **options: Any) -> Watch:
    return Watch(OnboardOptions(status_url=url, **options), path, lambda text, part: None, lambda text: None)


def test_a_recording_of_gaps_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "snapshots.jsonl"
    with SnapshotWriter(path) as writer:
        writer.write_gap("no answer", 1.0)
    assert watched(path).seen.snapshots == []
    path.write_bytes(b'{"nowMsec": 12')
    assert watched(path).seen.snapshots == []
    with SnapshotWriter(path) as writer:
        writer.write(parse(reading(0)))
    assert len(watched(path).seen.snapshots) == 1


def test_a_recording_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        watched(tmp_path)


def without_histograms(second: int) -> dict[str, Any]:
    doc = reading(second)
    for each in (server for group in doc["upstreamZones"].values() for server in group):
        each["responseBuckets"] = {"msecs": [], "counters": []}
    return doc


@contextmanager
def serving(show: Callable[[int], dict[str, Any]], first: int = 0) -> Iterator[str]:
    """URL of statistics in which every reading is a second later."""
    seconds = itertools.count(first)

    def answer(request: Received) -> bytes:
        body = json.dumps(show(next(seconds))).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    with ScriptedServer(answer) as server:
        yield f"http://{server.address}/status"


def test_servers_that_turn_out_to_have_no_histogram_end_the_watch(tmp_path: Path) -> None:
    """They had no request when the preflight looked. Once that is corrected, the same recording is gone on with."""
    path = tmp_path / "snapshots.jsonl"
    with serving(without_histograms) as url:
        watch = watched(path, url, watch_s=2.0, interval_s=0.05)
        with pytest.raises(DataError, match="no server has one") as caught:
            watch.run()
    assert "vhost_traffic_status_histogram_buckets" in caught.value.remedy
    before = len(watch.seen.snapshots)
    with serving(reading, before) as url:
        seen = watched(path, url, watch_s=before - 1 + 2.0, interval_s=0.05).run()
    assert len(seen.snapshots) > before
    assert seen.windows()[-1].bounds_ms
