"""Bench `simulator`: how fast it is, how it agrees with theory and NGINX, and methods that only it has."""

from __future__ import annotations

from collections.abc import Sequence

from rayjobs.bench.parts.bars import Bar, BenchContext
from rayjobs.bench.simulator import agreement, late_binding, late_binding_chaos, late_binding_live, replay, request_cost

PARTS = {
    "agreement": agreement.measure, "replay": replay.measure, "late_binding": late_binding.measure,
    "request_cost": request_cost.measure, "late_binding_live": late_binding_live.measure,
    "late_binding_chaos": late_binding_chaos.chaos, "late_binding_crash": late_binding_chaos.crash,
    "late_binding_soak": late_binding_chaos.soak,
}  # fmt: skip
LONG = ("late_binding", "late_binding_live", "late_binding_chaos", "late_binding_crash", "late_binding_soak")
"""What is played for many hours of simulated time, or for half an hour of a quiet machine."""


def measure(context: BenchContext) -> Sequence[Bar]:
    """All parts; quick, without the long ones."""
    parts = [part for name, part in PARTS.items() if not (context.quick and name in LONG)]
    return [bar for part in parts for bar in part(context)]
