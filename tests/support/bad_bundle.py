"""A real bundle that does harm: its network sends nearly everything to the slowest server of each group."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from envs.environment.problem import DecisionProblem
from envs.observation.observer import Observation
from tests.support.problems import observed
from tuning.options import ModelOptions
from tuning.policy.bundle import Bundle
from tuning.policy.model import EquivariantNet

HIDDEN = 16


def bad_bundle() -> Bundle:
    """Weights set by hand: the action of a server is the opposite of what its baseline share asks for."""
    old = observed().problem
    action = old.options.action.model_copy(update={"bound": 6.0, "floor": 1})
    problem = replace(old, options=old.options.model_copy(update={"action": action}))
    net = EquivariantNet(problem.row_size, problem.topology.shape[0], ModelOptions(hidden=HIDDEN))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        layers = [layer for part in (net.encoder, net.action) for layer in part if isinstance(layer, torch.nn.Linear)]
        for group, column in enumerate(_share_columns(problem)):
            layers[0].weight[group, column] = 3.0
            for layer, gain in zip(layers[1:], (3.0, 3.0, -2.0), strict=True):
                layer.weight[group, group] = gain
    return Bundle(net, problem, ModelOptions(hidden=HIDDEN), {"seed": 0, "command": "made by hand to do harm"})


def _share_columns(problem: DecisionProblem) -> list[int]:
    """Column of each group's baseline share in a server's row: the one that moves with that server's latency."""
    observer = problem.observer()
    seen = observer.observe_window(next(window for window in observed().windows.equal if window.usable))
    before = problem.array(seen)
    columns = []
    for group in range(problem.topology.shape[0]):
        changed = problem.array(_slower(seen, group))
        columns.append(int(np.argmax(np.abs(changed - before)[0])))
    return columns


def _slower(seen: Observation, group: int) -> Observation:
    latency_s = seen.latency_s.copy()
    latency_s[group, 0] *= 3
    return replace(seen, latency_s=latency_s)
