"""Bench `training`: what policies learn by PPO in simulation, how fast, and that it repeats."""

from __future__ import annotations

from collections.abc import Sequence

from rayjobs.bench import Bar, BenchContext
from rayjobs.bench_learning import learning


def measure(context: BenchContext) -> Sequence[Bar]:
    """Bars 1 (end to end), 4, 6 and 8 of issue 5."""
    return list(learning(context))
