"""A batch of simulated testbeds that the actions of one decision problem steer: what training steps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from actuators.control import BalancingMethod
from actuators.script import Script
from envs.batch import SimulatedBatch, SimulationOptions
from envs.decision import DecisionProblem
from envs.estimators import FIRST_GUESS_S
from envs.observation import Observation, equal_weights

FloatArray = NDArray[np.float64]


class SteeredBatch:
    """`size` testbeds, each with a script of its own; all are restarted before the first `advance`.

    Attributes:
        observation: of the last interval, None before the first.
    """

    def __init__(
        self,
        problem: DecisionProblem,
        size: int,
        method: BalancingMethod,
        simulation: SimulationOptions | None,
        threads: int = 1,
    ) -> None:
        self.problem = problem
        self.observation: Observation | None = None
        in_memory = problem.options.action.estimator is not None
        # The workers of one NGINX share what `expected_delay` counts.
        fitting = SimulationOptions(workers_sharing_memory=2) if in_memory else SimulationOptions()
        self._batch = SimulatedBatch(problem.topology, size, method, options=simulation or fitting, threads=threads)
        self._observer = problem.observer((size,))
        self._weights = equal_weights(problem.topology, (size,))
        self._tau_s = np.full(self._weights.shape, FIRST_GUESS_S)
        self._workers = np.ones((size, problem.topology.shape[1]))

    def restart(self, index: int, script: Script) -> None:
        """One testbed begins a script under equal weights or service times, and nothing is known of it."""
        self._batch.reset(index, script)
        self._observer.reset(index)
        self._weights[index] = equal_weights(self.problem.topology)
        self._tau_s[index] = FIRST_GUESS_S
        self._workers[index] = [float(profile.workers) for profile in script.servers]

    def act(self, actions: NDArray[Any], observation: Observation) -> None:
        """What the actions on this observation ask for is in force from the next `advance` on."""
        if observation.tau_s is None:
            self._weights = self.problem.weights(actions, observation)
        else:
            self._tau_s = self.problem.service_times(actions, observation)

    def advance(self, interval_s: float) -> tuple[FloatArray, dict[str, FloatArray]]:
        """One interval of all: the rewards ``[size]`` and their terms."""
        if self.problem.options.action.estimator is None:
            self._batch.set_weights(self._weights)
        else:
            self._batch.set_service_times(self._tau_s, self._workers)
        windows = self._batch.advance(interval_s)
        self.observation = self._observer.observe(windows, interval_s, self._weights)
        return self.problem.reward(windows, self.observation)
