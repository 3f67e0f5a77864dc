"""A learned part of admission: factors on the limits of a rule, or on the rates of token buckets, moved every window.

Trained in `envs.environment.entry_env`, judged by `envs.study.entry`; docs/admission-learning.md tells what it adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actuators.contract.admission import Admission, AdmissionNumbers
from actuators.contract.arrays import FloatArray
from actuators.contract.script import Script
from actuators.contract.topology import Topology
from envs.admission.nominal import nominal_admission
from envs.environment.rates import LEAST_RATE, RateNumbers
from envs.observation.encoder import Encoder
from envs.observation.entry import EntryObserver
from envs.simulator.batch import SimulatedBatch
from envs.simulator.window_batch import AttemptCounts, WindowBatch

WINDOW_S = 0.5
LEAK, STEP, LEAST_Z, MOST_Z = 0.95, 0.4, -3.0, 2.5
"""The logarithm of a limit's factor: what is kept of it, the largest step, and its bounds."""
MOST_RATE_Z = 0.7
"""Largest logarithm of a rate's factor."""


@dataclass(frozen=True, eq=False)
class EntryTask:
    """What is learned: factors on which rule, what is believed of a system, and what is seen of it.

    Attributes:
        rates: the rule of token buckets; None for the limits of `aimd_thresh`.
        encoder: a mixture over windows, whose posterior is seen as well.
        believed_factor: on the idle response times: how wrong they are believed to be.
    """

    topology: Topology
    rates: RateNumbers | None = None
    numbers: AdmissionNumbers = field(default_factory=AdmissionNumbers)
    encoder: Encoder | None = None
    believed_factor: float = 1.0

    def admission(self, script: Script) -> Admission:
        """What is believed of the script's system."""
        return nominal_admission(script, self.topology, "aimd_thresh", self.numbers, self.believed_factor)


class LearnedEntry:
    """What is seen of `n` systems and set at their gates.

    Call `begin` once the batch's environments have been reset, then `observe` and `act` after every window.
    """

    def __init__(self, task: EntryTask, scripts: Sequence[Script]) -> None:
        self._believed = [task.admission(script) for script in scripts]
        self._observer = EntryObserver(self._believed, WINDOW_S, task.encoder)
        self._gate = _Limits(self._believed) if task.rates is None else _Buckets(task.rates, self._observer)

    def begin(self, batch: SimulatedBatch) -> None:
        """The rule without anything learned."""
        self._gate.begin(batch)

    def observe(self, window: WindowBatch) -> NDArray[np.float32]:
        """The rows of this window."""
        self._observer.observe(window.attempts)
        self._gate.observe(window.attempts)
        return self._observer.rows(self._gate.own())

    @property
    def regime(self) -> FloatArray:
        """``[n, features]`` of the last window (`envs.observation.entry.REGIME_NAMES`)."""
        return self._observer.regime

    def act(self, batch: SimulatedBatch, actions: NDArray[Any]) -> None:
        """Actions ``[n, groups]``, any real numbers, in force from now on; without any the rule is."""
        self._gate.act(batch, np.tanh(actions.astype(np.float64)))


class _Limits:
    """Factors on the limits of `aimd_thresh`."""

    def __init__(self, believed: Sequence[Admission]) -> None:
        self._believed = believed
        self._z = np.zeros((len(believed), len(believed[0].idle_s)))

    def begin(self, batch: SimulatedBatch) -> None:
        batch.admit(self._believed)

    def observe(self, counts: AttemptCounts) -> None:
        """The rule itself has its ticks in the batch."""

    def own(self) -> FloatArray:
        """The logarithms of the factors."""
        return self._z

    def act(self, batch: SimulatedBatch, bent: FloatArray) -> None:
        self._z = np.clip(LEAK * self._z + STEP * bent, LEAST_Z, MOST_Z)
        batch.set_factors(np.exp(self._z))


class _Buckets:
    """Factors on the rates of token buckets."""

    def __init__(self, numbers: RateNumbers, seen: EntryObserver) -> None:
        self._numbers, self._seen = numbers, seen
        self._rule_rps = self._rates_rps = numbers.first(seen.rates_rps)

    def begin(self, batch: SimulatedBatch) -> None:
        batch.admit(None)
        batch.set_rates(self._rates_rps, self._numbers.burst_s)

    def observe(self, counts: AttemptCounts) -> None:
        self._rule_rps = self._numbers.after(self._rule_rps, counts, self._seen.rates_rps, WINDOW_S)

    def own(self) -> FloatArray:
        """The logarithms of the rates in force over what is offered."""
        own: FloatArray = np.log(self._rates_rps / np.maximum(self._seen.offered_rps, 1.0))
        return own

    def act(self, batch: SimulatedBatch, bent: FloatArray) -> None:
        wanted_rps = self._rule_rps * np.exp(MOST_RATE_Z * bent)
        self._rates_rps = np.maximum(wanted_rps, LEAST_RATE * self._seen.rates_rps)
        batch.set_rates(self._rates_rps, self._numbers.burst_s)
