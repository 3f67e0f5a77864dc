"""A small fitted decision problem and a scenario for tests; built from simulated windows, as a run does it."""

from __future__ import annotations

from functools import cache

from actuators.contract.topology import social_network
from envs.environment.phase import Observed, ObserveOptions, fit_problem, watch
from envs.environment.problem import DecisionOptions, DecisionProblem
from envs.observation.encoder import EncoderOptions
from envs.scenarios.catalogue import StudyScenario
from envs.scenarios.lookup import scenario
from envs.simulator.testbed import SimulatedTestbed

TOPOLOGY = social_network()


def demo_scenario() -> StudyScenario:
    return scenario("demo", duration_s=200.0)


@cache
def observed() -> Observed:
    """What 25 simulated seconds of the demo scenario give."""
    with SimulatedTestbed(TOPOLOGY) as testbed:
        windows = watch(testbed, demo_scenario(), "least_conn", ObserveOptions(), 1)
    return fit_problem(windows, TOPOLOGY, DecisionOptions(), EncoderOptions(clusters=(2, 3), restarts=1), 1)


def problem() -> DecisionProblem:
    return observed().problem
