"""Bench `admission`: overload protection, simulated."""

from __future__ import annotations

from collections.abc import Sequence

from rayjobs.bench.admission import simulated
from rayjobs.bench.parts.bars import Bar, BenchContext


def measure(context: BenchContext) -> Sequence[Bar]:
    """Goodput of the rules on family H and S1 to S10, simulated (docs/results.md#bench-admission)."""
    return simulated.measure(context)
