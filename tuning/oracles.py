"""Reference policies that no one can have: they are told what the script does. For simulated testbeds only."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np

from actuators.control import BalancingMethod, Control, ServiceTimes, Weights
from actuators.errors import ConfigError
from actuators.script import Script
from actuators.topology import Topology
from actuators.window import Window
from envs.controller import FixedController
from envs.rules import true_tau_s
from envs.split import optimal_shares
from tuning.plan import Controller

Knowledge = Callable[[Topology, Script, float], Control]
"""The best control at a moment of a script, seconds since reset."""


class Oracle:
    """A control from the script's own values, anew before every interval; `tuning.block_run.Informed`."""

    def __init__(self, name: str, method: BalancingMethod, knowledge: Knowledge) -> None:
        self.name, self.method, self._knowledge = name, method, knowledge
        self._script: Script | None = None

    def inform(self, script: Script) -> None:
        """Takes the script of the next phase."""
        self._script = script

    def begin(self, topology: Topology) -> Control:
        if self._script is None:
            return Weights.equal(topology)
        return self._knowledge(topology, self._script, 0.0)

    def decide(self, window: Window) -> Control | None:
        if self._script is None:
            raise ConfigError("the oracle was not told the script", where=self.name)
        return self._knowledge(window.topology, self._script, window.end_s)


def oracle(name: str, shown: str | None = None) -> Controller:
    """An oracle of `ORACLES` by name, `shown` under another one."""
    found = ORACLES[name]
    if isinstance(found, str):
        return FixedController(shown or name, cast(BalancingMethod, found))
    method, knowledge = found
    return Oracle(shown or name, method, knowledge)


def _true_times(topology: Topology, script: Script, at_s: float) -> Control:
    workers = np.array([float(profile.workers) for profile in script.servers])
    return ServiceTimes(topology, true_tau_s(script, at_s), workers)


def _optimal_split(topology: Topology, script: Script, at_s: float) -> Control:
    return Weights.from_shares(topology, optimal_shares(script, at_s))


ORACLES: dict[str, str | tuple[BalancingMethod, Knowledge]] = {
    "shortest_delay": "shortest_delay",
    "join_shortest": "join_shortest",
    "central_queue": "central_queue",
    "true_times": ("expected_delay", _true_times),
    "optimal_round_robin": ("round_robin", _optimal_split),
    "optimal_least_conn": ("least_conn", _optimal_split),
}
"""Oracles by name: a method of the simulator, or a method and what is known."""
