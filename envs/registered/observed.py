"""The decision problem of a registered environment: what an observation phase in simulation finds of its scenario."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from actuators.contract.control import BalancingMethod
from envs.environment.phase import ObserveOptions, fit_problem, watch
from envs.environment.problem import DecisionOptions, DecisionProblem
from envs.scenarios.calibrated import CalibratedScenario
from envs.scenarios.lookup import scenario, topology_of
from envs.simulator.testbed import SimulatedTestbed
from envs.study.judge import deadlines_s

OBSERVED = ObserveOptions(duration_s=120.0, explore_s=60.0, window_s=1.0)
"""As `deepsched train` observes."""


def problem_of(name: str, method: BalancingMethod, decision: DecisionOptions, seed: int) -> DecisionProblem:
    """The problem of a scenario, by its name or file, on its own system.

    Deadlines are those of ordinary times, or the recorded ones of a calibration; the mixture describes the scenario
    itself. The same arguments give the same problem; a process finds it once.

    Args:
        seed: of the observation phase.
    """
    path = Path(name.rpartition(":")[2])
    changed = path.stat().st_mtime_ns if path.suffix and path.exists() else 0
    found = _observed(name, method, seed, changed)
    return replace(found, options=decision)


@lru_cache(maxsize=32)
def _observed(name: str, method: BalancingMethod, seed: int, changed: int) -> DecisionProblem:
    """`changed`: when the file was changed."""
    watched = scenario(name, duration_s=OBSERVED.skip_s + OBSERVED.duration_s + OBSERVED.explore_s + 1.0)
    topology = topology_of([watched])
    known_s = watched.twin_of.deadlines_s if isinstance(watched, CalibratedScenario) else deadlines_s(watched, topology)
    with SimulatedTestbed(topology) as testbed:
        windows = watch(testbed, watched, method, OBSERVED, seed)
    found = fit_problem(windows, topology, DecisionOptions(), OBSERVED.encoder, seed, known_s).problem
    workers = [float(profile.workers) for profile in watched.script(topology, seed).servers]
    return replace(found, workers=np.array(workers))
