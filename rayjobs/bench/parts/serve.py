"""A bundle and vts documents for benches of the served policy: made from simulated windows, as training makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from actuators.contract.topology import Topology, social_network
from actuators.contract.window import DEFAULT_BOUNDS_MS, Window
from envs.environment.phase import ObserveOptions, fit_problem, watch
from envs.environment.problem import DecisionOptions
from envs.observation.encoder import EncoderOptions
from envs.scenarios.lookup import scenario
from envs.simulator.testbed import SimulatedTestbed
from tuning.options import ModelOptions
from tuning.policy.bundle import Bundle
from tuning.policy.model import EquivariantNet

REQUESTS = 200
FULL_RING = 63
"""Last times that vts keeps of a server in a group; they are most of a document, and nobody reads them."""


def make_bundle(folder: Path, seed: int) -> Path:
    """A bundle as training begins with it: its speed does not depend on what the network has learned."""
    topology = social_network()
    with SimulatedTestbed(topology) as testbed:
        windows = watch(testbed, scenario("demo", duration_s=200.0), "least_conn", ObserveOptions(), seed)
    problem = fit_problem(windows, topology, DecisionOptions(), EncoderOptions(), seed).problem
    net = EquivariantNet(problem.row_size, topology.shape[0], ModelOptions())
    Bundle(net, problem, ModelOptions(), {"seed": seed}).save(folder)
    return folder


def some_windows(topology: Topology, count: int = 3) -> list[Window]:
    """Simulated windows of the demo scenario."""
    with SimulatedTestbed(topology) as testbed:
        testbed.reset(scenario("demo", duration_s=60.0), 1)
        return [testbed.advance(1.0) for _ in range(count)]


def vts_documents(
    topology: Topology, seed: int, ring: int = FULL_RING, bounds_ms: tuple[int, ...] = DEFAULT_BOUNDS_MS
) -> list[dict[str, Any]]:
    """Two documents, one second apart, as vts writes them: `ring` last times and a histogram for every server."""
    generator = np.random.default_rng(seed)
    times = generator.lognormal(2.0, 0.5, (*topology.shape, 2, REQUESTS)).astype(int)
    return [_document(topology, times[..., : moment + 1, :], moment, ring, bounds_ms) for moment in range(2)]


def _document(
    topology: Topology, times: np.ndarray, moment: int, ring: int, bounds_ms: tuple[int, ...]
) -> dict[str, Any]:
    total = int(times.size)
    return {
        "hostName": "bench", "moduleVersion": "v0.2.7", "nginxVersion": "1.22.1", "loadMsec": 1_700_000_000_000,
        "nowMsec": 1_700_000_100_000 + 1000 * moment,
        "connections": {"active": 4, "reading": 0, "writing": 1, "waiting": 3, "accepted": 9, "handled": 9,
                        "requests": total},
        "serverZones": {},
        "upstreamZones": {
            group.name: [
                _entry(server, times[g, topology.server_index(server)].ravel(), ring, bounds_ms)
                for server in group.servers
            ]
            for g, group in enumerate(topology.groups)
        },
    }  # fmt: skip


def _entry(server: str, times: np.ndarray, ring: int, bounds_ms: tuple[int, ...]) -> dict[str, Any]:
    counters = [int((times <= bound).sum()) for bound in bounds_ms]
    last = {"times": list(range(1_700_000_099_000, 1_700_000_099_000 + ring)), "msecs": times[:ring].tolist()}
    buckets = {"msecs": list(bounds_ms), "counters": counters}
    count, total_ms = len(times), int(times.sum())
    return {
        "server": server, "requestCounter": count, "inBytes": 100 * count, "outBytes": 200 * count,
        "responses": {"1xx": 0, "2xx": count, "3xx": 0, "4xx": 0, "5xx": 0},
        "requestMsecCounter": total_ms, "requestMsec": 7, "requestMsecs": last, "requestBuckets": buckets,
        "responseMsecCounter": total_ms, "responseMsec": 7, "responseMsecs": last, "responseBuckets": buckets,
        "weight": 1, "maxFails": 1, "failTimeout": 10, "backup": False, "down": False,
        "overCounts": {"maxIntegerSize": 18446744073709551615, "requestCounter": 0},
    }  # fmt: skip
