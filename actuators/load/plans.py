"""Load plans: from options to streams of rate steps, and to the plan file of the load engine."""

from __future__ import annotations

import csv
import math
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from actuators.contract.on_off import draw_on_off
from actuators.contract.script import SPREAD, ArrivalDistribution, Clients, RateStep, Stream
from actuators.contract.script_check import MAX_GAP_CV, MAX_RATE_RPS, MIN_GAP_CV, check_gaps
from actuators.contract.topology import Group, Topology
from actuators.errors import ConfigError, closest
from actuators.load.build import engine_path
from actuators.options import Only, Options

PlanKind = Literal["random", "constant", "steps", "diurnal", "on_off", "trace"]
_STEPS_PER_PERIOD, _FOR_ON_OFF = 120, 0x0F
MAX_STEPS = 100_000
"""Of one stream."""
MAX_TRACE_BYTES = 2**24
_ENGINE = "give the path of a gen_load, or none to have it built"
_SOCIAL_NETWORK = {"compose": "compose", "home_read": "timeline", "user_read": "timeline"}


class PlanOptions(Options):
    """Which requests arrive when. Rates are totals that `mix` divides, except in `random` and `trace`."""

    plan: PlanKind = "random"
    """random (bursts of random distribution, rate and length per type with pauses), constant, steps, diurnal, on_off,
    trace."""
    duration_s: float = Field(600.0, gt=0)
    """Length of the plan, in seconds."""
    seed: int = Field(1, ge=0)
    """Seed of the plan, the arrivals and the requests."""
    distribution: Annotated[ArrivalDistribution, Only(plan=("constant", "steps", "diurnal", "on_off", "trace"))] = (
        "exponential"
    )
    """Distribution of the gaps between requests, mean 1/rate; `normal` has a standard deviation of half its mean."""
    gap_cv: Annotated[float, Only(distribution=SPREAD)] = Field(1.0, ge=MIN_GAP_CV, le=MAX_GAP_CV)
    """gamma, weibull: coefficient of variation of the gaps."""
    mix: Annotated[dict[str, Annotated[float, Field(ge=0)]], Only(plan=("constant", "steps", "diurnal", "on_off"))] = (
        Field({"compose": 0.1, "home_read": 0.6, "user_read": 0.3}, min_length=1)
    )
    """Request type to its share of the rate; the shares need not add up to 1."""
    rate_rps: Annotated[float, Only(plan=("constant", "on_off"))] = Field(300.0, gt=0)
    """constant: the rate, in requests per second. on_off: its mean."""
    on_s: Annotated[float, Only(plan="on_off")] = Field(10.0, gt=0)
    """on_off: mean length of a period at the higher rate, in seconds; lengths are exponential."""
    off_s: Annotated[float, Only(plan="on_off")] = Field(30.0, gt=0)
    """on_off: mean length of a period at the lower rate, in seconds."""
    off_factor: Annotated[float, Only(plan="on_off")] = Field(0.0, ge=0, lt=1)
    """on_off: the lower rate, as a share of the mean."""
    steps: Annotated[tuple[str, ...], Only(plan="steps")] = Field(("0:100", "20:500", "40:100"), min_length=1)
    """steps: START_S:RATE_RPS, each until the next; rate 0 means no requests."""
    low_rps: Annotated[float, Only(plan="diurnal")] = Field(50.0, ge=0)
    """diurnal: rate at the start, the lowest."""
    high_rps: Annotated[float, Only(plan="diurnal")] = Field(500.0, gt=0)
    """diurnal: rate half a period later, the highest."""
    period_s: Annotated[float, Only(plan="diurnal")] = Field(120.0, gt=0)
    """diurnal: length of one period, in seconds."""
    trace: Annotated[Path | None, Only(plan="trace")] = None
    """trace: CSV file with the header time_s,TYPE,TYPE…; a row holds the rates per type until the next row.
    The plan cannot run without it."""
    min_rate_rps: Annotated[float, Only(plan="random")] = Field(100.0, gt=0)
    """random: lowest rate of a burst of one type."""
    max_rate_rps: Annotated[float, Only(plan="random")] = Field(2000.0, gt=0)
    """random: highest rate of a burst of one type."""
    min_burst_s: Annotated[float, Only(plan="random")] = Field(30.0, gt=0)
    """random: shortest burst, in seconds."""
    max_burst_s: Annotated[float, Only(plan="random")] = Field(600.0, gt=0)
    """random: longest burst, in seconds."""
    min_backoff_s: Annotated[float, Only(plan="random")] = Field(10.0, gt=0)
    """random: shortest pause after a burst, in seconds."""
    max_backoff_s: Annotated[float, Only(plan="random")] = Field(100.0, gt=0)
    """random: longest pause after a burst, in seconds."""


def make_streams(options: PlanOptions, engine: Path | None = None) -> tuple[Stream, ...]:
    """The plan's streams; equal options give equal streams.

    Args:
        engine: the `gen_load` that draws the bursts of `random`; built on first use when None.

    Raises:
        ConfigError: a bound, step, share or trace is invalid, or `engine` is not a `gen_load`.
        MissingToolError: `random` without a compiler for the engine.
    """
    if options.plan == "random":
        return random_streams(options, engine)
    if options.plan == "trace":
        return trace_streams(options)
    if options.plan == "constant":
        steps = [(0.0, options.rate_rps)]
    elif options.plan == "steps":
        steps = [parse_step(text) for text in options.steps]
    elif options.plan == "on_off":
        steps = [(at_s, options.rate_rps * factor) for at_s, factor in on_off_steps(options)]
    else:
        steps = diurnal_steps(options)
    return shared_streams(steps, options)


def random_streams(options: PlanOptions, engine: Path | None = None) -> tuple[Stream, ...]:
    """The bursts that `gen_load` draws for this seed, duration and bounds. Raises as `make_streams`."""
    _check_count(options.duration_s / (options.min_burst_s + options.min_backoff_s), "bursts", "random plan")
    names = (
        "seed", "duration_s", "min_rate_rps", "max_rate_rps", "min_burst_s", "max_burst_s", "min_backoff_s",
        "max_backoff_s",
    )  # fmt: skip
    arguments = [f"--{name.replace('_', '-')}={getattr(options, name)!r}" for name in names]
    command = [str(engine or engine_path()), "--print-plan", *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"the load engine does not run: {error}", where=command[0], remedy=_ENGINE) from error
    if result.returncode != 0:
        line = result.stderr.strip().removeprefix("gen_load: ")
        raise ConfigError(line, where="random plan", remedy="correct the bounds")
    streams = parse_plan(result.stdout)
    if not streams:
        raise ConfigError("it is not a load engine: it printed no plan", where=command[0], remedy=_ENGINE)
    return streams


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
    """A raised cosine from low to high and back, in steps of 1/120 of the period, each at the rate of its middle."""
    if options.low_rps > options.high_rps:
        what = f"low_rps {options.low_rps:g} exceeds high_rps {options.high_rps:g}"
        raise ConfigError(what, where="diurnal plan", remedy="lower low_rps or raise high_rps")
    step_s = options.period_s / _STEPS_PER_PERIOD
    _check_count(options.duration_s / step_s, "steps", "diurnal plan")
    swing_rps = (options.high_rps - options.low_rps) / 2
    steps = []
    for index in range(math.ceil(options.duration_s / step_s)):
        phase = 2 * math.pi * (index + 0.5) / _STEPS_PER_PERIOD
        steps.append((index * step_s, options.low_rps + swing_rps * (1 - math.cos(phase))))
    return steps


def on_off_steps(options: PlanOptions) -> tuple[tuple[float, float], ...]:
    """(start in s, factor on the rate) of every period. Raises ConfigError for too many."""
    _check_count(2 * options.duration_s / (options.on_s + options.off_s), "periods", "on_off plan")
    generator = np.random.default_rng([options.seed, _FOR_ON_OFF])
    return draw_on_off(options.on_s, options.off_s, options.off_factor, options.duration_s, generator)


def shared_streams(steps: Sequence[tuple[float, float]], options: PlanOptions) -> tuple[Stream, ...]:
    """A stream per type of the mix, each with its share of every step's rate."""
    total = sum(options.mix.values())
    if not options.mix or min(options.mix.values()) < 0 or not total > 0:
        raise ConfigError(f"mix is {options.mix}", where="load plan", remedy="give shares of 0 or more, not all 0")
    return tuple(
        Stream(name, tuple(_step(at_s, rate * share / total, options) for at_s, rate in steps))
        for name, share in options.mix.items()
    )


def trace_streams(options: PlanOptions) -> tuple[Stream, ...]:
    """A stream per column of the trace. Raises ConfigError naming file and line."""
    if options.trace is None:
        raise ConfigError("the trace plan needs a file", where="load plan", remedy="give --trace FILE.csv")
    try:
        with open(options.trace, newline="", encoding="utf-8-sig") as file:
            text = file.read(MAX_TRACE_BYTES + 1)
        # Excel separates by semicolons, and writes 1,5, where the decimal sign is a comma.
        mark = next((mark for mark in ";\t" if text.startswith(f"time_s{mark}")), ",")
        rows = [row for row in csv.reader(text.splitlines(), delimiter=mark) if row and not row[0].startswith("#")]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot read the trace: {error}", where=str(options.trace)) from error
    if len(text) > MAX_TRACE_BYTES or len(rows) > MAX_STEPS:
        raise ConfigError("the trace is too long", where=str(options.trace), remedy=f"give {MAX_STEPS} rows at most")
    if len(rows) < 2 or rows[0][0].strip() != "time_s" or len(rows[0]) < 2:
        raise ConfigError(
            "no trace", where=str(options.trace), remedy="begin with the header time_s,TYPE,TYPE…, then rows"
        )
    if mark != ",":
        rows[1:] = [[cell.replace(",", ".") for cell in row] for row in rows[1:]]
    types = [name.strip() for name in rows[0][1:]]
    table = [_trace_row(row, len(types), f"{options.trace}, row {number}") for number, row in enumerate(rows[1:], 1)]
    if table[0][0] > 0:
        table.insert(0, [0.0] * (len(types) + 1))
    return tuple(
        Stream(name, tuple(_step(row[0], row[column], options) for row in table))
        for column, name in enumerate(types, 1)
    )


def plan_text(
    topology: Topology,
    streams: Sequence[Stream],
    files: Mapping[str, Path],
    clients: Sequence[Clients] = (),
    deadlines_s: Sequence[float] = (),
    *,
    varied: bool = False,
) -> str:
    """The plan file: a stream per group in the topology's order, without requests where `streams` has none.

    Args:
        clients, deadlines_s: per group, or empty.
        varied: reads ask for as many posts as `actuators.social_network.costs` says, in place of ten.

    Raises ConfigError for an unknown or repeated request type, invalid steps, or a body file that is missing or of no
    type of the topology.
    """
    known = topology.request_types
    by_type = {stream.request_type: stream for stream in streams}
    for stream in streams:
        if stream.request_type not in known:
            raise ConfigError(
                f"unknown request type '{stream.request_type}'", remedy=closest(stream.request_type, known)
            )
    if len(by_type) != len(streams) or len(set(known)) != len(known):
        raise ConfigError("a request type is listed twice", where="load plan", remedy="give each type one stream")
    for name in files:
        if name not in known:
            raise ConfigError(f"no requests of type '{name}'", where=f"body_files.{name}", remedy=closest(name, known))
    lines = []
    for g, group in enumerate(topology.groups):
        stream = by_type.get(group.request_type, Stream(group.request_type, ()))
        lines.append(f"stream {group.request_type} {group.method} {group.path} {body_of(group, files, varied=varied)}")
        lines += _step_lines(stream)
        lines += [f"deadline {deadlines_s[g]!r}"] if deadlines_s else []
        lines += [_client_line(clients[g])] if clients else []
    return "\n".join(lines) + "\n"


def parse_plan(text: str) -> tuple[Stream, ...]:
    """The streams of a plan file, as `gen_load --print-plan` writes it."""
    steps: dict[str, list[RateStep]] = {}
    request_type = ""
    for line in text.splitlines():
        word, *fields = line.split()
        if word == "stream":
            request_type = fields[0]
            steps[request_type] = []
        elif word == "step":
            cv = float(fields[3]) if len(fields) > 3 else 1.0
            steps[request_type].append(RateStep(float(fields[0]), float(fields[1]), fields[2], cv))  # type: ignore[arg-type]
    return tuple(Stream(name, tuple(rows)) for name, rows in steps.items())


def body_of(group: Group, files: Mapping[str, Path], *, varied: bool = False) -> str:
    """The body of this group's requests, as the plan file names it.

    `compose` and `timeline` as DeathStarBench's wrk2 scripts send them, `spans` for reads of a varied number of posts,
    `file:PATH`, or `none`.
    Raises ConfigError when the body file is missing.
    """
    if group.request_type not in files:
        kind = _SOCIAL_NETWORK.get(group.request_type, "none")
        return "spans" if varied and kind == "timeline" else kind
    path = Path(files[group.request_type]).absolute()
    if not path.is_file():
        raise ConfigError(
            f"no body file '{path}'", where=f"type {group.request_type}", remedy="give a file that can be read"
        )
    return f"file:{path}"


def _check_count(count: float, what: str, where: str) -> None:
    if count > MAX_STEPS:
        remedy = f"make it shorter, or its parts longer: {MAX_STEPS} are the most"
        raise ConfigError(f"up to {count:.0f} {what}", where=where, remedy=remedy)


def _client_line(clients: Clients) -> str:
    return (
        f"clients {clients.patience_s!r} {clients.retries} {clients.retry_failed!r} {clients.retry_refused!r}"
        f" {clients.backoff_s!r}"
    )


def _step_lines(stream: Stream) -> list[str]:
    lines, previous_s = [], -1.0
    for step in stream.steps:
        _check_step(stream, step, previous_s)
        spread = f" {step.cv!r}" if step.distribution in SPREAD else ""
        lines.append(f"step {step.start_s!r} {step.rate_rps!r} {step.distribution}{spread}")
        previous_s = step.start_s
    return lines


def _check_step(stream: Stream, step: RateStep, previous_s: float) -> None:
    where = f"type {stream.request_type}, step at {step.start_s:g} s"
    check_gaps(step, where)
    if not 0 <= step.rate_rps <= MAX_RATE_RPS:
        remedy = f"it must be from 0 to {MAX_RATE_RPS:g} requests per second"
        raise ConfigError(f"rate is {step.rate_rps}", where=where, remedy=remedy)
    if (step.start_s != 0 if previous_s < 0 else step.start_s <= previous_s) or not math.isfinite(step.start_s):
        raise ConfigError("steps must begin at 0 s and ascend", where=where, remedy="sort the steps")


def _step(at_s: float, rate_rps: float, options: PlanOptions) -> RateStep:
    return RateStep(at_s, rate_rps, options.distribution, options.gap_cv if options.distribution in SPREAD else 1.0)


def _trace_row(row: Sequence[str], types: int, where: str) -> list[float]:
    try:
        numbers = [float(cell) for cell in row]
    except ValueError as error:
        raise ConfigError(f"not a number: {error}", where=where, remedy="write a time and a rate per type") from error
    if len(numbers) != types + 1:
        raise ConfigError(f"{len(numbers)} columns", where=where, remedy=f"the header has {types + 1}")
    return numbers
