"""Bench `learner`: what a step of learning costs, and what several learners reach with the same budget."""

from __future__ import annotations

from collections.abc import Sequence

from rayjobs.bench.learner import learners, pace
from rayjobs.bench.parts.bars import Bar, BenchContext

PARTS = {"pace": pace.measure, "learners": learners.measure}
"""`learners` takes about an hour, goes on from where it was interrupted, and is measured when it is asked for alone."""


def measure(context: BenchContext) -> Sequence[Bar]:
    """The part `pace`."""
    return pace.measure(context)
