"""Registered environments in which an action sets weights or service times; arguments are those of `gymnasium.make`.

The `*_vector` functions make the native vector environments for `gymnasium.make_vec`. docs/environments.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypedDict, Unpack, get_args

import numpy as np
from gymnasium.vector import AutoresetMode

from actuators.contract.control import DirectMethod
from actuators.contract.script import Scenario, Script
from actuators.contract.topology import Topology
from actuators.errors import ConfigError, closest
from envs.environment.actions import check_method
from envs.environment.env import BalancingEnv
from envs.environment.picture import RenderMode
from envs.environment.problem import DecisionOptions, DecisionProblem
from envs.environment.vector_env import SimulatedVectorEnv
from envs.registered.observed import problem_of
from envs.scenarios.calibrated import CalibratedScenario
from envs.scenarios.catalogue import Mixture, randomised
from envs.scenarios.lookup import scenario as scenario_named
from envs.scenarios.lookup import training_mixture
from envs.simulator.testbed import SimulatedTestbed, SimulationOptions

OBSERVED_SOCIAL = "S3"
"""What the problem of the social network is observed on."""
DEFAULT_DECISION: Mapping[str, Any] = {"action": {"kind": "continuous"}}
"""Weights of their own, so that an action of zeros is equal weights."""
FIRST_HELD_OUT_SEED = 2**31
"""Episode seeds are drawn below it."""


class Common(TypedDict, total=False):
    """What all of these take.

    Attributes:
        method: balancing method under the weights.
        decision: fields of `envs.environment.problem.DecisionOptions`: observation, frames, reward, action.
        interval_s: simulated seconds per step.
        episode_steps: steps per episode.
        flat: one row of features; False for ``[servers, features]``.
        seed: of the episodes until `reset` is given one; random when None.
        observe_seed: of the observation phase, which fixes what an observation means.
        render_mode: `ansi` or `rgb_array`.
    """

    method: DirectMethod
    decision: Mapping[str, Any] | None
    interval_s: float
    episode_steps: int
    flat: bool
    seed: int | None
    observe_seed: int
    render_mode: RenderMode | None


class CommonVector(Common, total=False):
    """What the vector environments take besides.

    Attributes:
        autoreset_mode: `NextStep` or `SameStep`.
        threads: threads that simulate; the results do not depend on it.
    """

    autoreset_mode: AutoresetMode | str
    threads: int


def social_env(**common: Unpack[Common]) -> BalancingEnv:
    """The demo's social network: every episode a randomised one of S1 to S10."""
    return _single(_social(_Parts(**common)))


def social_vector(num_envs: int = 1, **common: Unpack[CommonVector]) -> SimulatedVectorEnv:
    """`social_env`, many at once."""
    return _vector(num_envs, _social(_Parts(**common)))


def scenario_env(scenario: str = "S3", randomise: bool = False, **common: Unpack[Common]) -> BalancingEnv:
    """One scenario by name or file; with `randomise` its training variant: load, speeds, their order, periods."""
    return _single(_named(scenario, randomise, _Parts(**common)))


def scenario_vector(
    num_envs: int = 1, scenario: str = "S3", randomise: bool = False, **common: Unpack[CommonVector]
) -> SimulatedVectorEnv:
    """`scenario_env`, many at once."""
    return _vector(num_envs, _named(scenario, randomise, _Parts(**common)))


def calibrated_env(calibration: str = "", randomise: bool = True, **common: Unpack[Common]) -> BalancingEnv:
    """The simulated twin of a recorded system, from its `calibration.json`; by default within its uncertainty."""
    return _single(_named(_calibration(calibration), randomise, _Parts(**common)))


def calibrated_vector(
    num_envs: int = 1, calibration: str = "", randomise: bool = True, **common: Unpack[CommonVector]
) -> SimulatedVectorEnv:
    """`calibrated_env`, many at once."""
    return _vector(num_envs, _named(_calibration(calibration), randomise, _Parts(**common)))


@dataclass(frozen=True)
class _Parts:
    """`CommonVector`, and what the id says."""

    method: DirectMethod = "least_conn"
    decision: Mapping[str, Any] | None = None
    interval_s: float = 1.0
    episode_steps: int = 100
    flat: bool = True
    seed: int | None = None
    observe_seed: int = 1
    render_mode: RenderMode | None = None
    autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP
    threads: int = 1
    sharing: int = 2
    problem: DecisionProblem | None = None
    played: Scenario | None = None

    @property
    def script_s(self) -> float:
        """Length of an episode's script: the first interval and those of the steps, and a little more."""
        return (self.episode_steps + 2) * self.interval_s

    @property
    def simulation(self) -> SimulationOptions:
        """Under `expected_delay` the workers of an NGINX share what it counts."""
        return SimulationOptions(workers_sharing_memory=self.sharing if self.method == "expected_delay" else 1)

    def observed_on(self, name: str) -> DecisionProblem:
        """The problem of this scenario under these options."""
        if self.interval_s <= 0 or self.episode_steps < 1:
            what = f"interval_s {self.interval_s}, episode_steps {self.episode_steps}"
            raise ConfigError(what, where="environment", remedy="both must be positive")
        if self.method not in get_args(DirectMethod):
            remedy = closest(self.method, get_args(DirectMethod))
            raise ConfigError(f"no method '{self.method}' here", where="environment", remedy=remedy)
        decision = DecisionOptions.model_validate(dict(DEFAULT_DECISION if self.decision is None else self.decision))
        check_method(self.method, decision.action)
        return problem_of(name, self.method, decision, self.observe_seed)


@dataclass(frozen=True)
class _Draw:
    """Draws the script of an episode."""

    played: Scenario
    topology: Topology

    def __call__(self, generator: np.random.Generator) -> Script:
        return self.played.script(self.topology, int(generator.integers(FIRST_HELD_OUT_SEED)))


def _social(parts: _Parts) -> _Parts:
    return replace(
        parts, problem=parts.observed_on(OBSERVED_SOCIAL), played=training_mixture(duration_s=parts.script_s)
    )


def _named(name: str, randomise: bool, parts: _Parts) -> _Parts:
    base = scenario_named(name, duration_s=parts.script_s)
    played: Scenario = Mixture((randomised(base, parts.script_s),)) if randomise else base
    if isinstance(base, CalibratedScenario):
        parts = replace(parts, sharing=base.twin_of.load_balancers)
    return replace(parts, problem=parts.observed_on(name), played=played)


def _calibration(path: str) -> str:
    if not path.endswith(".json"):
        remedy = "give the calibration.json that `deepsched calibrate` wrote"
        raise ConfigError(f"'{path}' is not a calibration.json", where="calibration", remedy=remedy)
    return path


def _single(parts: _Parts) -> BalancingEnv:
    if AutoresetMode(parts.autoreset_mode) is not AutoresetMode.NEXT_STEP or parts.threads != 1:
        remedy = "leave vectorization_mode out of make_vec, or give it vector_kwargs={'autoreset_mode': …}"
        raise ConfigError("autoreset_mode and threads are of make_vec", where="environment", remedy=remedy)
    problem, played = parts.problem, parts.played
    assert problem is not None
    assert played is not None
    return BalancingEnv(
        problem, lambda: SimulatedTestbed(problem.topology, parts.method, options=parts.simulation),
        lambda seed: played, method=parts.method, interval_s=parts.interval_s, episode_steps=parts.episode_steps,
        flat=parts.flat, seed=parts.seed, render_mode=parts.render_mode,
    )  # fmt: skip


def _vector(num_envs: int, parts: _Parts) -> SimulatedVectorEnv:
    assert parts.problem is not None
    assert parts.played is not None
    return SimulatedVectorEnv(
        parts.problem, num_envs, _Draw(parts.played, parts.problem.topology), method=parts.method,
        interval_s=parts.interval_s, episode_steps=parts.episode_steps, seed=parts.seed, threads=parts.threads,
        flat=parts.flat, explains=True, autoreset_mode=AutoresetMode(parts.autoreset_mode),
        render_mode=parts.render_mode, simulation=parts.simulation,
    )  # fmt: skip
