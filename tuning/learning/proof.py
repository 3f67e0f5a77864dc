"""Whether a trained residual does good and nowhere harm, on episodes that neither training nor early stopping saw.

A residual may never do harm: one that cannot prove this is tried with smaller actions, and set back to its baseline
when these cannot either (`prove_some`).
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from actuators.contract.arrays import FloatArray
from actuators.contract.script import Scenario, Script
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
"""Share by which the study's index J may be worse on any scenario, at the upper end of its interval.

Less than the 0.5 % that is promised: the episodes of a proof are fewer than those that a user will see.
"""
LENGTH = 2.0
"""Episodes are so much longer than those of training: what helps while service times are still being learned can do
harm afterwards. As in an evaluation, the first 10 s do not count."""
REACHES = (1.0, 0.5, 0.25)
"""Parts of a residual's actions that are tried in turn: harm that grows faster than the gain is got rid of."""
_CONFIDENCE = 0.95
_EPISODES_AT_ONCE = 48


@dataclass(frozen=True)
class Gain:
    """Share by which J is lower than the baseline's (logarithms), with the lower end of its one-sided 95 % interval."""

    mean: float
    low: float
    episodes: int


@dataclass(frozen=True)
class ResidualProof:
    """What the episodes say: over all scenarios, each counting alike, and of every one.

    Attributes:
        reach: part of the trained actions that was played, 0…1.
    """

    overall: Gain
    scenarios: dict[str, Gain]
    reach: float = 1.0

    @property
    def holds(self) -> bool:
        """Better than the baseline beyond chance, and on no scenario possibly worse by more than `MOST_HARM`."""
        return self.overall.low > 0 and all(gain.low >= -MOST_HARM for gain in self.scenarios.values())

    def told(self) -> str:
        """In one line, for people."""
        kept = "the residual is kept" if self.reach == 1 else f"{self.reach:.0%} of the residual is kept"
        verdict = kept if self.holds else "not proven, so the residual is set back to 0"
        worst = min(self.scenarios, key=lambda name: self.scenarios[name].low)
        parts = (f"{gain.mean:+.2%} (at least {gain.low:+.2%})" for gain in (self.overall, self.scenarios[worst]))
        overall, least = parts
        return f"J better by {overall} over {self.overall.episodes} fresh episodes, {worst} {least}: {verdict}"

    def to_json(self) -> dict[str, Any]:
        return {"holds": self.holds, **asdict(self)}


def prove_some(
    net: EquivariantNet,
    problem: DecisionProblem,
    scenario: Scenario,
    options: TrainingOptions,
    simulation: SimulationOptions | None = None,
) -> tuple[EquivariantNet, ResidualProof]:
    """The largest part of a residual (`REACHES`) that proves itself, and its proof; else one at rest, and the last.

    Plays `options.proof_episodes` scripts with a residual of 0 and with each part of the network's.

    Args:
        scenario: a mixture's scenarios are played by turns, every other one of a study's as it is judged and not as
            it is varied in training.
    """
    scripts = _scripts(problem, scenario, options)
    base = _log_indices(None, problem, scripts, options, simulation)
    for reach in REACHES:
        some = _scaled(net, reach)
        gains = base - _log_indices(LearnedPolicy(some, problem), problem, scripts, options, simulation)
        found: dict[str, list[float]] = {}
        for script, gain in zip(scripts, gains.tolist(), strict=True):
            found.setdefault(script.name, []).append(gain)
        parts = {name: _overall([gains]) for name, gains in found.items()}
        proof = ResidualProof(_overall(list(found.values())), parts, reach)
        if proof.holds:
            return some, proof
    return _scaled(net, 0.0), proof


def _scaled(net: EquivariantNet, reach: float) -> EquivariantNet:
    """A copy whose mean actions are so much of the network's."""
    scaled = deepcopy(net)
    last = scaled.action[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(reach)
        last.bias.mul_(reach)
    return scaled


def _scripts(problem: DecisionProblem, scenario: Scenario, options: TrainingOptions) -> list[Script]:
    parts = tuple(dict.fromkeys(scenario.scenarios)) if isinstance(scenario, Mixture) else (scenario,)
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


def _steps(options: TrainingOptions) -> int:
    return round(LENGTH * options.episode_steps)


def _log_indices(
    policy: LearnedPolicy | None,
    problem: DecisionProblem,
    scripts: list[Script],
    options: TrainingOptions,
    simulation: SimulationOptions | None,
) -> FloatArray:
    """Logarithm of every episode's J, ``[scripts]``."""
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
    """J of every episode, ``[scripts]``: latency / deadline per request plus relative tardiness."""
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
    """Of the groups' means, each counting alike; from single episodes nothing is known of the spread."""
    means = [float(np.mean(group)) for group in groups]
    count, fewest = sum(map(len, groups)), min(map(len, groups))
    if fewest < 2:
        return Gain(float(np.mean(means)), float("-inf"), count)
    variance = sum(float(np.var(group, ddof=1)) / len(group) for group in groups) / len(groups) ** 2
    half = float(stats.t.ppf(_CONFIDENCE, fewest - 1)) * variance**0.5
    return Gain(float(np.mean(means)), float(np.mean(means)) - half, count)
