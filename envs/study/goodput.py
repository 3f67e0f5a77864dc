"""Goodput of a simulated system with and without admission: the share of requests that were answered in time.

A request is good when some attempt of it was answered within the deadline of that attempt's start
(docs/admission.md#goodput).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actuators.contract.admission import Admission
from actuators.contract.arrays import FloatArray
from actuators.contract.script import Script
from actuators.contract.topology import Topology
from envs.simulator.batch import SimulatedBatch
from envs.study.rules import Rule

WARM_UP_S = 4.0
_AT_ONCE = 50
"""Environments that are played together: their memory, and the arrays of the rule, stay small."""


@dataclass(frozen=True, eq=False)
class Goodput:
    """Sums over each play without its warm-up, ``[plays, groups]``.

    Attributes:
        planned: requests; good, good_first: those answered in time from an attempt's start, or from the first one's.
        offered, refused: attempts.
        answered, seconds: good answers and the sum of their latencies.
        importance: of each group in each play.
    """

    planned: FloatArray
    good: FloatArray
    good_first: FloatArray
    offered: FloatArray
    refused: FloatArray
    answered: FloatArray
    seconds: FloatArray
    importance: FloatArray

    def shares(self) -> FloatArray:
        """``[plays]``: weighted by importance; nan for a play without requests. It can exceed 1: a request of the
        warm-up may be answered after it.
        """
        return _weighted(self.good, self)

    def first_shares(self) -> FloatArray:
        """``[plays]``: from the first attempts, weighted by importance; nan for a play without requests."""
        return _weighted(self.good_first, self)

    def plain_shares(self) -> FloatArray:
        """``[plays]``: of all requests alike."""
        plain: FloatArray = self.good.sum(axis=1) / self.planned.sum(axis=1)
        return plain

    def group_shares(self) -> FloatArray:
        """``[plays, groups]``; nan for a group without requests."""
        with np.errstate(invalid="ignore"):
            return np.where(self.planned > 0, self.good / np.maximum(self.planned, 1), np.nan)

    def refused_ratio(self) -> float:
        """Of all attempts."""
        return float(self.refused.sum() / self.offered.sum())

    def mean_s(self) -> float:
        """Mean latency of good answers, from an attempt's start."""
        return float(self.seconds.sum() / self.answered.sum())


def _weighted(good: FloatArray, of: Goodput) -> FloatArray:
    with np.errstate(invalid="ignore", divide="ignore"):
        weighted: FloatArray = (of.importance * good).sum(axis=1) / (of.importance * of.planned).sum(axis=1)
    return np.where(of.planned.sum(axis=1) > 0, weighted, np.nan)


def play_admission(
    rule: Rule,
    scripts: Sequence[Script],
    topology: Topology,
    admissions: Sequence[Admission] | None,
    *,
    warm_up_s: float = WARM_UP_S,
    interval_s: float = 1.0,
    threads: int = 1,
) -> Goodput:
    """Plays every script with its admission to its end; all must be equally long. None lets everything in."""
    parts = []
    for first in range(0, len(scripts), _AT_ONCE):
        some = slice(first, first + _AT_ONCE)
        admitted = None if admissions is None else admissions[some]
        parts.append(_play(rule, scripts[some], topology, admitted, warm_up_s, interval_s, threads))
    return Goodput(*(np.concatenate(arrays) for arrays in zip(*(vars(part).values() for part in parts), strict=True)))


def _play(
    rule: Rule, scripts: Sequence[Script], topology: Topology, admissions: Sequence[Admission] | None,
    warm_up_s: float, interval_s: float, threads: int,
) -> Goodput:  # fmt: skip
    batch = SimulatedBatch(topology, len(scripts), rule.method, options=rule.options, threads=threads)
    for index, script in enumerate(scripts):
        batch.reset(index, script)
    batch.admit(admissions)
    steer = rule.steering() if rule.steering else None
    sums = np.zeros((7, len(scripts), len(topology.groups)))
    window = None
    for tick in range(round(scripts[0].duration_s / interval_s)):
        if steer is not None:
            steer(batch, scripts, window)
        window = batch.advance(interval_s)
        if tick * interval_s >= warm_up_s:
            counts = window.attempts
            sums += (
                window.planned, counts.good, counts.good_first, counts.offered, counts.refused,
                window.answered - window.failed, window.latency_s_sum,
            )  # fmt: skip
    importance = np.array([s.importance or (1.0,) * len(topology.groups) for s in scripts])
    arrays = [*sums, importance]
    return Goodput(*arrays)
