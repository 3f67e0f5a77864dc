"""Steers what enters a simulated batch: by a network, or by token buckets whose rates follow lateness per type.

The latter are what learned rates are compared with (docs/admission-learning.md#token-buckets); NGINX has none of them.
Both are for `envs.study.goodput.play_admission` with windows of `WINDOW_S`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.script import Script
from envs.environment.entry import LEAST_RATE, WINDOW_S, EntryPolicy, EntryTask, LearnedEntry
from envs.simulator.batch import SimulatedBatch
from envs.simulator.window_batch import AttemptCounts, WindowBatch
from envs.study.rules import BatchController


@dataclass(frozen=True)
class RateNumbers:
    """How a rate follows the late share of its type, once in each window.

    Attributes:
        late_share: above which the rate falls.
        cut: factor then; growth: factor otherwise; rise: added then, as a share of the nominal rate.
        most: bound, as a multiple of what is offered or, if that is more, of the nominal rate.
        burst_s: seconds of tokens that a bucket holds.
    """

    late_share: float
    cut: float
    rise: float = 0.0
    growth: float = 1.0
    most: float = 1.1
    burst_s: float = 0.1


def learned_steering(task: EntryTask, policy: EntryPolicy | None) -> BatchController:
    """Steers a batch by a network; without one, every action is 0."""
    entry: LearnedEntry | None = None

    def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
        nonlocal entry
        if window is None or entry is None:
            entry = LearnedEntry(task, scripts)
            entry.begin(batch)
        else:
            rows = entry.observe(window)
            entry.act(batch, np.zeros(rows.shape[:2]) if policy is None else policy.actions(rows))

    return steer


def rate_steering(task: EntryTask, numbers: RateNumbers) -> BatchController:
    """Steers a batch by token buckets with these numbers."""
    nominal_rps = rates_rps = np.zeros(0)

    def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
        nonlocal nominal_rps, rates_rps
        if window is None:
            nominal_rps = np.array([task.admission(script).rates_rps for script in scripts])
            rates_rps = numbers.most * nominal_rps
        else:
            rates_rps = _after(rates_rps, window.attempts, nominal_rps, numbers)
        batch.set_rates(rates_rps, numbers.burst_s)

    return steer


def _after(rates_rps: FloatArray, counts: AttemptCounts, nominal_rps: FloatArray, numbers: RateNumbers) -> FloatArray:
    stuck = (counts.finished == 0) & (counts.inside > 0)
    bad = counts.late + counts.failed
    late = np.where(counts.finished > 0, bad / np.maximum(counts.finished, 1), stuck)
    risen = numbers.growth * rates_rps + numbers.rise * nominal_rps
    wanted = np.where(late > numbers.late_share, numbers.cut * rates_rps, risen)
    most_rps = numbers.most * np.maximum(counts.offered / WINDOW_S, nominal_rps)
    return np.clip(wanted, LEAST_RATE * nominal_rps, most_rps)
