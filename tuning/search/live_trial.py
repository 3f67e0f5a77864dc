"""The live testbeds of one trial of a sweep: its own from its start to its end, in its own placement group."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.tune import PlacementGroupFactory

from actuators.contract.control import BalancingMethod
from actuators.contract.script import Scenario
from actuators.contract.testbed import Testbed
from actuators.contract.topology import Topology
from actuators.errors import TestbedError
from actuators.testbed.parts import LiveOptions
from actuators.testbed.placement import testbed_bundles
from envs.environment.problem import DecisionProblem
from envs.environment.rewards import reward_terms
from tuning.learning.scoring import Validation
from tuning.live.conductor import ConductedTestbed
from tuning.live.testbeds import LiveRecipe, Testbeds

REFERENCE: BalancingMethod = "least_conn"


@dataclass(frozen=True)
class LiveShare:
    """What the live testbeds of all trials have in common.

    Attributes:
        work_dir: gets a folder per trial, on every node.
        scenario: every episode plays it, with equal seeds in all trials.
        testbeds: of each trial.
        reference_s: real seconds for which least_conn is watched first on each of them.
    """

    options: LiveOptions
    work_dir: Path
    scenario: Scenario
    testbeds: int
    reference_s: float


def trial_resources(cpus: float, testbeds: int, servers: int) -> PlacementGroupFactory:
    """A trial's own process in the first bundle, then the bundles of its testbeds."""
    return PlacementGroupFactory([{"CPU": cpus}, *(testbed_bundles(servers) * testbeds)])


class LiveTrial:
    """Testbeds of the trial that calls, which must have been placed with `trial_resources`.

    Raises TestbedError when they do not come up.
    """

    def __init__(self, share: LiveShare, trial: str, topology: Topology, method: BalancingMethod, seed: int) -> None:
        group = ray.util.get_current_placement_group()
        assert group is not None, "Tune places every trial"
        self._share, self._method, self._seed, self._reference = share, method, seed, 0.0
        size = len(testbed_bundles(len(topology.servers)))
        names = [f"{trial}-{number + 1}" for number in range(share.testbeds)]
        makers: dict[str, Callable[[int], Testbed]] = {
            name: LiveRecipe(topology, share.options, share.work_dir / name, seed + n, group, 1 + n * size)
            for n, name in enumerate(names)
        }
        self.testbeds = Testbeds(makers, method, {name: (group, 1 + n * size) for n, name in enumerate(names)})

    def environment(self, problem: DecisionProblem, interval_s: float, episode_steps: int) -> dict[str, Any]:
        """Settings for `tuning.live.vector_env.make_environment`, but for the seed."""
        return {
            "problem": problem,
            "leaser": self.testbeds.leaser,
            "scenario": self._share.scenario,
            "interval_s": interval_s,
            "episode_steps": episode_steps,
        }

    def watch_reference(self, problem: DecisionProblem, interval_s: float) -> None:
        """Plays the scenario under least_conn first: what `validation` compares with. Raises TestbedError."""
        terms: list[dict[str, float]] = []
        for name, conductor in self.testbeds.conductors.items():
            with ConductedTestbed(conductor, name) as testbed:
                testbed.set_method(REFERENCE)
                testbed.reset(self._share.scenario, self._seed)
                for _ in range(max(round(self._share.reference_s / interval_s), 1)):
                    window = testbed.advance(interval_s)
                    if window.usable:
                        found = reward_terms(window, problem.deadlines_s)
                        terms.append({term: float(value) for term, value in found.items()})
                testbed.drain()
                testbed.set_method(self._method)
        if not terms:
            raise TestbedError("no window of least_conn was usable", remedy="see the load engine's log, lower the load")
        self._reference = _log_latency(float(np.mean([each["relative_latency"] for each in terms])))

    def validation(self, terms: Mapping[str, float]) -> Validation:
        """Of the intervals of an iteration, exploration included.

        Args:
            terms: means of reward terms, see `tuning.learning.curve`.

        Raises:
            TestbedError: none of them was usable.
        """
        if "relative_latency" not in terms:
            raise TestbedError("no window of a whole iteration was usable", remedy="lower the load, or use more nodes")
        score = _log_latency(terms["relative_latency"]) - self._reference
        return Validation(score, float(terms["art"]), float(terms["error_ratio"]))

    def close(self) -> None:
        """Ends the testbeds; the placement group stays with the trial."""
        self.testbeds.close()


def _log_latency(relative: float) -> float:
    """As `Validation.score` has it, but of the mean and not the mean of it."""
    return -math.log(relative + 0.01)
