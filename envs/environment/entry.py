"""A learned part of admission: factors on the limits of a rule, or the rates of token buckets, moved every window.

Trained in `envs.environment.entry_env`, judged by `envs.study.entry`; docs/admission-learning.md tells what it adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from actuators.contract.admission import Admission, AdmissionNumbers
from actuators.contract.arrays import FloatArray
from actuators.contract.script import Script
from actuators.contract.topology import Topology
from envs.admission.nominal import nominal_admission
from envs.observation.encoder import Encoder
from envs.observation.entry import EntryObserver
from envs.simulator.batch import SimulatedBatch
from envs.simulator.window_batch import WindowBatch

Actuator = Literal["limits", "rates"]
"""`limits`: factors on those of `aimd_thresh`; `rates`: those of token buckets."""

WINDOW_S = 0.5
LEAK, STEP, LEAST_Z, MOST_Z = 0.95, 0.4, -3.0, 2.5
"""The logarithm of a factor: what is kept of it, the largest step, and its bounds."""
RATE_STEP = 0.7
"""Largest step of the logarithm of a rate; TopFull's is 0.5 of the rate per second."""
LEAST_RATE, MOST_RATE = 0.05, 1.1
"""Bounds of a rate: of the nominal one, and of what is offered (as TopFull's) or nominal, whichever is more."""
ACTION = 3.0
"""Bound of an action, before tanh."""


@dataclass(frozen=True, eq=False)
class EntryTask:
    """What is learned: the actuator, what is believed of a system, and what is seen of it.

    Attributes:
        believed_factor: on the idle response times: how wrong they are believed to be.
        encoder: a mixture over windows, whose posterior is seen as well.
        burst_s: seconds of tokens that a bucket holds.
    """

    topology: Topology
    actuator: Actuator = "limits"
    numbers: AdmissionNumbers = field(default_factory=AdmissionNumbers)
    encoder: Encoder | None = None
    believed_factor: float = 1.0
    burst_s: float = 0.1

    def admission(self, script: Script) -> Admission:
        """The rule without anything learned."""
        return nominal_admission(script, self.topology, "aimd_thresh", self.numbers, self.believed_factor)


class EntryPolicy(Protocol):
    """A network without exploration."""

    def actions(self, rows: NDArray[np.float32]) -> FloatArray:
        """Rows ``[n, groups, row]`` → actions ``[n, groups]``."""
        ...


class LearnedEntry:
    """What is seen of `n` systems and set at their gates.

    Call `begin` once the batch's environments have been reset, then `observe` and `act` after every window.
    """

    def __init__(self, task: EntryTask, scripts: Sequence[Script]) -> None:
        self.task = task
        self._believed = [task.admission(script) for script in scripts]
        self._observer = EntryObserver(self._believed, WINDOW_S, task.encoder)
        self._own = np.zeros(self._observer.rates_rps.shape)
        self._rates_rps = MOST_RATE * self._observer.rates_rps

    def begin(self, batch: SimulatedBatch) -> None:
        """The rule without anything learned, or buckets for the nominal rates."""
        if self.task.actuator == "limits":
            batch.admit(self._believed)
        else:
            batch.admit(None)
            batch.set_rates(self._rates_rps, self.task.burst_s)

    def observe(self, window: WindowBatch) -> NDArray[np.float32]:
        """The rows of this window."""
        self._observer.observe(window.attempts)
        if self.task.actuator == "rates":
            self._own = np.log(self._rates_rps / np.maximum(self._observer.offered_rps, 1.0))
        return self._observer.rows(self._own)

    @property
    def regime(self) -> FloatArray:
        """``[n, features]`` of the last window (`envs.observation.entry.REGIME_NAMES`)."""
        return self._observer.regime

    def act(self, batch: SimulatedBatch, actions: NDArray[Any]) -> None:
        """Actions ``[n, groups]``, any real numbers, in force from now on."""
        bent = np.tanh(actions.astype(np.float64))
        if self.task.actuator == "limits":
            self._own = np.clip(LEAK * self._own + STEP * bent, LEAST_Z, MOST_Z)
            batch.set_factors(np.exp(self._own))
        else:
            self._rates_rps = bounded(self._rates_rps * np.exp(RATE_STEP * bent), self._observer)
            batch.set_rates(self._rates_rps, self.task.burst_s)


def bounded(rates_rps: FloatArray, seen: EntryObserver) -> FloatArray:
    """Rates within their bounds, ``[n, groups]``."""
    most_rps = MOST_RATE * np.maximum(seen.offered_rps, seen.rates_rps)
    return np.clip(rates_rps, LEAST_RATE * seen.rates_rps, most_rps)
