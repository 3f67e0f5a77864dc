"""The proof of a residual: it must improve on its baseline overall and must not be worse on any scenario.

It is played on episodes that neither training nor early stopping used. A residual without proof is tried with
smaller actions and, without proof for these, set to 0 (`prove_some`; docs/studies.md#a-residual-on-expected-delay).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit
from torch import nn

from actuators.contract.arrays import FloatArray
from actuators.contract.script import Scenario, Script
from actuators.errors import ConfigError
from envs.environment.problem import DecisionProblem
from envs.environment.rollout import rollout
from envs.scenarios.catalogue import Mixture, StudyScenario
from envs.simulator.testbed import SimulationOptions
from envs.study.judge import WARM_UP_S
from tuning.learning.scripts import PROOF_SEED
from tuning.options import TrainingOptions
from tuning.policy.learned import LearnedPolicy
from tuning.policy.model import EquivariantNet

MOST_HARM = 0.002
"""Share by which J (docs/glossary.md#j) may be worse on any scenario, at the upper end of its confidence interval.

Less than the promised 0.5 %, because a proof plays fewer episodes than a deployed policy will see.
"""
LENGTH = 2.0
"""Length of a proof's episodes relative to those of training: a residual that helps while service times are being
learned may do harm afterwards. As in an evaluation, the first 10 s do not count."""
REACHES = (1.0, 0.5, 0.25)
"""Factors on a residual's actions, tried in this order: a smaller action may keep gain and avoid harm."""
LEAST_EPISODES = 2
"""Episodes of every scenario: one alone has no variance, and without it there is no confidence interval."""
_CONFIDENCE = 0.95
_EPISODES_AT_ONCE = 48


@dataclass(frozen=True)
class Gain:
    """Mean of log(J of the baseline / J), and the lower end of its one-sided 95 % confidence interval."""

    mean: float
    low: float
    episodes: int


@dataclass(frozen=True)
class ResidualProof:
    """Result of a proof.

    Attributes:
        overall: gain over all scenarios, with equal weight.
        scenarios: scenario → gain.
        reach: factor on the trained actions that was played, 0 to 1.
    """

    overall: Gain
    scenarios: dict[str, Gain]
    reach: float = 1.0

    @property
    def holds(self) -> bool:
        """Whether the overall gain is significant and no scenario may be worse by more than `MOST_HARM`."""
        return self.overall.low > 0 and all(gain.low >= -MOST_HARM for gain in self.scenarios.values())

    def summary(self) -> str:
        """The result as one line of text."""
        kept = "the residual is kept" if self.reach == 1 else f"{self.reach:.0%} of the residual is kept"
        verdict = kept if self.holds else "not proven, so the residual is set to 0"
        worst = min(self.scenarios, key=lambda name: self.scenarios[name].low)
        parts = (f"{gain.mean:+.2%} (at least {gain.low:+.2%})" for gain in (self.overall, self.scenarios[worst]))
        overall, least = parts
        return f"J better by {overall} over {self.overall.episodes} fresh episodes, {worst} {least}: {verdict}"

    def to_json(self) -> dict[str, Any]:
        return {"holds": self.holds, **asdict(self)}


def check_episodes(episodes: int, scenario: Scenario) -> None:
    """Raises ConfigError when a proof has fewer than `LEAST_EPISODES` of a scenario; 0 episodes are no proof."""
    scenarios = len(_parts(scenario))
    if 0 < episodes < LEAST_EPISODES * scenarios:
        raise ConfigError(
            f"{episodes} episodes prove nothing on {scenarios} scenario{'s' if scenarios > 1 else ''}",
            where="training.proof_episodes",
            remedy=f"set {LEAST_EPISODES * scenarios} or more, {LEAST_EPISODES} per scenario, or 0 for no proof",
        )


def prove_some(
    net: EquivariantNet,
    problem: DecisionProblem,
    scenario: Scenario,
    options: TrainingOptions,
    simulation: SimulationOptions | None = None,
) -> tuple[EquivariantNet, ResidualProof]:
    """Returns the network scaled by the largest factor of `REACHES` that is proven, and the proof.

    Without a proof it returns the network with a residual of 0, and the last result. Plays `options.proof_episodes`
    scripts with a residual of 0 and with the residual scaled by each factor.

    Args:
        scenario: the scenarios of a mixture are played in turn; every second script of a study scenario is played as
            in an evaluation, the others randomised as in training.

    Raises:
        ConfigError: see `check_episodes`.
    """
    check_episodes(options.proof_episodes, scenario)
    scripts = _scripts(problem, scenario, options)
    base = _log_indices(None, problem, scripts, options, simulation)

    def gains(some: EquivariantNet) -> FloatArray:
        return base - _log_indices(LearnedPolicy(some, problem), problem, scripts, options, simulation)

    return prove_by(net, [script.name for script in scripts], gains)


def prove_by(
    net: EquivariantNet, scenarios: Sequence[str], gains: Callable[[EquivariantNet], FloatArray]
) -> tuple[EquivariantNet, ResidualProof]:
    """As `prove_some`, by any gain.

    Args:
        scenarios: of each episode.
        gains: a network → its gain over a residual of 0 in each episode, ``[episodes]``; 0.01 is one percent, or point.
    """
    for reach in REACHES:
        some = _scaled(net, reach)
        by_scenario: dict[str, list[float]] = {}
        for name, gain in zip(scenarios, gains(some).tolist(), strict=True):
            by_scenario.setdefault(name, []).append(gain)
        parts = {name: _overall([part]) for name, part in by_scenario.items()}
        proof = ResidualProof(_overall(list(by_scenario.values())), parts, reach)
        if proof.holds:
            return some, proof
    return _scaled(net, 0.0), proof


def _scaled(net: EquivariantNet, reach: float) -> EquivariantNet:
    """A copy whose mean actions are those of the network times `reach` (squashed networks: before tanh)."""
    scaled = deepcopy(net)
    last = scaled.action[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(reach)
        last.bias.mul_(reach)
    return scaled


def _scripts(problem: DecisionProblem, scenario: Scenario, options: TrainingOptions) -> list[Script]:
    parts = _parts(scenario)
    duration_s = _steps(options) * options.interval_s
    scripts = []
    for index in range(options.proof_episodes):
        turn, place = divmod(index, len(parts))
        part = parts[place]
        if isinstance(part, StudyScenario):
            as_judged = turn % 2 == 1
            part = replace(part, duration_s=duration_s, randomised=part.randomised and not as_judged)
        scripts.append(part.script(problem.topology, PROOF_SEED + index))
    return scripts


def _parts(scenario: Scenario) -> tuple[Scenario, ...]:
    """The scenarios that are played in turn."""
    return tuple(dict.fromkeys(scenario.scenarios)) if isinstance(scenario, Mixture) else (scenario,)


def _steps(options: TrainingOptions) -> int:
    return round(LENGTH * options.episode_steps)


def _log_indices(
    policy: LearnedPolicy | None,
    problem: DecisionProblem,
    scripts: list[Script],
    options: TrainingOptions,
    simulation: SimulationOptions | None,
) -> FloatArray:
    """Natural logarithm of every episode's J, ``[scripts]``."""
    starts = range(0, len(scripts), _EPISODES_AT_ONCE)
    parts = (scripts[start : start + _EPISODES_AT_ONCE] for start in starts)
    logs: FloatArray = np.log(np.concatenate([_index(policy, problem, part, options, simulation) for part in parts]))
    return logs


def _index(
    policy: LearnedPolicy | None,
    problem: DecisionProblem,
    scripts: list[Script],
    options: TrainingOptions,
    simulation: SimulationOptions | None,
) -> FloatArray:
    """J of every episode, ``[scripts]``: latency / deadline plus relative tardiness per request."""
    terms = rollout(
        problem,
        scripts,
        policy,
        _steps(options),
        method=options.method,
        interval_s=options.interval_s,
        simulation=simulation,
    ).terms
    warm_up = math.ceil(min(WARM_UP_S / options.interval_s, _steps(options) / 2))
    costs = terms["requests"] * (terms["relative_latency"] + terms["art"])
    cost, requests = np.zeros(len(scripts)), np.zeros(len(scripts))
    for step in range(warm_up, _steps(options)):
        cost += costs[step]
        requests += terms["requests"][step]
    index: FloatArray = cost / np.maximum(requests, 1)
    return index


def _overall(groups: list[list[float]]) -> Gain:
    """Gain over groups of episodes with equal weight; a group of one episode has no variance, so `low` is −inf then."""
    means = [float(np.mean(group)) for group in groups]
    count, fewest = sum(map(len, groups)), min(map(len, groups))
    if fewest < 2:
        return Gain(float(np.mean(means)), float("-inf"), count)
    variance = sum(float(np.var(group, ddof=1)) / len(group) for group in groups) / len(groups) ** 2
    half = float(stdtrit(fewest - 1, _CONFIDENCE)) * variance**0.5
    return Gain(float(np.mean(means)), float(np.mean(means)) - half, count)
