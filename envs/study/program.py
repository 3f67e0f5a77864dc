"""A balancing rule as one plain Python function, read from a file: what program search writes and changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np

from actuators.contract.arrays import FloatArray, IntArray
from actuators.contract.control import MAX_WEIGHT
from actuators.contract.script import Script
from actuators.errors import DataError
from envs.environment.study_setup import PLAIN
from envs.simulator.batch import SimulatedBatch
from envs.simulator.window_batch import WindowBatch
from envs.study.rules import BatchController, Rule

Weights = Callable[[dict[str, Any], dict[str, Any]], Any]
"""`weights(seen, memory)`, as docs/examples/initial_rule.py describes it."""


def program_rule(path: Path) -> Rule:
    """The rule of the function `weights` in a file, on least_conn with weights.

    Runs the file once now, and once more for every system that is played: systems share neither their memory nor the
    file's global variables, so what the rule does in one does not depend on the others.

    Raises DataError when there is no such function; what the file itself raises passes through.
    """
    _function(path)
    return Rule(path.stem, "least_conn", lambda: _steered(path), PLAIN)


def _function(path: Path) -> Weights:
    function = run_path(str(path)).get("weights")
    if not callable(function):
        remedy = "define `weights(seen, memory)`, as docs/examples/initial_rule.py does"
        raise DataError("no function `weights`", where=str(path), remedy=remedy)
    weights: Weights = function
    return weights


def _steered(path: Path) -> BatchController:
    systems: list[tuple[Weights, dict[str, Any]]] = []

    def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
        if window is None:
            systems[:] = [(_function(path), {}) for _ in scripts]
            return
        each = [
            _integers(function(_seen(window, index), memory), batch.topology.shape, path)
            for index, (function, memory) in enumerate(systems)
        ]
        batch.set_weights(np.stack(each))

    return steer


def _seen(window: WindowBatch, index: int) -> dict[str, FloatArray | IntArray]:
    """What NGINX counted in one system; copies, because a view leads to the arrays of all systems."""
    requests = window.requests[index].copy()
    response_s = window.response_ms_sum[index] / 1e3 / np.where(requests > 0, requests, np.nan)
    errors, in_flight = window.responses[index, ..., 4].copy(), window.active[index].copy()
    return {"requests": requests, "errors": errors, "response_s": response_s, "in_flight": in_flight}


def _integers(returned: object, shape: tuple[int, ...], path: Path) -> IntArray:
    """``[groups, servers]``: the weights in what the function has returned, the largest of a group at its limit."""
    shares = _checked(returned, shape, path)
    relative = MAX_WEIGHT * shares / shares.max(axis=-1, keepdims=True)
    weights: IntArray = np.rint(np.clip(relative, 1, MAX_WEIGHT)).astype(np.int64)
    return weights


def _checked(returned: object, shape: tuple[int, ...], path: Path) -> FloatArray:
    """What the function has returned. Raises DataError for anything but positive numbers of that shape."""
    try:
        shares: FloatArray = np.asarray(returned, dtype=np.float64)
    except (TypeError, ValueError):
        shares = np.zeros(())
    if shares.shape != shape or not (np.isfinite(shares) & (shares > 0)).all():
        remedy = f"return positive numbers [groups, servers], here {list(shape)}"
        raise DataError("`weights` has returned something else", where=str(path), remedy=remedy)
    return shares
