"""Bench `admission`: overload protection, simulated and live."""

from __future__ import annotations

from collections.abc import Sequence

from rayjobs.bench.admission import live, simulated
from rayjobs.bench.parts.bars import Bar, BenchContext


def measure(context: BenchContext) -> Sequence[Bar]:
    """Goodput of the rules on family H and S1 to S10, simulated; and in a live surge (docs/results.md#bench-admission).

    Quick, without the live part, which takes half an hour.
    """
    found = list(simulated.measure(context))
    return found if context.quick else [*found, *live.measure(context)]
