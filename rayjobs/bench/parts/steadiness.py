"""How often steering switches between policy and baseline: simulated half hours of a system with a daily wave.

The system is one of `own_systems`; its bundle is fitted to the system itself, as onboarding does it,
watched under today's weights and steered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.control import Control, Weights
from actuators.contract.script import Behaviour, RateStep, Script
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from envs.environment.problem import DecisionOptions, DecisionProblem
from envs.mixture.fit import fit_from_windows
from envs.observation.deadlines import derive_deadlines
from envs.observation.encoder import EncoderOptions
from envs.simulator.testbed import SimulatedTestbed
from rayjobs.bench.parts.own_systems import OwnSystem
from tuning.options import ModelOptions
from tuning.policy.adviser import Adviser, Recent, advisable
from tuning.policy.bundle import Bundle, load_bundle
from tuning.policy.model import net_for
from tuning.steering.decide import Decision, Steering
from tuning.steering.options import SteeringOptions

WATCHED_S, STEERED_S = 600, 300
"""Seconds under today's weights, a whole wave, and under the heuristic, that the bundle is fitted to."""
SECONDS, CHANGE_S = 1800, 600.0
WAVE_S = float(SECONDS)
WAVE = (0.6, 1.1)
"""A day, shortened: the rate falls to this factor of what was watched, and rises to that."""


@dataclass(frozen=True, eq=False)
class Waving:
    """A system whose rates follow a wave, and of which one server becomes slower at some time.

    Attributes:
        slower_at_s: when the first server begins to take twice as long; never when None.
    """

    system: OwnSystem
    slower_at_s: float | None = None
    wave_s: float = WAVE_S

    @property
    def name(self) -> str:
        return f"{self.system.name}-wave"

    def script(self, topology: Topology, seed: int) -> Script:
        script = self.system.script(topology, seed)
        streams = tuple(replace(each, steps=tuple(map(self._waving, each.steps))) for each in script.streams)
        slow = () if self.slower_at_s is None else (Behaviour(self.slower_at_s, 0, speed=0.5),)
        return replace(script, streams=streams, behaviours=slow)

    def _waving(self, step: RateStep) -> RateStep:
        low, high = WAVE
        factor = low + (high - low) * (0.5 - 0.5 * float(np.cos(2 * np.pi * step.start_s / self.wave_s)))
        return replace(step, rate_rps=step.rate_rps * factor)


def fitted(system: OwnSystem, seed: int, folder: Path) -> Adviser:
    """The heuristic's bundle of a system, fitted to the system itself under both controls; saved in the folder."""
    with SimulatedTestbed(system.topology, system.method) as testbed:
        testbed.reset(Waving(system, wave_s=WATCHED_S), seed)
        watched = [testbed.advance(1.0) for _ in range(WATCHED_S)]
        deadlines_s = derive_deadlines(watched, system.topology).seconds
        first = _adviser(system.topology, deadlines_s, watched, seed, folder / "first")
        recent, steered = Recent(first.frames), list[Window]()
        testbed.reset(Waving(system, wave_s=STEERED_S), seed + 1)
        for window in watched[-first.frames :]:
            advice = recent.ask(first, window)
        for _ in range(STEERED_S):
            assert advice.policy is not None
            testbed.apply(advice.policy)
            steered.append(testbed.advance(1.0))
            advice = recent.ask(first, steered[-1])
    return _adviser(system.topology, deadlines_s, [*watched, *steered], seed, folder / "bundle")


def _adviser(
    topology: Topology, deadlines_s: FloatArray, windows: Sequence[Window], seed: int, folder: Path
) -> Adviser:
    mixture = fit_from_windows(windows, topology, deadlines_s, EncoderOptions(), seed)
    problem = DecisionProblem(topology, deadlines_s, mixture, DecisionOptions())
    Bundle(net_for(problem, ModelOptions()), problem, ModelOptions(), {"seed": seed}).save(folder)
    return Adviser(load_bundle(folder))


def steer(adviser: Adviser, scenario: Waving, seed: int, seconds: int, options: SteeringOptions) -> Iterator[Decision]:
    """A decision a second, each in force at once."""
    topology = scenario.system.topology
    first = Weights.equal(topology)
    deadlines_s, recent = adviser.bundle.problem.deadlines_s, Recent(adviser.frames)
    steering = Steering(deadlines_s, first, options, 0.0, splits=scenario.system.in_memory)
    in_force: Control = first
    with SimulatedTestbed(topology, scenario.system.method) as testbed:
        testbed.reset(scenario, seed)
        for second in range(seconds):
            window = replace(testbed.advance(1.0), weight=in_force.as_weights().values)
            advice = recent.ask(adviser, window) if advisable(window) else None
            decision = steering.decide(window, advice, second + 1.0)
            if decision.change:
                testbed.apply(decision.control)
                steering.applied(decision, second + 1.0)
                in_force = decision.control
            yield decision


def switches(decisions: Sequence[tuple[str, str]]) -> list[tuple[int, str]]:
    """Index and reason of every change between policy and baseline, after the policy acted first; holds count as
    what was before.

    Args:
        decisions: source and reason of each.
    """
    found, last = list[tuple[int, str]](), ""
    for index, (source, reason) in enumerate(decisions):
        if source == "hold" or (not last and source == "baseline"):
            continue
        if last and source != last:
            found.append((index, reason))
        last = source
    return found
