"""A real bundle that was trained to do harm: it sends nearly everything to the slowest server of each group."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch
from problems import observed

from envs.actions import ActionOptions
from tuning.bundle import Bundle
from tuning.model import EquivariantNet
from tuning.options import ModelOptions


@cache
def bad_bundle() -> Bundle:
    """Supervised: +1 for the slowest server of a group, -1 for the others, on simulated windows."""
    torch.manual_seed(0)
    old = observed().problem
    action = old.options.action.model_copy(update={"bound": 6.0, "floor": 1})
    assert isinstance(action, ActionOptions)
    problem = replace(old, options=old.options.model_copy(update={"action": action}))
    observer = problem.observer()
    rows, wanted = [], []
    for window in (*observed().windows.equal, *observed().windows.exploring):
        if not window.usable:
            continue
        seen = observer.observe_window(window)
        slowest = seen.latency_s == np.nanmax(seen.latency_s, axis=1, keepdims=True)
        rows.append(torch.from_numpy(problem.array(seen)))
        wanted.append(torch.from_numpy(np.where(slowest, 1.0, -1.0).astype(np.float32).ravel()))
    net = EquivariantNet(problem.row_size, problem.topology.shape[0], ModelOptions(hidden=32))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        loss = ((net(torch.stack(rows))[0] - torch.stack(wanted)) ** 2).mean()
        loss.backward()
        optimizer.step()
    return Bundle(net, problem, ModelOptions(hidden=32), {"seed": 0, "command": "trained to do harm"})
