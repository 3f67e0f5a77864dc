"""Bench `peers`: `expected_delay` beside what others would run, simulated rules and live programs (docs/peers.md)."""

from __future__ import annotations

from collections.abc import Sequence

from rayjobs.bench.parts.bars import Bar, BenchContext
from rayjobs.bench.peers import copies, live, simulated

PARTS = {
    "simulated": simulated.measure, "copies": copies.measure, "live": live.measure_fast,
    "live_slow": live.measure_slow, "live_others": live.measure_others,
}  # fmt: skip


def measure(context: BenchContext) -> Sequence[Bar]:
    """All parts."""
    return [bar for part in PARTS.values() for bar in part(context)]
