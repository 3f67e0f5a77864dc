"""How good a network is on episodes that are never trained on, and which network was the best so far.

How good a trial's policy is, in a measure that is the same for every trial whatever it was rewarded for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from actuators.contract.script import Scenario, Script
from actuators.contract.topology import Topology
from envs.environment.problem import DecisionProblem
from envs.environment.vector_env import SimulatedVectorEnv
from envs.simulator.testbed import SimulatedBatch, SimulationOptions
from tuning.options import TrainingOptions
from tuning.policy.learned import LearnedPolicy
from tuning.policy.model import EquivariantNet

State = dict[str, torch.Tensor]
_FIRST_SEED = 2**31
"""Training draws script seeds below this one, so held-out scripts are never trained on."""


class HeldOut:
    """Plays the same held-out episodes with any network, without exploration.

    Args:
        scenario: what the episodes are drawn from.
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
        self._scripts = [scenario.script(problem.topology, _FIRST_SEED + index) for index in range(episodes)]

    def score(self, net: EquivariantNet) -> float:
        """Mean reward per step."""
        options, policy = self._options, LearnedPolicy(net, self._problem)
        env = SimulatedVectorEnv(
            self._problem,
            len(self._scripts),
            _InTurn(self._scripts),
            method=options.method,
            interval_s=options.interval_s,
            episode_steps=options.episode_steps,
            simulation=self._simulation,
            threads=options.threads,
        )
        rows, _ = env.reset()
        total = 0.0
        for _ in range(options.episode_steps):
            rows, rewards, *_ = env.step(policy.action(rows))
            total += float(rewards.mean())
        net.train()
        return total / options.episode_steps


@dataclass
class Best:
    """The best network so far, and since how many looks nothing better came."""

    score: float = -math.inf
    looks_since: int = 0
    state: State = field(default_factory=dict)

    def offer(self, score: float, net: EquivariantNet) -> None:
        """A network and its score; kept when better."""
        if score > self.score:
            self.score, self.looks_since = score, 0
            self.state = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
        else:
            self.looks_since += 1


class ScriptSource:
    """Draws the script of an episode from a scenario; travels with RLlib's configuration."""

    def __init__(self, scenario: Scenario, topology: Topology) -> None:
        self.scenario, self._topology = scenario, topology

    def __call__(self, generator: np.random.Generator) -> Script:
        return self.scenario.script(self._topology, int(generator.integers(_FIRST_SEED)))


class _InTurn:
    def __init__(self, scripts: list[Script]) -> None:
        self._scripts, self._next = scripts, 0

    def __call__(self, generator: np.random.Generator) -> Script:
        self._next += 1
        return self._scripts[(self._next - 1) % len(self._scripts)]


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
