"""A learned part of late binding: importance of each type, θ, slots and the refuse factor, moved every window.

Trained in `envs.environment.holding_env`, judged by `envs.study.holding`; docs/late-binding-learning.md tells what it
adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray
from actuators.contract.late_binding import LateBinding, LateBindingNumbers, slots_for
from actuators.contract.script import Script
from actuators.contract.topology import Topology
from envs.estimators.base import FIRST_GUESS_S, ServiceSamples
from envs.estimators.registry import DEFAULT_ESTIMATOR, estimator_named
from envs.observation.encoder import Encoder
from envs.observation.holding import MOVES, HoldingObserver
from envs.simulator.batch import SimulatedBatch
from envs.simulator.window_batch import WindowBatch

WINDOW_S = 1.0
MOST_IMPORTANCE, MOST_THETA, MOST_SLOTS = 1.0, 0.7, 0.69
"""Largest logarithm of the factor on a type's importance, on θ, and on the slots per worker."""
REFUSES_FROM, FIRST_REFUSE, REFUSE_RANGE = 0.1, 4.0, 2.5
"""The bent action from which on requests are refused, the refuse factor there, and the logarithm by which the action 1
lowers it.
"""


@dataclass(frozen=True, eq=False)
class HoldingTask:
    """What is moved, and what is believed of a system.

    Attributes:
        deadlines_s: ``[groups]``.
        numbers: in force without actions.
        encoder: a mixture over windows, whose posterior is seen as well.
        worker_factor: believed workers over true ones.
    """

    topology: Topology
    deadlines_s: FloatArray
    numbers: LateBindingNumbers = field(default_factory=LateBindingNumbers)
    encoder: Encoder | None = None
    worker_factor: float = 1.0

    def workers(self, script: Script) -> FloatArray:
        """``[servers]``, as believed."""
        true = np.array([float(profile.workers) for profile in script.servers])
        return np.maximum(self.worker_factor * true, 0.25)

    def binding(self, workers: FloatArray, balancers: int, bent: FloatArray) -> LateBinding:
        """What is in force in one system.

        Args:
            workers: ``[servers]``, as believed.
            balancers: that share no counts.
            bent: ``[groups, MOVES]`` within ±1: a type's importance, θ, slots and refuse factor, the last three with
                their means over the types; 0 is the rule without anything learned.
        """
        theta, slots, refusing = bent[:, 1:].mean(axis=0)
        # θ below 1 would prefer the wait at a busy server to a free one.
        moved: dict[str, Any] = {"theta": max(self.numbers.theta * float(np.exp(MOST_THETA * theta)), 1.0)}
        per_worker = max(self.numbers.slots_per_worker * float(np.exp(MOST_SLOTS * slots)), 1.0)
        if refusing > REFUSES_FROM:
            depth = (refusing - REFUSES_FROM) / (1 - REFUSES_FROM)
            moved["refuse_factor"] = FIRST_REFUSE * float(np.exp(-REFUSE_RANGE * depth))
        return LateBinding(
            self.topology, self.deadlines_s, slots_for(workers, per_worker, balancers),
            self.numbers.model_copy(update=moved), np.exp(MOST_IMPORTANCE * bent[:, 0]),
        )  # fmt: skip


class LearnedHolding:
    """What is seen and moved of `n` systems whose service times are learned.

    Call `begin` once the batch's environments have been reset, then `observe` and `act` after every window.
    """

    def __init__(self, task: HoldingTask, scripts: Sequence[Script]) -> None:
        self._task, self._scripts = task, scripts
        self._workers = np.array([task.workers(script) for script in scripts])
        self._observer = HoldingObserver(task.deadlines_s, self._workers, task.encoder)
        self._estimator = estimator_named(DEFAULT_ESTIMATOR)(task.topology, (len(scripts),))
        self._bent = np.zeros((len(scripts), len(task.deadlines_s), MOVES))

    def begin(self, batch: SimulatedBatch) -> None:
        """The rule without anything learned."""
        first_s = np.full((batch.size, *batch.topology.shape), FIRST_GUESS_S)
        batch.set_service_times(first_s, self._workers)
        self._hold(batch)

    def observe(self, batch: SimulatedBatch, window: WindowBatch) -> NDArray[np.float32]:
        """Sets the service times that this window teaches; its rows."""
        tau_s = self._estimator.update(ServiceSamples.of(window))
        batch.set_service_times(tau_s, self._workers)
        self._observer.observe(window, *batch.in_line(), tau_s)
        return self._observer.rows(self._bent)

    @property
    def regime(self) -> FloatArray:
        """``[n, features]`` of the last window (`envs.observation.holding.REGIME_NAMES`)."""
        return self._observer.regime

    def act(self, batch: SimulatedBatch, actions: NDArray[Any]) -> None:
        """Actions ``[n, MOVES * groups]``, any real numbers, in force from now on: all types' importance, then what
        each says of θ, of slots, and of the refuse factor.
        """
        several = actions.astype(np.float64).reshape(len(self._scripts), MOVES, -1)
        self._bent = np.tanh(several).transpose(0, 2, 1)
        self._hold(batch)

    def _hold(self, batch: SimulatedBatch) -> None:
        each = zip(self._workers, self._scripts, self._bent, strict=True)
        batch.hold([self._task.binding(workers, batch.contexts_of(script), bent) for workers, script, bent in each])
