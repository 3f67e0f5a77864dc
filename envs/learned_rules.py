"""Estimators and controllers steering a whole simulated batch: rules for `envs.study.judge`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from actuators.control import ServiceTimes, Weights
from actuators.script import Script
from envs.batch import SimulatedBatch, SimulationOptions
from envs.controller import Steered
from envs.delay_controllers import estimator_named
from envs.estimators import FIRST_GUESS_S, ServiceSamples
from envs.rules import Rule, Steering, workers_of
from envs.window_batch import WindowBatch

SHARED_MEMORY = SimulationOptions(retry_post=True, workers_sharing_memory=2)
"""As the study sets NGINX up: the two workers of each load balancer share their counters (S9: 4 contexts)."""


@dataclass(frozen=True)
class Learning:
    """How service times are learned and what is believed of the servers.

    Attributes:
        estimator: a name of `envs.delay_controllers.ESTIMATORS`.
        delay_windows: windows by which what was observed comes too late.
        worker_factor: believed workers over true ones.
    """

    estimator: str
    delay_windows: int = 0
    worker_factor: float = 1.0

    def rule(self, options: SimulationOptions = SHARED_MEMORY) -> Rule:
        """This way of learning as a rule that can be judged."""
        return Rule(self._name(), "expected_delay", steering(self), options)

    def _name(self) -> str:
        late = f", {self.delay_windows} s late" if self.delay_windows else ""
        workers = f", workers × {self.worker_factor:g}" if self.worker_factor != 1.0 else ""
        return f"{self.estimator}{late}{workers}"


def steering(learning: Learning) -> Callable[[], Steering]:
    """Starts from equal service times; one estimator for all environments and, in each, for all its contexts."""

    def start() -> Steering:
        waiting: deque[WindowBatch] = deque()
        estimator = None

        def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
            nonlocal estimator
            workers = np.maximum(workers_of(scripts) * learning.worker_factor, 0.25)
            if window is None or estimator is None:
                estimator = estimator_named(learning.estimator)(batch.topology, (batch.size,))
                batch.set_service_times(np.full((batch.size, *batch.topology.shape), FIRST_GUESS_S), workers)
                return
            waiting.append(window)
            if len(waiting) > learning.delay_windows:
                batch.set_service_times(estimator.update(ServiceSamples.of(waiting.popleft())), workers)

        return steer

    return start


def controlled(name: str, make: Callable[[], Steered], options: SimulationOptions | None = None) -> Rule:
    """A controller of weights as a rule: one of its own for every environment, fed with whole windows."""

    def start() -> Steering:
        controllers: list[Steered] = []
        present: list[Weights] = []

        def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
            if window is None:
                controllers[:] = [make() for _ in scripts]
                present[:] = [_weights(c.begin(batch.topology)) for c in controllers]
            else:
                for index, controller in enumerate(controllers):
                    decision = controller.decide(window.window(index))
                    present[index] = present[index] if decision is None else _weights(decision)
            batch.set_weights(np.stack([w.values for w in present]), np.stack([w.down for w in present]))

        return steer

    return Rule(name, make().method, start, options or SimulationOptions(retry_post=True))


def _weights(control: Weights | ServiceTimes) -> Weights:
    return control.as_weights() if isinstance(control, ServiceTimes) else control
