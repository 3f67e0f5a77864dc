"""A trained network as a policy: observation → weights. Needs torch, not Ray."""

from __future__ import annotations

import torch

from actuators.control import Control, Weights
from envs.decision import DecisionProblem
from envs.observation import Observation
from tuning.model import EquivariantNet


class LearnedPolicy:
    """Acts with the network's mean: no exploration."""

    name = "learned"

    def __init__(self, net: EquivariantNet, problem: DecisionProblem) -> None:
        self._net, self._problem = net.eval(), problem

    def act(self, observation: Observation) -> Control:
        """Weights for one testbed; a network output that is not a number counts as the baseline's."""
        with torch.inference_mode():
            action, _ = self._net(torch.from_numpy(self._problem.array(observation)))
        return Weights(self._problem.topology, self._problem.weights(action.numpy(), observation))
