"""The live testbeds of one trial of a sweep; the trial holds them, in its placement group, from start to end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.tune import PlacementGroupFactory

from actuators.contract.control import BalancingMethod
from actuators.contract.script import Scenario
from actuators.contract.testbed import Testbed
from actuators.contract.topology import Topology
from actuators.errors import TestbedError
from actuators.testbed.options import LiveOptions
from actuators.testbed.placement import testbed_bundles
from envs.environment.problem import DecisionProblem
from envs.environment.rewards import reward_terms
from tuning.live.conductor import ConductedTestbed
from tuning.live.testbeds import LiveRecipe, Testbeds

if TYPE_CHECKING:
    from tuning.learning.scoring import Validation

REFERENCE: BalancingMethod = "least_conn"


@dataclass(frozen=True)
class LiveShare:
    """Settings that the live testbeds of all trials share.

    Attributes:
        work_dir: parent of a folder per testbed, on every node.
        scenario: played in every episode, with the same seeds in all trials.
        testbeds: number of testbeds per trial.
        reference_s: real seconds of the run under least_conn on each testbed before training.
    """

    options: LiveOptions
    work_dir: Path
    scenario: Scenario
    testbeds: int
    reference_s: float


def trial_resources(cpus: float, testbeds: int, servers: int) -> PlacementGroupFactory:
    """Placement group of a trial: the trial's process in the first bundle, then the bundles of its testbeds."""
    return PlacementGroupFactory([{"CPU": cpus}, *(testbed_bundles(servers) * testbeds)])


class LiveTrial:
    """Testbeds of the calling trial, whose placement group must come from `trial_resources`."""

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
        """Configuration for `tuning.live.vector_env.make_environment`, without the seed."""
        return {
            "problem": problem,
            "leaser": self.testbeds.leaser,
            "scenario": self._share.scenario,
            "interval_s": interval_s,
            "episode_steps": episode_steps,
        }

    def watch_reference(self, problem: DecisionProblem, interval_s: float) -> None:
        """Plays the scenario under least_conn, the reference of `validation`.

        Raises:
            TestbedError: a testbed did not start, or no window was usable.
        """
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
        """Scores the training intervals of an iteration, exploration included.

        Args:
            terms: means of the reward terms (`tuning.learning.curve`).

        Raises:
            TestbedError: no interval was usable.
        """
        from tuning.learning.scoring import Validation  # noqa: PLC0415 - with torch

        if "relative_latency" not in terms:
            raise TestbedError("no window of an iteration was usable", remedy="lower the load or use more nodes")
        score = _log_latency(terms["relative_latency"]) - self._reference
        return Validation(score, float(terms["art"]), float(terms["error_ratio"]))

    def close(self) -> None:
        """Ends the testbeds; the placement group stays with the trial."""
        self.testbeds.close()


def _log_latency(relative: float) -> float:
    """The term of `Validation.score`, but of the mean relative latency: only means are known here."""
    return -math.log(relative + 0.01)
