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
from envs.estimators import FIRST_GUESS_S, Estimator, ServiceSamples
from envs.rules import Rule, Steering, workers_of
from envs.service_times import estimator_named
from envs.window_batch import WindowBatch
from envs.workers import WorkersLearner

SHARED_MEMORY = SimulationOptions(retry_post=True, workers_sharing_memory=2)
"""As the study sets NGINX up: the two workers of each load balancer share their counters (S9: 4 contexts)."""


@dataclass(frozen=True)
class Learning:
    """How service times are learned and what is believed of the servers.

    Attributes:
        estimator: a name of `envs.service_times.ESTIMATORS`.
        delay_windows: windows by which what was observed comes too late.
        worker_factor: believed workers over true ones, or over learned ones.
        first_workers: None to be told the workers, else they are learned from this start.
    """

    estimator: str
    delay_windows: int = 0
    worker_factor: float = 1.0
    first_workers: float | None = None

    def rule(self, options: SimulationOptions = SHARED_MEMORY) -> Rule:
        """This way of learning as a rule that can be judged."""
        counting = options.model_copy(update={"count_by_in_flight": self.first_workers is not None})
        return Rule(self._name(), "expected_delay", steering(self), counting)

    def _name(self) -> str:
        late = f", {self.delay_windows} s late" if self.delay_windows else ""
        workers = f", workers × {self.worker_factor:g}" if self.worker_factor != 1.0 else ""
        learned = f", workers learned from {self.first_workers:g}" if self.first_workers is not None else ""
        return f"{self.estimator}{late}{learned}{workers}"


def steering(learning: Learning) -> Callable[[], Steering]:
    """Starts from equal service times; one estimator for all environments and, in each, for all its contexts."""

    def start() -> Steering:
        waiting: deque[WindowBatch] = deque()
        estimator: Estimator | None = None
        learner: WorkersLearner | None = None
        workers = np.ones(0)

        def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
            nonlocal estimator, learner, workers
            if window is None or estimator is None:
                learner = WorkersLearner(batch.topology, (batch.size,), learning.first_workers or 1.0)
                workers = workers_of(scripts) if learning.first_workers is None else learner.update(None, 0.0)
                workers = np.maximum(workers * learning.worker_factor, 0.25)
                estimator = estimator_named(learning.estimator)(batch.topology, (batch.size,))
                batch.set_service_times(np.full((batch.size, *batch.topology.shape), FIRST_GUESS_S), workers)
                return
            waiting.append(window)
            if len(waiting) <= learning.delay_windows:
                return
            samples = ServiceSamples.of(waiting.popleft())
            if learner is not None and learning.first_workers is not None:
                learned = learner.update(samples.seen().by_in_flight, samples.duration_s)
                workers = np.maximum(learned * learning.worker_factor, 0.25)
            batch.set_service_times(estimator.update(samples), workers)

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
