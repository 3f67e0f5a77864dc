"""How good a network is on episodes that are never trained on, and which network was the best so far."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from actuators.script import Scenario, Script
from actuators.topology import Topology
from envs.decision import DecisionProblem
from envs.simulation import SimulationOptions
from envs.vector import SimulatedVectorEnv
from tuning.model import EquivariantNet
from tuning.options import TrainingOptions
from tuning.policy import LearnedPolicy

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
