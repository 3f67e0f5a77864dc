"""Figures of the experiment: goodput with intervals, paired differences, and what the worst type gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actuators.contract.arrays import FloatArray
from envs.scenarios.family import KINDS
from envs.study.goodput import Goodput


@dataclass(frozen=True)
class Interval:
    """A mean and two standard errors of it."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: FloatArray) -> Interval:
        """Over independent values ``[n]``."""
        return cls(float(values.mean()), 2 * float(values.std(ddof=1)) / np.sqrt(len(values)))

    def points(self) -> str:
        """In percentage points, with a sign."""
        return f"{100 * self.mean:+.2f} ± {100 * self.half:.2f}"

    def plain(self) -> str:
        """As a share."""
        return f"{self.mean:.3f} ± {self.half:.3f}"


def goodput(trainings: Sequence[Goodput]) -> Interval:
    """U over the draws; of several trainings their mean in each draw."""
    return Interval.of(np.mean([one.shares() for one in trainings], axis=0))


def worst_type(trainings: Sequence[Goodput]) -> Interval:
    """What the type gets that gets least in a draw."""
    return Interval.of(np.mean([_worst(one) for one in trainings], axis=0))


def gain(trainings: Sequence[Goodput], base: Goodput) -> Interval:
    """Paired by draw."""
    return Interval.of(np.mean([one.shares() for one in trainings], axis=0) - base.shares())


def gain_of_worst(trainings: Sequence[Goodput], base: Goodput) -> Interval:
    """Paired by draw; the worst type may be another one."""
    return Interval.of(np.mean([_worst(one) for one in trainings], axis=0) - _worst(base))


def by_kind(trainings: Sequence[Goodput], base: Goodput) -> str:
    """The gain in each kind of family H."""
    gains = np.mean([one.shares() for one in trainings], axis=0) - base.shares()
    kinds = np.arange(len(gains)) % len(KINDS)
    return ", ".join(f"{kind} {Interval.of(gains[kinds == k]).points()}" for k, kind in enumerate(KINDS))


def refused(trainings: Sequence[Goodput]) -> float:
    """Share of the attempts."""
    return float(np.mean([one.refused_ratio() for one in trainings]))


def _worst(found: Goodput) -> FloatArray:
    worst: FloatArray = np.nanmin(found.group_shares(), axis=1)
    return worst
