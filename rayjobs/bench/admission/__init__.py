"""Bench `admission`: overload protection, simulated and live."""

from __future__ import annotations

from collections.abc import Sequence

from rayjobs.bench.admission import cpu, live, simulated
from rayjobs.bench.parts.bars import Bar, BenchContext

PARTS = {"simulated": simulated.measure, "cpu": cpu.measure, "live": live.measure}


def measure(context: BenchContext) -> Sequence[Bar]:
    """Goodput of the rules, simulated and in a live surge, and what admission costs (docs/results.md#bench-admission).

    Quick, without the live part, which takes half an hour.
    """
    parts = [part for name, part in PARTS.items() if not (context.quick and name == "live")]
    return [bar for part in parts for bar in part(context)]
