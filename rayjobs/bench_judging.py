"""Testbeds that put a judge on trial: one draws anew at every reset, one is slower by a known factor."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from actuators.script import Scenario, Script
from actuators.topology import Topology
from envs.simulation import SimulatedTestbed


class FreshDraws(SimulatedTestbed):
    """Arrivals and work are drawn anew at every reset, so that equal policies differ by chance, as live ones do."""

    resets = 0

    def reset(self, scenario: Scenario, seed: int) -> None:
        self.resets += 1
        super().reset(scenario, int(np.random.SeedSequence([seed, self.resets]).generate_state(1)[0]))


@dataclass(frozen=True)
class Slowed:
    """A scenario in which the same arrivals bring `factor` times the work."""

    scenario: Scenario
    factor: float

    @property
    def name(self) -> str:
        return self.scenario.name

    def script(self, topology: Topology, seed: int) -> Script:
        script = self.scenario.script(topology, seed)
        return replace(script, mean_service_s=tuple(self.factor * mean_s for mean_s in script.mean_service_s))


class SlowedTestbed(SimulatedTestbed):
    """Every request takes `factor` times as long: a planted slowdown."""

    factor = 1.05

    def reset(self, scenario: Scenario, seed: int) -> None:
        super().reset(Slowed(scenario, self.factor), seed)
