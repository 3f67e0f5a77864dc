"""The plan file of the load engine: which request each stream sends, and when its rate changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from actuators.errors import ConfigError, closest
from actuators.script import ArrivalDistribution, RateStep, Stream
from actuators.topology import Group, Topology

DISTRIBUTIONS: tuple[str, ...] = get_args(ArrivalDistribution)
_SOCIAL_NETWORK = {"compose": "compose", "home_read": "timeline", "user_read": "timeline"}


def body_of(group: Group, files: Mapping[str, Path]) -> str:
    """The engine's word for what requests of this group carry.

    `compose` and `timeline` as DeathStarBench's wrk2 scripts send them, a file's bytes, or `none`.
    Raises ConfigError when the body file is missing.
    """
    if group.request_type not in files:
        return _SOCIAL_NETWORK.get(group.request_type, "none")
    path = Path(files[group.request_type]).absolute()
    if not path.is_file():
        raise ConfigError(
            f"no body file '{path}'", where=f"type {group.request_type}", remedy="give a file that can be read"
        )
    return f"file:{path}"


def plan_text(topology: Topology, streams: Sequence[Stream], files: Mapping[str, Path]) -> str:
    """The plan file: a stream per group in the topology's order, silent where `streams` has none.

    Raises ConfigError for an unknown or repeated request type, or steps that make no sense.
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
    lines = []
    for group in topology.groups:
        stream = by_type.get(group.request_type, Stream(group.request_type, ()))
        lines.append(f"stream {group.request_type} {group.method} {group.path} {body_of(group, files)}")
        lines += _step_lines(stream)
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
        else:
            steps[request_type].append(RateStep(float(fields[0]), float(fields[1]), fields[2]))  # type: ignore[arg-type]
    return tuple(Stream(name, tuple(rows)) for name, rows in steps.items())


def _step_lines(stream: Stream) -> list[str]:
    lines, previous_s = [], -1.0
    for step in stream.steps:
        _check_step(stream, step, previous_s)
        lines.append(f"step {step.start_s!r} {step.rate_rps!r} {step.distribution}")
        previous_s = step.start_s
    return lines


def _check_step(stream: Stream, step: RateStep, previous_s: float) -> None:
    where = f"type {stream.request_type}, step at {step.start_s:g} s"
    if step.distribution not in DISTRIBUTIONS:
        raise ConfigError(
            f"unknown distribution '{step.distribution}'", where=where, remedy=closest(step.distribution, DISTRIBUTIONS)
        )
    if not (math.isfinite(step.rate_rps) and step.rate_rps >= 0):
        raise ConfigError(f"rate is {step.rate_rps}", where=where, remedy="it must be 0 or more requests per second")
    if (step.start_s != 0 if previous_s < 0 else step.start_s <= previous_s) or not math.isfinite(step.start_s):
        raise ConfigError("steps must begin at 0 s and ascend", where=where, remedy="sort the steps")
