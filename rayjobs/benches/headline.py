"""Bench `headline`: `expected_delay` with service times that are learned, against plain least_conn."""

from __future__ import annotations

from collections.abc import Sequence

from rayjobs.bench import Bar, BenchContext
from rayjobs.bench_headline import headline


def measure(context: BenchContext) -> Sequence[Bar]:
    """Bar 5 of issue 5, and part 2 of its bar 3."""
    return headline(context)
