"""Weights above 100 of an HAProxy or Envoy: kept as they were read, so that they come back exactly."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray
from actuators.contract.control import MAX_WEIGHT, Weights
from actuators.contract.topology import Topology


class _Read(NamedTuple):
    """Of one group, server → weight: as it was read, and scaled to 100."""

    raw: dict[str, int]
    scaled: dict[str, int]


class LargeWeights:
    """What was read last of each group with a weight above 100; known as long as the object lives."""

    def __init__(self) -> None:
        self._groups: dict[str, _Read] = {}

    def scaled(self, topology: Topology, values: FloatArray, down: NDArray[np.bool_]) -> Weights:
        """As `Weights.scaled`, of the weights in force; keeps those that it scales.

        Raises ConfigError where every server of a group is down.
        """
        control = Weights.scaled(topology, values, down)
        for g, group in enumerate(topology.groups):
            raw, scaled = _row(topology, g, values), _row(topology, g, control.values)
            if max(raw.values()) > MAX_WEIGHT:
                self._groups[group.name] = _Read(raw, scaled)
            elif group.name in self._groups and raw == self._groups[group.name].scaled:
                # Somebody has set just these, and not the larger ones.
                del self._groups[group.name]
        return control

    def unscaled(self, control: Weights) -> NDArray[np.int64]:
        """The values to set, ``[groups, servers]``: those that were read where they are the control's when scaled."""
        topology, values = control.topology, control.values.copy()
        for g, group in enumerate(topology.groups):
            read = self._groups.get(group.name)
            if read is not None and read.scaled == _row(topology, g, values):
                for server, weight in read.raw.items():
                    values[g, topology.server_index(server)] = weight
        return values


def _row(topology: Topology, g: int, values: NDArray[np.int64] | FloatArray) -> dict[str, int]:
    return {server: int(values[g, topology.server_index(server)]) for server in topology.groups[g].servers}
