"""Runs benches by name: a JSON file of each, one of all, one table; nothing in them is typed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from actuators.errors import DataError


@dataclass(frozen=True)
class BenchContext:
    """What a bench gets.

    Attributes:
        seed: of everything random in it.
        quick: measure in under 60 s, with fewer repeats.
        work_dir: an empty folder that is removed afterwards.
        log: says one line on the way.
        kept: a folder for what a bench of many parts goes on from when it is repeated; made by the bench.
    """

    seed: int
    quick: bool
    work_dir: Path
    log: Callable[[str], None]
    kept: Path = Path("runs/bench/kept")


@dataclass(frozen=True)
class Bar:
    """One measured figure and the limit it was held against; make it with `at_most`, `at_least` or `figure`.

    Attributes:
        bar: what was measured, in words.
        value: what this run measured, in `unit`.
        limit: None when nothing is demanded of the figure; `holds` is then True.
        reference: what stood beside it in the same run (another method, another tool), None without one.
        how: how it was measured, in one sentence.
    """

    bar: str
    value: float
    unit: str
    limit: float | None
    holds: bool
    reference: float | str | None
    how: str

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise DataError(f"'{self.bar}' was measured as {self.value}", remedy="the bench got no usable samples")


def at_most(bar: str, value: float, limit: float, unit: str, *, how: str, reference: float | str | None = None) -> Bar:
    """A bar that holds when `value` ≤ `limit`."""
    return Bar(bar, float(value), unit, float(limit), bool(value <= limit), reference, how)


def at_least(bar: str, value: float, limit: float, unit: str, *, how: str, reference: float | str | None = None) -> Bar:
    """A bar that holds when `value` ≥ `limit`."""
    return Bar(bar, float(value), unit, float(limit), bool(value >= limit), reference, how)


def figure(bar: str, value: float, unit: str, *, how: str, reference: float | str | None = None) -> Bar:
    """A figure that is reported and not judged."""
    return Bar(bar, float(value), unit, None, True, reference, how)
