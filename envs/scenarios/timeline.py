"""Load and speeds of a script at a given time, and the times of its changes. For figures and oracles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray
from actuators.contract.script import Script


def server_speeds(script: Script, at_s: float) -> NDArray[np.float64]:
    """Factor on each server's speed at a time, ``[servers]``; 0 while it refuses or hangs."""
    factors = np.ones(len(script.servers))
    for change in script.behaviours:
        if change.at_s > at_s:
            break
        factors[change.server] = 0.0 if change.refused or change.hang else change.speed
    return factors


def rates_rps(script: Script, at_s: float) -> NDArray[np.float64]:
    """Arrival rate of each stream at a time, ``[streams]``; of a closed loop what its users send without waiting."""
    open_rps = np.array([[s.rate_rps for s in stream.steps if s.start_s <= at_s][-1] for stream in script.streams])
    return open_rps + closed_loop_rps(script)[: len(open_rps)]


def closed_loop_rps(script: Script) -> FloatArray:
    """``[groups]``: requests per second of the users of closed loops, when every answer takes the mean service time."""
    if not script.clients:
        return np.zeros(len(script.mean_service_s))
    cycles = [habits.think_s + mean_s for habits, mean_s in zip(script.clients, script.mean_service_s, strict=True)]
    rates: FloatArray = np.array([habits.users for habits in script.clients]) / np.array(cycles)
    return rates


def load_ratio(script: Script, at_s: float) -> float:
    """Offered load at a time, relative to the capacity of all workers at their mean speed."""
    work = float(rates_rps(script, at_s) @ np.array(script.mean_service_s[: len(script.streams)]))
    speeds = np.array([profile.speeds for profile in script.servers])
    workers = np.array([profile.workers for profile in script.servers])
    return work / float(workers @ speeds.mean(axis=1))


def change_times(script: Script) -> list[float]:
    """Times at which load or a server changes, from 0 to the end, ascending."""
    moments = {0.0, script.duration_s}
    moments |= {step.start_s for stream in script.streams for step in stream.steps}
    moments |= {change.at_s for change in script.behaviours} | {change.at_s for change in script.stage_behaviours}
    return sorted(moment for moment in moments if moment <= script.duration_s)


def true_tau_s(script: Script, at_s: float) -> FloatArray:
    """Mean service times ``[groups, servers]`` in seconds at a time, disturbances included."""
    speeds = np.array([profile.speeds for profile in script.servers]).T
    present = np.ones(len(script.servers))
    for change in script.behaviours:
        if change.at_s > at_s:
            break
        present[change.server] = change.speed
    tau_s: FloatArray = np.array(script.mean_service_s)[:, None] / (speeds * present)
    return tau_s
