"""Scores of a network on simulated episodes that are never trained on, for early stopping and to compare trials."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from actuators.contract.script import Scenario
from envs.environment.problem import DecisionProblem
from envs.environment.rewards import Ledger
from envs.environment.rollout import rollout
from envs.simulator.batch import SimulatedBatch, SimulationOptions
from tuning.learning.scripts import HELD_OUT_SEED, VALIDATION_SEED
from tuning.options import TrainingOptions
from tuning.policy.learned import LearnedPolicy
from tuning.policy.model import EquivariantNet


class HeldOut:
    """Plays the same held-out episodes with every network, without exploration.

    Args:
        scenario: scenario that the episodes are drawn from.
    """

    def __init__(
        self,
        problem: DecisionProblem,
        scenario: Scenario,
        options: TrainingOptions,
        simulation: SimulationOptions | None = None,
    ) -> None:
        self._problem, self._options, self._simulation = problem, options, simulation
        episodes = options.held_out.episodes
        self._scripts = [scenario.script(problem.topology, HELD_OUT_SEED + index) for index in range(episodes)]

    def score(self, net: EquivariantNet) -> float:
        """Mean reward per step."""
        options = self._options
        played = rollout(
            self._problem,
            self._scripts,
            LearnedPolicy(net, self._problem),
            options.episode_steps,
            method=options.method,
            interval_s=options.interval_s,
            simulation=self._simulation,
            threads=options.threads,
        )
        net.train()
        total = 0.0
        for rewards in played.rewards:
            total += float(rewards.mean())
        return total / options.episode_steps


@dataclass
class Best:
    """The best network so far.

    Attributes:
        score: its mean reward per step.
        looks_since: number of scores since then, none of them better.
        state: its tensors by name; empty before the first score.
    """

    score: float = -math.inf
    looks_since: int = 0
    state: dict[str, torch.Tensor] = field(default_factory=dict)

    def offer(self, score: float, net: EquivariantNet) -> None:
        """Keeps a copy of the network if its score is better than the best so far."""
        if score > self.score:
            self.score, self.looks_since = score, 0
            self.state = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
        else:
            self.looks_since += 1


@dataclass(frozen=True)
class Validation:
    """Results over all validation episodes.

    Attributes:
        score: mean over intervals of −log(relative latency + 0.01), minus that of least_conn with equal weights on
            the same scripts: 0.05 means about 5 % less latency / deadline.
        art_per_request: mean over intervals of the ART per request (docs/glossary.md#art).
        error_ratio: share of failed requests, 0 to 1.
    """

    score: float
    art_per_request: float
    error_ratio: float


class Validator:
    """Plays the same simulated scripts with every network, and once with least_conn.

    The score does not depend on the reward that a trial is trained with, so trials are comparable.

    Args:
        episodes: number of scripts.
        seconds: simulated seconds per episode.
        first: number of the first script.
    """

    def __init__(
        self,
        problem: DecisionProblem,
        scenario: Scenario,
        options: TrainingOptions,
        episodes: int,
        seconds: float,
        first: int = 0,
    ) -> None:
        plain = problem.options.model_copy(update={"reward": "log_latency", "reward_mix": {}})
        self._problem, self._options = replace(problem, options=plain), options
        self._steps = max(round(seconds / options.interval_s), 1)
        numbers = range(first, first + episodes)
        self._scripts = [scenario.script(problem.topology, VALIDATION_SEED + number) for number in numbers]
        self._reference = self._least_conn()

    def judge(self, net: EquivariantNet) -> Validation:
        """Validates the network, without exploration."""
        policy, options = LearnedPolicy(net, self._problem), self._options
        played = rollout(
            self._problem, self._scripts, policy, self._steps, method=options.method, interval_s=options.interval_s
        )
        net.train()
        ledger = Ledger()
        for step in range(self._steps):
            ledger.add({name: values[step] for name, values in played.terms.items()})
        terms = ledger.take_means()
        score = float(np.mean([float(rewards.mean()) for rewards in played.rewards])) - self._reference
        return Validation(score, terms["art"], terms["error_ratio"])

    def _least_conn(self) -> float:
        batch = SimulatedBatch(self._problem.topology, len(self._scripts), "least_conn")
        for index, script in enumerate(self._scripts):
            batch.reset(index, script)
        windows = (batch.advance(self._options.interval_s) for _ in range(self._steps + 1))
        rewards = [float(self._problem.reward(window)[0].mean()) for window in windows]
        return float(np.mean(rewards[1:]))
