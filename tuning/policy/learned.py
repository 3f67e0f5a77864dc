"""A trained network as a policy: observation → weights or service times. Needs neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actuators.contract.control import Control
from actuators.errors import DeepSchedError
from envs.environment.problem import DecisionProblem
from envs.observation.observer import Observation
from tuning.policy.network import Network, best_action


class NotANumberError(DeepSchedError):
    """The network's output is not finite. A retry cannot help."""


class LearnedPolicy:
    """Acts without exploration: with the mean of the network's distribution, or the most likely ratio vectors.

    Args:
        finite: raise NotANumberError for an output that is not finite, instead of taking nan as 0.
    """

    name = "learned"

    def __init__(self, net: Network, problem: DecisionProblem, *, finite: bool = False) -> None:
        self._net, self._problem, self._finite = net, problem, finite

    def act(self, observation: Observation) -> Control:
        """Control for one testbed; an output that is nan counts as 0, which is the residual's baseline."""
        return self._problem.control(self.action(self._problem.array(observation)), observation)

    def act_each(self, observations: Sequence[Observation]) -> list[Control]:
        """Controls for several testbeds of this topology with one call of the network."""
        actions = self.action(np.stack([self._problem.array(observation) for observation in observations]))
        return [self._problem.control(action, seen) for action, seen in zip(actions, observations, strict=True)]

    def weights(self, observation: Observation) -> NDArray[np.int64]:
        """Integer weights ``[..., groups, servers]``; leading axes of the observation are batch axes."""
        return self._problem.weights(self.action(self._problem.array(observation)), observation)

    def service_times(self, observation: Observation) -> NDArray[np.float64]:
        """Service times ``[..., groups, servers]`` in seconds, for a residual on an estimator; batches as `weights`."""
        return self._problem.service_times(self.action(self._problem.array(observation)), observation)

    def action(self, rows: NDArray[np.float32]) -> NDArray[Any]:
        """Rows ``[..., servers, row_size]`` → action in the form of the problem's codec."""
        outputs = self._net.outputs(rows)
        if self._finite and not np.isfinite(outputs).all():
            raise NotANumberError("the network's output is not finite", where="policy")
        action = best_action(self._net, outputs)
        return self._problem.action_codec.of_vectors(action) if self._net.ratios else action
