"""Bench `simulator`: how fast it is, how it agrees with theory and NGINX, and methods that only it has."""

from __future__ import annotations

from collections.abc import Sequence

from rayjobs.bench.parts.bars import Bar, BenchContext
from rayjobs.bench.simulator import agreement, late_binding, replay

PARTS = {"agreement": agreement.measure, "replay": replay.measure, "late_binding": late_binding.measure}


def measure(context: BenchContext) -> Sequence[Bar]:
    """All parts; quick, without late binding, which is played for many hours of simulated time."""
    parts = [part for name, part in PARTS.items() if not (context.quick and name == "late_binding")]
    return [bar for part in parts for bar in part(context)]
