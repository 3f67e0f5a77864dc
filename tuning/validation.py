"""How good a trial's policy is, in a measure that is the same for every trial whatever it was rewarded for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from actuators.script import Scenario, Script
from envs.decision import DecisionProblem
from envs.simulation import SimulatedBatch
from envs.vector import SimulatedVectorEnv
from tuning.model import EquivariantNet
from tuning.options import TrainingOptions
from tuning.policy import LearnedPolicy

FIRST_SEED = 2**31 + 2**30
"""Apart from the seeds that training and its early stopping draw."""


@dataclass(frozen=True)
class Validation:
    """Over all validation episodes, each from its start.

    Attributes:
        score: mean over intervals of −log(relative latency + 0.01), less that of least_conn with equal
            weights on the same scripts: 0.05 means about 5 % less latency over deadline.
        art_per_request: mean over intervals of relative tardiness per request.
        error_ratio: share of failed requests.
    """

    score: float
    art_per_request: float
    error_ratio: float


class Validator:
    """Plays the same simulated scripts with every network, and once with least_conn.

    Args:
        seconds: simulated, per episode.
    """

    def __init__(
        self, problem: DecisionProblem, scenario: Scenario, options: TrainingOptions, episodes: int, seconds: float
    ) -> None:
        plain = problem.options.model_copy(update={"reward": "log_latency", "reward_mix": {}})
        self._problem, self._options = replace(problem, options=plain), options
        self._steps = max(round(seconds / options.interval_s), 1)
        self._scripts = [scenario.script(problem.topology, FIRST_SEED + index) for index in range(episodes)]
        self._reference = self._least_conn()

    def judge(self, net: EquivariantNet) -> Validation:
        """The network without exploration."""
        env = SimulatedVectorEnv(
            self._problem,
            len(self._scripts),
            _InTurn(self._scripts),
            method=self._options.method,
            interval_s=self._options.interval_s,
            episode_steps=self._steps,
        )
        policy = LearnedPolicy(net, self._problem)
        rows, _ = env.reset()
        rewards = []
        for _ in range(self._steps):
            rows, reward, *_ = env.step(policy.action(rows))
            rewards.append(float(reward.mean()))
        net.train()
        terms = env.ledger.take_means()
        return Validation(float(np.mean(rewards)) - self._reference, terms["art"], terms["error_ratio"])

    def _least_conn(self) -> float:
        batch = SimulatedBatch(self._problem.topology, len(self._scripts), "least_conn")
        for index, script in enumerate(self._scripts):
            batch.reset(index, script)
        windows = (batch.advance(self._options.interval_s) for _ in range(self._steps + 1))
        rewards = [float(self._problem.reward(window)[0].mean()) for window in windows]
        return float(np.mean(rewards[1:]))


class _InTurn:
    def __init__(self, scripts: list[Script]) -> None:
        self._scripts, self._next = scripts, 0

    def __call__(self, generator: np.random.Generator) -> Script:
        self._next += 1
        return self._scripts[(self._next - 1) % len(self._scripts)]
