"""Recorded vts documents and small changes to them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from actuators.contract.topology import Topology, social_network
from actuators.contract.window import Window
from actuators.statistics.vts import parse
from actuators.statistics.windows import difference
from tests.support.paths import VTS

RECORDED = sorted(path.stem for path in VTS.glob("*.json"))
A, B, C = "127.0.0.1:18101", "127.0.0.1:18102", "127.0.0.1:18103"
TOPOLOGY = social_network((A, B, C))


def document(name: str) -> dict[str, Any]:
    return json.loads((VTS / f"{name}.json").read_text())


def kinds(window: Window) -> set[str]:
    return {fault.kind for fault in window.faults}


def later(base: dict[str, Any], change: Callable[[dict[str, Any]], None] = lambda _: None) -> dict[str, Any]:
    """The same document a second later, with a change."""
    new = copy.deepcopy(base)
    new["nowMsec"] += 1000
    change(new)
    return new


def entry(doc: dict[str, Any], group: str, server: str) -> dict[str, Any]:
    return next(e for e in doc["upstreamZones"][group] if e["server"] == server)


def window(before: dict[str, Any], after: dict[str, Any], topology: Topology = TOPOLOGY) -> Window:
    return difference(parse(before), parse(after), topology)
