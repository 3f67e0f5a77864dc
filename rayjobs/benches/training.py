"""Bench `training`: what learning wins in simulation: the headline of `expected_delay`, and policies by PPO."""

from __future__ import annotations

from collections.abc import Sequence

from rayjobs.bench import Bar, BenchContext
from rayjobs.bench_headline import headline
from rayjobs.bench_learning import learning


def measure(context: BenchContext) -> Sequence[Bar]:
    """The bars of issue 5 that concern what is learned."""
    return [*headline(context), *learning(context)]
