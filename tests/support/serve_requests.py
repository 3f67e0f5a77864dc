"""Requests to the served policy of every kind, and how answers to them are compared."""

from __future__ import annotations

import json
from typing import Any

import pytest

from actuators.contract.topology import social_network
from actuators.contract.window import Fault
from rayjobs.bench.parts.serve import vts_documents
from tests.support.problems import TOPOLOGY
from tests.support.windows import window
from tuning.steering import window_json
from tuning.steering.options import GuardOptions

GUARDS = GuardOptions()


def bodies() -> list[bytes]:
    """All that a request may be: windows of three and of five servers, documents, silence, faults, the unknown."""
    five = social_network(tuple(f"10.0.0.{i}:80" for i in range(5)))
    some = [[window(8.0 + 3 * i, seed=i), window(20.0 - 2 * i, seed=9 - i)][: 1 + i % 2] for i in range(6)]
    asked: list[dict[str, Any]] = [{"windows": [window_json.to_json(one) for one in group]} for group in some]
    asked += [{"windows": [window_json.to_json(window(topology=five, seed=i))]} for i in range(3)]
    asked += [{"documents": vts_documents(topology, 1, ring=2)} for topology in (TOPOLOGY, five)]
    odd = (window(requests=0), window(faults=(Fault("gap", "no answer"),)), window(5000.0))
    asked += [{"windows": [window_json.to_json(one)]} for one in odd]
    return [json.dumps(one).encode() for one in asked]


def same(together: Any, by_itself: Any) -> bool:
    """Equal but for the last digit of a float: a sum over more rows is taken in another order."""
    if isinstance(by_itself, float):
        return bool(together == pytest.approx(by_itself, rel=1e-5, abs=1e-9))
    if isinstance(by_itself, dict):
        return together.keys() == by_itself.keys() and all(same(together[k], v) for k, v in by_itself.items())
    if isinstance(by_itself, list):
        return len(together) == len(by_itself) and all(map(same, together, by_itself))
    return bool(together == by_itself)
