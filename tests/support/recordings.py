"""Files as `deepsched collect` writes them, but of a simulated testbed that a policy steers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from actuators.contract.control import BalancingMethod, Weights
from actuators.contract.script import Scenario
from actuators.contract.topology import Topology, social_network
from actuators.contract.window import Window
from actuators.statistics.recording import SnapshotWriter
from actuators.statistics.vts import Buckets, Responses, ServerCounters, Snapshot
from envs.simulator.testbed import SimulatedTestbed, SimulationOptions

Steer = Callable[[Window], Weights]


def record(
    path: Path,
    scenario: Scenario,
    seed: int,
    steer: Steer,
    seconds: int,
    method: BalancingMethod = "round_robin",
    simulation: SimulationOptions | None = None,
    topology: Topology | None = None,
) -> list[Window]:
    """Writes a snapshot per simulated second; the windows between them, the first without a snapshot before it."""
    topology = topology or social_network()
    with SimulatedTestbed(topology, method, options=simulation) as testbed, SnapshotWriter(path) as writer:
        testbed.reset(scenario, seed)
        windows = []
        for _ in range(seconds):
            windows.append(testbed.advance(1.0))
            testbed.apply(steer(windows[-1]))
        for snapshot in _snapshots(windows):
            writer.write(snapshot)
    return windows


def _snapshots(windows: list[Window]) -> Iterator[Snapshot]:
    """Cumulative counters after every window."""
    topology, bounds_ms = windows[0].topology, windows[0].bounds_ms
    requests, total_ms = np.zeros(topology.shape, np.int64), np.zeros(topology.shape, np.int64)
    responses = np.zeros((*topology.shape, 5), np.int64)
    histogram = np.zeros((*topology.shape, len(bounds_ms)), np.int64)
    for window in windows:
        requests, total_ms = requests + window.requests, total_ms + window.response_ms_sum
        responses = responses + window.responses
        histogram = histogram + window.latency_histogram[..., :-1].cumsum(axis=-1)
        groups = {
            group.name: {
                server: ServerCounters(
                    server=server,
                    request_counter=int(requests[g, s]),
                    responses=Responses(*responses[g, s].tolist()),
                    response_msec_counter=int(total_ms[g, s]),
                    response_buckets=Buckets(bounds_ms, tuple(histogram[g, s].tolist())),
                    weight=int(window.weight[g, s]),
                )
                for s, server in ((topology.server_index(server), server) for server in group.servers)
            }
            for g, group in enumerate(topology.groups)
        }
        yield Snapshot(1_000_000 + round(window.end_s * 1000), 1, groups)
