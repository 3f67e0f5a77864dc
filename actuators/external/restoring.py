"""An earlier control for the servers that NGINX has now: what is put in force again when servers came or went."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from actuators.contract.arrays import BoolArray
from actuators.contract.control import Control, ServiceTimes, Weights
from actuators.contract.topology import Topology


@dataclass(frozen=True)
class Restoration:
    """An earlier control on present servers; names are GROUP/SERVER, as in `Restored`."""

    control: Control
    restored: tuple[str, ...]
    missing: tuple[str, ...]
    added: tuple[str, ...]


def restoration(first: Control, present: Control) -> Restoration:
    """The first control for the servers of the present one; those that only the present one knows keep its values.

    A group that would be left without a usable server keeps the `down` flags that it has now. Service times of servers
    that only the present control knows are those of it, or the mean of their group where it holds weights.
    """
    old, new = names_of(first.topology), names_of(present.topology)
    kept = {name: (old[name], cell) for name, cell in new.items() if name in old}
    control = (
        _times(first, present, list(kept.values()))
        if isinstance(first, ServiceTimes)
        else _weights(first, present.as_weights(), list(kept.values()))
    )
    groups = {group.name for group in first.topology.groups}
    own = [name for name, (g, _) in new.items() if present.topology.groups[g].name in groups]
    missing, added = (name for name in old if name not in new), (name for name in own if name not in old)
    return Restoration(control, tuple(kept), tuple(missing), tuple(added))


def names_of(topology: Topology) -> dict[str, tuple[int, int]]:
    """GROUP/SERVER of every server of every group, with its indices."""
    return {
        f"{group.name}/{server}": (g, topology.server_index(server))
        for g, group in enumerate(topology.groups)
        for server in group.servers
    }


_Cells = list[tuple[tuple[int, int], tuple[int, int]]]


def _weights(first: Weights, present: Weights, cells: _Cells) -> Weights:
    values, down = present.values.copy(), present.down.copy()
    for old, new in cells:
        values[new], down[new] = first.values[old], first.down[old]
    return Weights(present.topology, values, _usable(down, present))


def _times(first: ServiceTimes, present: Control, cells: _Cells) -> ServiceTimes:
    topology = present.topology
    tau_s, workers, down = np.zeros(topology.shape), np.ones(topology.shape[1]), present.down.copy()
    if isinstance(present, ServiceTimes):
        tau_s, workers = present.tau_s.copy(), present.workers.copy()
    for old, new in cells:
        tau_s[new], workers[new[1]], down[new] = first.tau_s[old], first.workers[old[1]], first.down[old]
    known = topology.mask & (tau_s > 0)
    overall = float(tau_s[known].mean()) if known.any() else 1.0
    means = [float(row[has].mean()) if has.any() else overall for row, has in zip(tau_s, known, strict=True)]
    holding = None if first.holding is None else first.holding.onto(topology)
    tau_s = np.where(known, tau_s, np.array(means)[:, None])
    return ServiceTimes(topology, tau_s, workers, holding, _usable(down, present))


def _usable(down: BoolArray, present: Control) -> BoolArray:
    """`down` where it leaves the group a server, else what is down now."""
    left = np.asarray((present.topology.mask & ~down).any(axis=1, keepdims=True))
    return np.where(left, down, present.down)
