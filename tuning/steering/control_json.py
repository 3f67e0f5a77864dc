"""Controls as JSON and back: what the audit keeps, what a revert goes back to after a crash."""

from __future__ import annotations

from typing import Any

import numpy as np

from actuators.contract.admission import NEVER
from actuators.contract.control import Canary, Control, ServiceTimes, Weights
from actuators.contract.late_binding import LateBinding, LateBindingNumbers
from actuators.contract.request_cost import RequestCost
from actuators.contract.topology import Topology


def to_json(control: Control) -> dict[str, Any]:
    """`values` and `down`; or `tau_s` and `workers`, with `holding` where requests are held, and `down` where a server
    is out of rotation. Rows per group, columns per server. Exact.
    """
    if isinstance(control, ServiceTimes):
        holding = control.holding
        held = {} if holding is None else {"holding": _holding_to_json(holding)}
        out = {"down": control.down.tolist()} if control.down.any() else {}
        return {"tau_s": control.tau_s.tolist(), "workers": control.workers.tolist(), **held, **out}
    return {"values": control.values.tolist(), "down": control.down.tolist()}


def from_json(data: dict[str, Any], topology: Topology) -> Control:
    """The inverse. Raises KeyError, TypeError, ValueError or ConfigError for anything else."""
    if "tau_s" in data:
        holding = _holding_from_json(data["holding"], topology) if "holding" in data else None
        tau_s, workers = (np.array(data[name], dtype=float) for name in ("tau_s", "workers"))
        down = np.array(data.get("down", np.zeros(topology.shape)), dtype=bool)
        return ServiceTimes(topology, tau_s, workers, holding, down)
    return Weights(topology, np.array(data["values"]), np.array(data["down"], dtype=bool))


def _holding_to_json(holding: LateBinding) -> dict[str, Any]:
    importance = [float(each) if np.isfinite(each) else None for each in holding.importance]
    return {
        "slots": holding.slots.tolist(),
        "deadlines_s": holding.deadlines_s.tolist(),
        "numbers": holding.numbers.model_dump(mode="json", exclude={"slots_per_worker"}),
        **({"importance": importance} if importance != [1.0] * len(importance) else {}),
        **({"costs": costs} if (costs := holding.costs.in_force()) else {}),
    }


def _holding_from_json(data: dict[str, Any], topology: Topology) -> LateBinding:
    numbers = LateBindingNumbers.model_validate(data["numbers"])
    slots, deadlines_s = np.array(data["slots"], np.int64), np.array(data["deadlines_s"], dtype=float)
    given = data.get("importance", [1.0] * len(deadlines_s))
    importance = np.array([NEVER if each is None else each for each in given], dtype=float)
    return LateBinding(topology, deadlines_s, slots, numbers, importance, RequestCost.of_terms(data.get("costs", {})))


def canary_to_json(canary: Canary | None) -> dict[str, Any] | None:
    """`percent` and `base`; None for none."""
    return None if canary is None else {"percent": canary.percent, "base": to_json(canary.base)}


def canary_from_json(data: dict[str, Any] | None, topology: Topology) -> Canary | None:
    """The inverse, with its errors."""
    return None if data is None else Canary(float(data["percent"]), from_json(data["base"], topology))
