"""Scripts of training episodes, and the seeds reserved for other purposes."""

from __future__ import annotations

import numpy as np

from actuators.contract.script import Scenario, Script
from actuators.contract.topology import Topology

HELD_OUT_SEED, PROOF_SEED, VALIDATION_SEED = 2**31, 2**31 + 2**29, 2**31 + 2**30
"""First seeds of early stopping, of the proof of a residual and of a sweep's validation. Training draws seeds below
all of them and therefore never uses their scripts."""


class ScriptSource:
    """Draws the script of a training episode from a scenario; picklable, for RLlib's configuration."""

    def __init__(self, scenario: Scenario, topology: Topology) -> None:
        self.scenario, self._topology = scenario, topology

    def __call__(self, generator: np.random.Generator) -> Script:
        return self.scenario.script(self._topology, int(generator.integers(HELD_OUT_SEED)))
