"""Bench `admission`: overload protection, simulated and live."""

from __future__ import annotations

from collections.abc import Sequence

from rayjobs.bench.admission import cpu, envoy, flash, live, simulated
from rayjobs.bench.parts.bars import Bar, BenchContext

PARTS = {
    "simulated": simulated.measure, "cpu": cpu.measure, "live": live.measure, "flash": flash.measure,
    "envoy": envoy.measure,
}  # fmt: skip
LONG = ("live", "flash", "envoy")
"""What takes a quarter of an hour or more."""


def measure(context: BenchContext) -> Sequence[Bar]:
    """Goodput of the rules, simulated and in a live surge, and what admission costs (docs/results.md#bench-admission).

    Quick, without the long parts.
    """
    parts = [part for name, part in PARTS.items() if not (context.quick and name in LONG)]
    return [bar for part in parts for bar in part(context)]
