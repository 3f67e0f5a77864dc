"""vts documents → snapshots → windows: every recorded document and every boundary."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest

from actuators.contract.topology import Group, Topology, social_network
from actuators.errors import StatusError
from actuators.statistics.vts import parse
from actuators.statistics.windows import gap
from tests.support.paths import VTS
from tests.support.vts_documents import RECORDED, TOPOLOGY, A, B, document, entry, kinds, later, window


@pytest.mark.parametrize("name", RECORDED)
def test_every_recorded_document_is_read_exactly(name: str) -> None:
    doc = document(name)
    snapshot = parse(doc)
    assert (snapshot.now_ms, snapshot.load_ms, snapshot.module_version) == (doc["nowMsec"], doc["loadMsec"], "v0.2.7")
    for group, entries in doc["upstreamZones"].items():
        real = [e for e in entries if e["weight"] > 0]
        assert list(snapshot.groups[group]) == [e["server"] for e in real]
        for e in real:
            counters = snapshot.groups[group][e["server"]]
            assert counters.totals() == (
                e["requestCounter"], e["inBytes"], e["outBytes"], e["responseMsecCounter"],
                *(e["responses"][c] for c in ("1xx", "2xx", "3xx", "4xx", "5xx")),
            )  # fmt: skip
            assert list(counters.response_buckets.counters) == e["responseBuckets"]["counters"]
            assert (counters.weight, counters.down, counters.backup) == (e["weight"], e["down"], e["backup"])


@pytest.mark.parametrize("before", RECORDED)
@pytest.mark.parametrize("after", RECORDED)
def test_any_sequence_of_recordings_gives_counts_or_faults(before: str, after: str) -> None:
    result = window(document(before), document(after))
    assert (result.requests >= 0).all()
    assert (result.latency_histogram >= 0).all()
    if result.usable:
        old, new = parse(document(before)), parse(document(after))
        for g, group in enumerate(TOPOLOGY.groups):
            for s, server in enumerate(TOPOLOGY.servers):
                counted = (
                    new.groups[group.name][server].request_counter - old.groups[group.name][server].request_counter
                )
                assert result.requests[g, s] == counted
    elif before != after:
        assert kinds(result) & {"restart", "reset", "missing_server", "missing_group", "gap", "server_down"}


def test_a_clean_window_has_the_recorded_numbers() -> None:
    result = window(document("before_load"), document("after_load"))
    assert result.faults == ()
    assert result.requests.tolist() == [[406, 244, 162], [621, 620, 0], [83, 165, 331]]
    assert result.response_ms_sum.tolist() == [[1052, 4327, 4880], [1157, 9034, 0], [237, 2584, 8503]]
    assert result.weight.tolist() == [[5, 3, 2], [1, 1, 1], [1, 2, 4]]
    assert result.bounds_ms == (1, 5, 10, 25, 50, 100, 250, 500, 1000, 5000)
    assert (result.latency_histogram.sum(axis=2) == result.requests).all()
    assert result.latency_histogram[0, 0].tolist() == [188, 185, 25, 3, 5, 0, 0, 0, 0, 0, 0]
    assert result.responses[2, 2].tolist() == [0, 328, 0, 3, 0]
    assert result.duration_s == pytest.approx((1795331200520 - 1795331167382) / 1e3)


def test_servers_are_matched_by_name_whatever_their_order() -> None:
    base = document("after_load")
    swapped = later(base, lambda d: d["upstreamZones"]["compose_backend"].reverse())
    entry(swapped, "compose_backend", B)["requestCounter"] += 7
    result = window(base, swapped)
    assert result.requests.tolist() == [[0, 7, 0], [0, 0, 0], [0, 0, 0]]


def test_a_reload_keeps_the_numbers_and_is_told() -> None:
    base = document("after_load")

    def reload(doc: dict[str, Any]) -> None:
        doc["loadMsec"] += 500
        doc["connections"]["requests"] += 3
        entry(doc, "compose_backend", A)["requestCounter"] += 3

    result = window(base, later(base, reload))
    assert kinds(result) == {"reload"}
    assert result.usable
    assert result.requests[0, 0] == 3


def test_a_restart_is_never_a_number() -> None:
    base = document("after_load")
    result = window(base, later(document("before_load"), lambda d: d.update(nowMsec=base["nowMsec"] + 1000)))
    assert "restart" in kinds(result)
    assert result.requests.sum() == 0


def test_an_nginx_that_was_loaded_earlier_is_another_one() -> None:
    """As when an upgrade of its program is taken back: all its counters are larger than those of the new one."""
    base = document("after_load")

    def older(doc: dict[str, Any]) -> None:
        doc["loadMsec"] -= 500
        doc["connections"]["requests"] += 3
        entry(doc, "compose_backend", A)["requestCounter"] += 3

    result = window(base, later(base, older))
    assert "restart" in kinds(result)
    assert not result.usable


def test_a_reset_counter_blanks_its_cell_only() -> None:
    base = document("after_load")

    def reset(doc: dict[str, Any]) -> None:
        entry(doc, "compose_backend", A)["requestCounter"] = 2
        entry(doc, "compose_backend", B)["requestCounter"] += 9

    result = window(base, later(base, reset))
    assert [(f.kind, f.group, f.server) for f in result.faults] == [("reset", "compose_backend", A)]
    assert result.requests[0].tolist() == [0, 9, 0]


def test_a_resized_zone_is_a_reset_even_when_nothing_fell() -> None:
    base = document("before_load")
    resized = later(base, lambda d: d["sharedZones"].update(maxSize=8388608))
    assert kinds(window(base, resized)) == {"reset"}


def test_a_full_zone_names_the_uncounted_server() -> None:
    base = document("before_load")
    full = later(base, lambda d: d["sharedZones"].update(freeSize=0))
    result = window(base, full)
    assert kinds(result) == {"zone_full"}
    assert not result.usable
    old = later(base, lambda d: d["sharedZones"].pop("freeSize"))
    old["sharedZones"].update(maxSize=65536, usedNode=9)
    base["sharedZones"]["maxSize"] = 65536
    assert kinds(window(base, old)) == {"zone_full"}


def test_removed_and_readded_servers_are_flagged() -> None:
    without = later(document("after_weight_reload"))
    without["upstreamZones"]["compose_backend"].pop(1)
    assert {f.server for f in window(document("after_weight_reload"), without).faults} == {B}
    back = later(document("after_weight_reload"), lambda d: d.update(nowMsec=without["nowMsec"] + 1000))
    result = window(without, back)
    assert [(f.kind, f.server) for f in result.faults] == [("missing_server", B)]
    assert result.requests[0, 1] == 0


def test_a_residual_entry_counts_as_removed() -> None:
    residual = window(document("after_weight_reload"), document("server_removed"))
    assert {(f.kind, f.server) for f in residual.faults} == {("reload", ""), ("missing_server", B)}


def test_requests_that_found_no_live_server_are_told() -> None:
    dead = ("127.0.0.1:18198", "127.0.0.1:18199")
    topology = social_network(dead)
    base = document("all_refused")

    def more(doc: dict[str, Any]) -> None:
        entry(doc, "compose_backend", "compose_backend")["requestCounter"] += 4

    result = window(base, later(base, more), topology)
    assert [(f.kind, f.group) for f in result.faults] == [("server_down", "compose_backend")]
    assert "4 requests" in result.faults[0].detail


def test_duplicate_lines_are_counted_once_and_told() -> None:
    base = document("after_load")
    base["upstreamZones"]["compose_backend"].append(copy.deepcopy(entry(base, "compose_backend", A)))
    result = window(base, later(base))
    assert [(f.kind, f.server) for f in result.faults] == [("duplicate_server", A)]
    assert parse(base).groups["compose_backend"][A].request_counter == 406


def test_passive_failure_and_backup_are_seen() -> None:
    result = window(document("upstream_zone"), later(document("upstream_zone")))
    assert result.down.tolist() == [[False, True, False]] * 3


def test_new_bounds_on_some_servers_thin_the_histogram_exactly() -> None:
    base = document("after_load")

    def coarser(doc: dict[str, Any]) -> None:
        for group in doc["upstreamZones"].values():
            for e in group:
                buckets = dict(zip(e["responseBuckets"]["msecs"], e["responseBuckets"]["counters"], strict=True))
                if e["server"] == A:
                    kept = [5, 50, 500]
                    e["responseBuckets"] = {"msecs": kept, "counters": [buckets.get(k, 0) for k in kept]}
        e = entry(doc, "compose_backend", A)
        e["requestCounter"] += 5
        e["responseBuckets"]["counters"] = [
            c + n for c, n in zip(e["responseBuckets"]["counters"], (2, 3, 4), strict=True)
        ]

    result = window(base, later(base, coarser))
    assert result.bounds_ms == (5, 50, 500)
    assert result.latency_histogram[0, 0].tolist() == [2, 1, 1, 1]


def test_a_backward_clock_is_a_gap() -> None:
    base = document("after_load")
    assert kinds(window(later(base), base)) == {"gap"}


def test_wrapped_counters_are_unwrapped() -> None:
    base = document("after_load")
    e = entry(base, "compose_backend", A)
    e["requestCounter"] = 2**64 - 3
    wrapped = later(base)
    w = entry(wrapped, "compose_backend", A)
    w["requestCounter"], w["overCounts"]["requestCounter"] = 4, 1
    assert window(base, wrapped).requests[0, 0] == 7


def test_missing_groups_and_other_shapes_of_topology() -> None:
    servers = ("[2001:db8::1]:80", "unix:/run/app.sock", "10.0.0.7")
    topology = Topology((Group("g", "t", "GET", "/", 2.0, servers[:2]), Group("h", "u", "GET", "/u", 2.0, servers[1:])))
    base = document("before_load")
    base["upstreamZones"] = {
        "g": [{"server": s, "requestCounter": 0} for s in servers[:2]],
        "h": [{"server": s, "requestCounter": 1} for s in ("unix:/run/app.sock", "10.0.0.7:80")],
    }
    after = later(base)
    for e in after["upstreamZones"]["h"]:
        e["requestCounter"] += 2
    result = window(base, after, topology)
    assert result.faults == ()
    assert result.requests.tolist() == [[0, 0, 0], [0, 2, 2]]
    assert result.bounds_ms == ()
    assert result.latency_histogram[1].tolist() == [[0], [2], [2]]
    assert kinds(window(base, later(base), TOPOLOGY)) == {"missing_group"}


def test_a_gap_is_zeros_and_one_fault() -> None:
    result = gap(TOPOLOGY, 1.0, 2.0, "unreachable")
    assert kinds(result) == {"gap"}
    assert not result.usable
    assert result.requests.sum() == 0
    assert np.isnan(result.mean_response_s()).all()


def test_half_a_surrogate_pair_beside_a_wrong_value_is_one_error() -> None:
    broken = json.loads((VTS / "before_load.json").read_text())
    broken["serverZones"]["*"]["responses"]["5xx"] = "\uda2e"
    with pytest.raises(StatusError, match="not vts statistics"):
        parse(broken)
