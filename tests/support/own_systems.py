"""Systems of other people's making: their groups, names and servers, how fast they are, and recordings of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actuators.contract.control import BalancingMethod, Weights
from actuators.contract.script import RateStep, Script, ServerProfile, Stream
from actuators.contract.topology import Topology, group_of
from actuators.contract.window import Window
from tests.support.recordings import record


def _own(**groups: str) -> Topology:
    named = {"2nd.shop-api" if name == "second" else name.replace("__", "-"): text for name, text in groups.items()}
    return Topology(tuple(group_of(name, tuple(text.split())) for name, text in named.items()))


SYSTEMS = {
    "1x2": _own(app="10.0.0.1:80 10.0.0.2:80"),
    "1x3": _own(app="10.0.0.1:80 unix:/run/app.sock [::1]:9001"),
    "2x5": _own(web="a:80 b:80 c:80 d:80 e:80", api="f:80 g:80 h:80 i:80 j:80"),
    "4x3 shared": _own(one="a:1 b:1 c:1", two="b:1 c:1 d:1", three="e:1 f:1 g:1", four="g:1 a:1 h:1"),
    "3x3 names": _own(second="a:1 b:1 c:1", search__api="a:1 b:1 c:1", app_backend="a:1 b:1 c:1"),
    "1x12": _own(big=" ".join(f"node-{n}.example:8080" for n in range(12))),
}
"""The smallest systems that differ in what matters: how many groups and servers, and which groups share servers."""

METHOD: BalancingMethod = "round_robin"


@dataclass(frozen=True)
class OwnLoad:
    """40 % of the capacity, every second server a third as fast again as the others."""

    name: str = "own"
    load: float = 0.4

    def script(self, topology: Topology, seed: int) -> Script:
        groups, servers = topology.shape
        mean_s = tuple(0.006 + 0.002 * g for g in range(groups))
        profiles = tuple(ServerProfile((1.0 + s % 2 / 3,) * groups, workers=2) for s in range(servers))
        # A server's capacity is shared by its groups.
        capacity = (topology.mask / topology.mask.sum(axis=0)).sum(axis=1) * 2
        rates = self.load * capacity / np.array(mean_s)
        streams = tuple(
            Stream(kind, (RateStep(0.0, float(rate)),))
            for kind, rate in zip(topology.request_types, rates, strict=True)
        )
        return Script(self.name, seed, 600.0, streams, profiles, mean_s)


def their_weights(topology: Topology) -> Weights:
    """What their configuration says: the first server of each group gets twice as much."""
    return Weights(topology, np.where(topology.mask.cumsum(axis=1) == 1, 2, 1))


def record_own(path: Path, topology: Topology, seconds: int = 20) -> list[Window]:
    """Snapshots of the system, a second apart, under their weights and their method."""
    return record(path, OwnLoad(), 1, lambda _: their_weights(topology), seconds, METHOD, topology=topology)
