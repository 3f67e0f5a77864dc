"""Whatever the statistics say, a running controller goes on: one clear line, and the next good window counts."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actuators.contract.control import Weights
from actuators.contract.topology import social_network
from actuators.nginx.config import NginxOptions
from actuators.statistics.reader import Collector, StatusReader
from tests.support.http_server import Received, ScriptedServer
from tests.support.nginx_site import running_site
from tests.support.steer_scripted import Scripted, fixed_options, scripted
from tuning.steering.decide import NO_BUCKETS

pytestmark = pytest.mark.nginx

Change = Callable[[dict[str, Any]], object]


def _entries(doc: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for entries in doc["upstreamZones"].values() for entry in entries]


def _without_histogram(doc: dict[str, Any]) -> None:
    for entry in _entries(doc):
        del entry["responseBuckets"], entry["requestBuckets"]


def _empty_buckets(doc: dict[str, Any]) -> None:
    for entry in _entries(doc):
        entry["responseBuckets"] = {"msecs": [], "counters": []}


def _other_buckets(doc: dict[str, Any]) -> None:
    for entry in _entries(doc):
        entry["responseBuckets"] = {"msecs": [5, 50, 500], "counters": [entry["requestCounter"]] * 3}


def _unknown_keys(doc: dict[str, Any]) -> None:
    doc["cacheZones"], doc["upstreamZones"]["::nogroups"] = {"x": [1, {"y": None}]}, []
    for entry in _entries(doc):
        entry["newInVersion9"] = {"deep": [1, 2, {"é": None}]}


_FALLING = {"msecs": [1, 2], "counters": [5, 3]}
GOES_ON: dict[str, Change] = {
    "no histogram": _without_histogram,
    "empty buckets": _empty_buckets,
    "other buckets": _other_buckets,
    "unknown keys": _unknown_keys,
}
HOLDS: dict[str, Change] = {
    "a text for a number": lambda doc: doc.update(nowMsec="later"),
    "no groups": lambda doc: doc.update(upstreamZones={}),
    "a list for an object": lambda doc: doc.update(upstreamZones=[]),
    "a null entry": lambda doc: doc["upstreamZones"].update(home_read_backend=[None]),
    "buckets of another type": lambda doc: [e.update(responseBuckets=[1, 2]) for e in _entries(doc)],
    "counters of another type": lambda doc: [e.update(requestCounter={"n": 1}) for e in _entries(doc)],
    "falling buckets": lambda doc: [e.update(responseBuckets=_FALLING) for e in _entries(doc)],
}


def test_every_document_is_survived_in_turn(short_dir: Path) -> None:
    changes: list[Change] = []
    with running_site(short_dir, NginxOptions(method="round_robin", actuation="memory")) as site:

        def status(_: Received) -> bytes:
            with StatusReader(site.nginx.status_url) as reader:
                doc = copy.deepcopy(reader.document())
            for change in changes:
                change(doc)
            body = json.dumps(doc).encode()
            return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body

        policy = Weights(site.topology, np.tile([50, 30, 20], (3, 1)))
        with (
            ScriptedServer(status) as front,
            Collector(f"http://{front.address}/", social_network(site.topology.servers)) as collector,
        ):
            site.collector = collector
            drill = scripted(site, policy, short_dir / "steer", fixed_options("active", dwell_s=0.0))
            drill.until(lambda step: step.applied and step.decision.source == "policy")
            for name, change in GOES_ON.items():
                changes[:] = [change]
                _good(drill, name)
                told = drill.folder.status()["alarms"]
                means = name in ("no histogram", "empty buckets")
                assert (NO_BUCKETS in told) == means, (name, told)
                changes.clear()
                _good(drill, f"after {name}")
            for name, change in HOLDS.items():
                changes[:] = [change]
                step = drill.step()
                assert step.decision.source == "hold", name
                assert "statistics unusable" in step.decision.reason, name
                details = [fault["detail"] for fault in step.line["window"]["faults"]]
                assert details, name
                assert not any("Traceback" in detail or "\n" in detail for detail in details), (name, details)
                changes.clear()
                _good(drill, f"after {name}")
        assert not [line for line in drill.said if "\n" in line]
        assert site.nginx.control() == drill.controller.steering.in_force


def _good(drill: Scripted, name: str) -> None:
    """Within a few windows the policy acts on a usable window again; other buckets measure the baseline anew first."""
    for _ in range(8):
        step = drill.step()
        if step.decision.source == "policy" and step.line["window"]["requests"][1]:
            break
    assert step.decision.source == "policy", (name, step.decision.reason, step.line["window"]["faults"])
    assert sum(step.line["window"]["requests"][1]) >= 20, name
