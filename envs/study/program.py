"""A balancing rule as one plain Python function, read from a file: what program search writes and changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.control import MAX_WEIGHT
from actuators.contract.script import Script
from actuators.errors import DataError
from envs.simulator.batch import SimulatedBatch
from envs.simulator.window_batch import WindowBatch
from envs.study.rules import PLAIN, BatchController, Rule

Weights = Callable[[dict[str, Any], dict[str, Any]], Any]
"""`weights(seen, memory)`, as docs/examples/initial_rule.py describes it."""


def program_rule(path: Path) -> Rule:
    """The rule of the function `weights` in a file, on least_conn with weights. Runs the file.

    Raises DataError when there is none; what the file itself raises passes through.
    """
    function = run_path(str(path)).get("weights")
    if not callable(function):
        remedy = "define `weights(seen, memory)`, as docs/examples/initial_rule.py does"
        raise DataError("no function `weights`", where=str(path), remedy=remedy)
    return Rule(path.stem, "least_conn", lambda: _steered(function, path), PLAIN)


def _steered(function: Weights, path: Path) -> BatchController:
    memory: dict[str, Any] = {}

    def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
        if window is None:
            return
        with np.errstate(invalid="ignore", divide="ignore"):
            mean_s = window.response_ms_sum / 1e3 / np.where(window.requests > 0, window.requests, np.nan)
        seen: dict[str, Any] = {
            "requests": window.requests, "errors": window.responses[..., 4], "response_s": mean_s,
            "in_flight": window.active,
        }  # fmt: skip
        shares = _checked(function(seen, memory), window.requests.shape, path)
        relative = MAX_WEIGHT * shares / shares.max(axis=-1, keepdims=True)
        batch.set_weights(np.rint(np.clip(relative, 1, MAX_WEIGHT)).astype(np.int64))

    return steer


def _checked(returned: object, shape: tuple[int, ...], path: Path) -> FloatArray:
    """What the function has returned. Raises DataError for anything but positive numbers of that shape."""
    try:
        shares: FloatArray = np.asarray(returned, dtype=np.float64)
    except (TypeError, ValueError):
        shares = np.zeros(())
    if shares.shape != shape or not (np.isfinite(shares) & (shares > 0)).all():
        remedy = f"return positive numbers [n, groups, servers], here {list(shape)}"
        raise DataError("`weights` has returned something else", where=str(path), remedy=remedy)
    return shares
