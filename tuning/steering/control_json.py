"""Controls as JSON and back: what the audit keeps, what a revert goes back to after a crash."""

from __future__ import annotations

from typing import Any

import numpy as np

from actuators.contract.control import Canary, Control, ServiceTimes, Weights
from actuators.contract.topology import Topology


def to_json(control: Control) -> dict[str, Any]:
    """`values` and `down`, or `tau_s` and `workers`; rows per group, columns per server. Exact."""
    if isinstance(control, ServiceTimes):
        return {"tau_s": control.tau_s.tolist(), "workers": control.workers.tolist()}
    return {"values": control.values.tolist(), "down": control.down.tolist()}


def from_json(data: dict[str, Any], topology: Topology) -> Control:
    """The inverse. Raises KeyError, TypeError, ValueError or ConfigError for anything else."""
    if "tau_s" in data:
        return ServiceTimes(topology, np.array(data["tau_s"], dtype=float), np.array(data["workers"], dtype=float))
    return Weights(topology, np.array(data["values"]), np.array(data["down"], dtype=bool))


def canary_to_json(canary: Canary | None) -> dict[str, Any] | None:
    """`percent` and `base`; None for none."""
    return None if canary is None else {"percent": canary.percent, "base": to_json(canary.base)}


def canary_from_json(data: dict[str, Any] | None, topology: Topology) -> Canary | None:
    """The inverse, with its errors."""
    return None if data is None else Canary(float(data["percent"]), from_json(data["base"], topology))
