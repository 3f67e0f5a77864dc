"""Plays the simulated twin of a system under one policy, second by second, as steering would."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.control import BalancingMethod, Control, ServiceTimes, Weights
from actuators.contract.window import DEFAULT_BOUNDS_MS, Window
from envs.calibration.result import Calibration
from envs.environment.problem import DecisionProblem
from envs.estimators.base import FIRST_GUESS_S
from envs.scenarios.calibrated import calibrated
from envs.simulator.testbed import SimulatedTestbed, SimulationOptions
from envs.study.rules import SteeringPolicy
from rayjobs.onboard.system import Way
from tuning.steering.options import GuardOptions

RELOAD_S = 0.11
"""Seconds until the weights of a reload are in force."""
BETWEEN_RELOADS_S = GuardOptions().min_between_reloads_s
"""Seconds for which steering leaves the weights of a reload in force."""


@dataclass(frozen=True, eq=False)
class Played:
    """What was seen, and the control at the end."""

    windows: tuple[Window, ...]
    control: Control

    def shares(self) -> FloatArray:
        """Share of each group's requests that each server got in the second half, ``[groups, servers]``."""
        half = self.windows[len(self.windows) // 2 :]
        requests = np.sum([window.requests for window in half], axis=0)
        shares: FloatArray = requests / np.maximum(requests.sum(axis=1, keepdims=True), 1)
        return shares


def simulation_of(load_balancers: int, way: Way) -> SimulationOptions:
    """How a steered NGINX differs from the recorded one, of which `load_balancers` share no state.

    Service times are in memory that all workers of an NGINX share, also where the recorded one shared none. A reload
    forgets the requests in flight, and takes its time (docs/nginx-facts.md#reload).
    """
    if not way.in_memory:
        return SimulationOptions(actuation="reload", actuation_delay_s=RELOAD_S)
    return SimulationOptions(workers_sharing_memory=max(load_balancers // way.machines, 1))


def play_policy(
    problem: DecisionProblem,
    policy: SteeringPolicy,
    calibration: Calibration,
    way: Way,
    *,
    seconds: int,
    seed: int,
    load: float = 1.0,
    bounds_ms: tuple[int, ...] = DEFAULT_BOUNDS_MS,
) -> Played:
    """A policy that observes every second, under the method that the way leads to; weights change as by reload."""
    topology, observer, method = problem.topology, problem.observer(), way.steered
    control: Control = Weights.equal(topology)
    if method == "expected_delay":
        control = ServiceTimes(topology, np.full(topology.shape, FIRST_GUESS_S), problem.believed_workers)
    windows: list[Window] = []
    changed_s = -np.inf
    with SimulatedTestbed(topology, method, bounds_ms, simulation_of(calibration.load_balancers, way)) as testbed:
        testbed.reset(replace(calibrated(calibration), duration_s=seconds + 1.0, load_factor=load), seed)
        for now_s in range(seconds):
            testbed.apply(control)
            windows.append(testbed.advance(1.0))
            if windows[-1].requests.sum():
                seen = observer.observe_window(windows[-1])
                if seen.tau_s is not None:
                    control = ServiceTimes(topology, policy.service_times(seen), problem.believed_workers)
                elif now_s - changed_s >= BETWEEN_RELOADS_S:
                    control, changed_s = Weights(topology, policy.weights(seen)), now_s
    return Played(tuple(windows), control)


def play_weights(
    weights: Weights, calibration: Calibration, method: BalancingMethod, *, seconds: int, seed: int
) -> Played:
    """The same weights for ever."""
    with SimulatedTestbed(weights.topology, method) as testbed:
        testbed.reset(replace(calibrated(calibration), duration_s=seconds + 1.0), seed)
        testbed.apply(weights)
        return Played(tuple(testbed.advance(1.0) for _ in range(seconds)), weights)
