"""Server lines and the entries of the statistics: one mapping, also behind host names."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest

from actuators.contract.topology import Group, Topology
from actuators.errors import ConfigError
from actuators.statistics.names import NameKeeper, ServerNames, server_names
from actuators.statistics.vts import Snapshot, parse
from actuators.statistics.windows import difference
from tests.support.vts_documents import document

HOSTS = {"one.test": ("10.0.0.1", "2001:db8::1"), "two.test": ("10.0.0.2",), "same.test": ("10.0.0.1",)}


def resolve(host: str) -> Collection[str]:
    return HOSTS.get(host, ())


def unasked(host: str) -> Collection[str]:
    raise AssertionError(f"{host} was resolved")


def topology(*servers: str, name: str = "g") -> Topology:
    return Topology((Group(name, name, "GET", "/", 2.0, servers),))


def counted(name: str, requests: int, weight: int = 1, **more: Any) -> dict[str, Any]:
    return {"server": name, "requestCounter": requests, "weight": weight, **more}


def shown(*entries: dict[str, Any], group: str = "g", now_ms: int = 1000) -> Snapshot:
    base = document("before_load")
    return parse({**base, "nowMsec": base["nowMsec"] + now_ms, "upstreamZones": {group: list(entries)}})


def named(names: ServerNames) -> dict[str, tuple[str, ...]]:
    return {server: entries for (_, server), entries in names.entries.items()}


def test_addresses_are_found_in_any_spelling_without_a_name_service() -> None:
    own = topology("10.0.0.1", "[2001:DB8:0::1]", "unix:/run/a@1:x.sock", "127.0.0.1:8080")
    entries = ("unix:/run/a@1:x.sock", "127.0.0.1:8080", "10.0.0.1:80", "[2001:db8::1]:80")
    names = server_names(own, shown(*(counted(each, 1) for each in entries)), unasked)
    assert named(names) == {
        "10.0.0.1": ("10.0.0.1:80",), "[2001:DB8:0::1]": ("[2001:db8::1]:80",), entries[0]: (entries[0],),
        entries[1]: (entries[1],),
    }  # fmt: skip
    assert names.problems == ()
    assert names.counts.tolist() == [[1, 1, 1, 1]]


def test_one_host_name_per_port_needs_no_name_service() -> None:
    entries = ("127.0.0.1:9001", "[::1]:9001", "127.0.0.1:9002", "10.0.0.9:9002")
    names = server_names(
        topology("localhost:9001", "LOCALHOST:9002", "10.0.0.9:9002"), shown(*(counted(e, 1) for e in entries)), unasked
    )
    assert named(names)["localhost:9001"] == entries[:2]
    assert named(names)["LOCALHOST:9002"] == (entries[2],)
    assert names.counts.tolist() == [[2, 1, 1]]
    names.check()


def test_one_server_under_two_names_is_said() -> None:
    own = Topology(topology("localhost:9001", name="web").groups + topology("127.0.0.1:9001", name="api").groups)
    both = replace(
        shown(counted("127.0.0.1:9001", 1), group="web"), groups={
            name: shown(counted("127.0.0.1:9001", 1), group=name).groups[name] for name in ("web", "api")
        },
    )  # fmt: skip
    found = server_names(own, both, unasked).aliases
    assert found == ("localhost:9001 of web and 127.0.0.1:9001 of api are one server",)
    same = Topology(topology("127.0.0.1:9001", name="web").groups + topology("127.0.0.1:9001", name="api").groups)
    assert server_names(same, both, unasked).aliases == ()


def test_host_names_with_one_port_are_resolved() -> None:
    own = topology("one.test", "two.test:80", "gone.test")
    entries = ("10.0.0.2:80", "10.0.0.1:80", "[2001:db8::1]:80", "10.0.0.7:80")
    names = server_names(own, shown(*(counted(each, 1) for each in entries)), resolve)
    # NGINX resolved gone.test when it started; what is left can only be that.
    assert named(names) == {"one.test": entries[1:3], "two.test:80": entries[:1], "gone.test": entries[3:]}
    names.check()


@pytest.mark.parametrize(
    ("servers", "entries", "problem"),
    [
        (("one.test", "same.test"), ("10.0.0.1:80", "10.0.0.1:80"), "two lines of g are the same server 10.0.0.1:80"),
        (("one.test:81", "10.0.0.1:81"), ("10.0.0.1:81", "10.0.0.1:81"), "same server 10.0.0.1:81"),
        (("gone.test", "away.test"), ("10.0.0.7:80", "10.0.0.8:80"), "show no entry that is gone.test"),
        (("10.0.0.1:1", "10.0.0.2:1"), ("10.0.0.1:1",), "show no entry that is 10.0.0.2:1"),
    ],
)
def test_what_is_not_one_to_one_is_said(servers: tuple[str, ...], entries: tuple[str, ...], problem: str) -> None:
    names = server_names(topology(*servers), shown(*(counted(each, 1) for each in entries)), resolve)
    with pytest.raises(ConfigError, match=problem):
        names.check()


def test_a_line_with_two_addresses_is_one_server_in_a_window() -> None:
    own = topology("localhost:9001", "10.0.0.9", name="App")
    buckets = {"msecs": [10, 100], "counters": [0, 0]}

    def reading(now_ms: int, first: int, second: int, third: int) -> Snapshot:
        return shown(
            counted("127.0.0.1:9001", first, 3, responseMsecCounter=10 * first, responses={"2xx": first},
                    responseBuckets={**buckets, "counters": [first - 1, first]}),
            counted("[::1]:9001", second, 3, responseMsecCounter=50 * second, responses={"5xx": second}, down=True,
                    responseBuckets={"msecs": [10, 50, 100], "counters": [0, 1, second]}),
            counted("10.0.0.9:80", third, 2, responseMsecCounter=third,
                    responseBuckets={**buckets, "counters": [0, third]}),
            group="app", now_ms=now_ms,
        )  # fmt: skip

    window = difference(reading(0, 5, 7, 1), reading(1000, 9, 17, 2), own)
    assert window.faults == ()
    assert window.requests.tolist() == [[14, 1]]
    assert window.weight.tolist() == [[6, 2]]
    assert window.response_ms_sum.tolist() == [[540, 1]]
    assert window.responses[0, 0].tolist() == [0, 4, 0, 0, 10]
    assert window.down.tolist() == [[False, False]]
    assert window.bounds_ms == (10, 100)
    assert window.latency_histogram[0, 0].tolist() == [4, 10, 0]


def test_an_address_that_joins_makes_no_number() -> None:
    own = topology("localhost:9001", "10.0.0.9:80")
    before = shown(counted("127.0.0.1:9001", 5), counted("10.0.0.9:80", 1), now_ms=0)
    after = shown(counted("127.0.0.1:9001", 6), counted("[::1]:9001", 700), counted("10.0.0.9:80", 2))
    window = difference(before, after, own)
    assert [(fault.kind, fault.server) for fault in window.faults] == [("missing_server", "localhost:9001")]
    assert window.requests.tolist() == [[0, 1]]


def test_counters_that_have_wrapped_are_added() -> None:
    own = topology("localhost:1")
    wrapped = counted("127.0.0.1:1", 10, overCounts={"requestCounter": 1}, responseMsecCounter=1)
    before = shown(counted("127.0.0.1:1", 2**64 - 10, responseMsecCounter=1), counted("[::1]:1", 1), now_ms=0)
    window = difference(before, shown(wrapped, counted("[::1]:1", 3)), own)
    assert window.requests.tolist() == [[22]]


def test_names_are_found_again_when_the_entries_change() -> None:
    keeper = NameKeeper(topology("localhost:1"))
    first = keeper.of(shown(counted("127.0.0.1:1", 1)))
    assert keeper.of(shown(counted("127.0.0.1:1", 2))) is first
    assert keeper.of(shown(counted("127.0.0.1:1", 2), counted("[::1]:1", 0))).counts.tolist() == [[2]]


def test_recorded_documents_are_read_under_their_own_names() -> None:
    base = document("after_load")
    group = next(iter(base["upstreamZones"]))
    servers = tuple(each["server"] for each in base["upstreamZones"][group])
    snapshot = parse(base)
    names = server_names(topology(*servers, name=group), snapshot, unasked)
    assert names.exact
    assert names.renamed(snapshot) is snapshot
