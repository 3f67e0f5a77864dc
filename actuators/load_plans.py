"""Load plans: what the options say, as streams of rate steps. `random` is the project's first generator's."""

from __future__ import annotations

import csv
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from actuators.errors import ConfigError
from actuators.load_build import engine_path
from actuators.load_plan_file import parse_plan
from actuators.options import Options
from actuators.script import ArrivalDistribution, RateStep, Stream

PlanKind = Literal["random", "constant", "steps", "diurnal", "trace"]

_STEPS_PER_PERIOD = 120


class PlanOptions(Options):
    """Which requests arrive when. Rates are of all types together, shared by `mix`, but in `random` and `trace`."""

    plan: PlanKind = "random"
    """random: per type, bursts of random distribution, rate and length with pauses; constant; steps; diurnal; trace."""
    duration_s: float = Field(600.0, gt=0)
    """Total time of the plan."""
    seed: int = Field(1, ge=0)
    """Of the plan, the arrivals and the requests."""
    distribution: ArrivalDistribution = "exponential"
    """Of the gaps between requests, mean 1/rate; `normal` has half its mean as standard deviation, `fixed` is even."""
    mix: dict[str, float] = Field({"compose": 0.1, "home_read": 0.6, "user_read": 0.3})
    """Request type to its share of the rate; shares need not sum to 1."""
    rate_rps: float = Field(300.0, gt=0)
    """constant: the rate."""
    steps: tuple[str, ...] = ("0:100", "20:500", "40:100")
    """steps: START_S:RATE_RPS, each until the next; rate 0 is silence."""
    low_rps: float = Field(50.0, ge=0)
    """diurnal: rate at the start, the lowest."""
    high_rps: float = Field(500.0, gt=0)
    """diurnal: rate half a period later, the highest."""
    period_s: float = Field(120.0, gt=0)
    """diurnal: length of one day."""
    trace: Path | None = None
    """trace: CSV file with the header time_s,TYPE,TYPE…; rates per type from that time on, until the next row."""
    min_rate_rps: float = Field(100.0, gt=0)
    """random: lowest rate of a burst, per type."""
    max_rate_rps: float = Field(2000.0, gt=0)
    """random: highest rate of a burst, per type."""
    min_burst_s: float = Field(30.0, gt=0)
    """random: shortest burst."""
    max_burst_s: float = Field(600.0, gt=0)
    """random: longest burst."""
    min_backoff_s: float = Field(10.0, gt=0)
    """random: shortest pause after a burst."""
    max_backoff_s: float = Field(100.0, gt=0)
    """random: longest pause after a burst."""


def make_streams(options: PlanOptions) -> tuple[Stream, ...]:
    """The plan's streams; equal options give equal streams.

    Raises:
        ConfigError: a bound, step, share or trace makes no sense.
        MissingToolError: `random` without a compiler for the engine that draws it.
    """
    if options.plan == "random":
        return random_streams(options)
    if options.plan == "trace":
        return trace_streams(options)
    if options.plan == "constant":
        steps = [(0.0, options.rate_rps)]
    elif options.plan == "steps":
        steps = [parse_step(text) for text in options.steps]
    else:
        steps = diurnal_steps(options)
    return shared_streams(steps, options)


def random_streams(options: PlanOptions, engine: Path | None = None) -> tuple[Stream, ...]:
    """The same bursts as `gen_load` alone sends with the same seed, time and bounds: it draws them itself."""
    names = (
        "seed", "duration_s", "min_rate_rps", "max_rate_rps", "min_burst_s", "max_burst_s", "min_backoff_s",
        "max_backoff_s",
    )  # fmt: skip
    arguments = [f"--{name.replace('_', '-')}={getattr(options, name)!r}" for name in names]
    command = [str(engine or engine_path()), "--print-plan", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if result.returncode != 0:
        line = result.stderr.strip().removeprefix("gen_load: ")
        raise ConfigError(line, where="random plan", remedy="correct the bounds")
    return parse_plan(result.stdout)


def parse_step(text: str) -> tuple[float, float]:
    """``START_S:RATE_RPS`` as numbers. Raises ConfigError."""
    start, _, rate = text.partition(":")
    try:
        return float(start), float(rate)
    except ValueError as error:
        raise ConfigError(
            f"'{text}' is not a step", where="steps", remedy="write START_S:RATE_RPS, as 20:500"
        ) from error


def diurnal_steps(options: PlanOptions) -> list[tuple[float, float]]:
    """A raised cosine from low to high and back, in steps of a 120th of the period with its middle's rate."""
    if options.low_rps > options.high_rps:
        raise ConfigError(f"low_rps {options.low_rps:g} exceeds high_rps {options.high_rps:g}", where="diurnal plan")
    step_s = options.period_s / _STEPS_PER_PERIOD
    swing_rps = (options.high_rps - options.low_rps) / 2
    steps = []
    for index in range(math.ceil(options.duration_s / step_s)):
        phase = 2 * math.pi * (index + 0.5) / _STEPS_PER_PERIOD
        steps.append((index * step_s, options.low_rps + swing_rps * (1 - math.cos(phase))))
    return steps


def shared_streams(steps: Sequence[tuple[float, float]], options: PlanOptions) -> tuple[Stream, ...]:
    """A stream per type of the mix, each with its share of every step's rate."""
    total = sum(options.mix.values())
    if not options.mix or min(options.mix.values()) < 0 or not total > 0:
        raise ConfigError(f"mix is {options.mix}", where="load plan", remedy="give shares of 0 or more, not all 0")
    return tuple(
        Stream(name, tuple(RateStep(at_s, rate * share / total, options.distribution) for at_s, rate in steps))
        for name, share in options.mix.items()
    )


def trace_streams(options: PlanOptions) -> tuple[Stream, ...]:
    """A stream per column of the trace. Raises ConfigError naming file and line."""
    if options.trace is None:
        raise ConfigError("the trace plan needs a file", where="load plan", remedy="give --trace FILE.csv")
    try:
        with open(options.trace, newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row and not row[0].startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the trace: {error}", where=str(options.trace)) from error
    if len(rows) < 2 or rows[0][0].strip() != "time_s" or len(rows[0]) < 2:
        raise ConfigError(
            "no trace", where=str(options.trace), remedy="begin with the header time_s,TYPE,TYPE…, then rows"
        )
    types = [name.strip() for name in rows[0][1:]]
    table = [_trace_row(row, len(types), f"{options.trace}, row {number}") for number, row in enumerate(rows[1:], 1)]
    if table[0][0] > 0:
        table.insert(0, [0.0] * (len(types) + 1))
    return tuple(
        Stream(name, tuple(RateStep(row[0], row[column], options.distribution) for row in table))
        for column, name in enumerate(types, 1)
    )


def _trace_row(row: Sequence[str], types: int, where: str) -> list[float]:
    try:
        numbers = [float(cell) for cell in row]
    except ValueError as error:
        raise ConfigError(f"not a number: {error}", where=where) from error
    if len(numbers) != types + 1:
        raise ConfigError(f"{len(numbers)} columns", where=where, remedy=f"the header has {types + 1}")
    return numbers
