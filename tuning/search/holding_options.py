"""Options of the search of late binding's numbers; apart because `--help` must not import the compiled simulator."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from actuators.options import Options

Weight = Annotated[float, Field(ge=0, le=1000)]


class HoldingObjective(Options):
    """What is wanted. Of a group: `mean` and `p99` times the fall of the logarithm of its mean and of its 99th
    percentile, and `goodput` times the rise of the share that is answered in time. A request that is refused or fails
    counts as an answer after 1 s that is late."""

    mean: Weight = 1.0
    """Weight of the mean response time."""
    p99: Weight = 1.0
    """Weight of the 99th percentile."""
    goodput: Weight = 1.0
    """Weight of the share of requests that are answered within their deadline."""
    groups: dict[str, Weight] = Field({})
    """Weight of a group; 1 when not given."""


class HoldingSearchOptions(Options):
    """How much is searched, and in which systems."""

    searches: int = Field(default=2, ge=1, le=20)
    """Independent searches, each on other drawn systems; the one that is best on further systems is judged."""
    trials: int = Field(default=40, ge=2, le=10_000)
    """Numbers that each search tries, those to begin with included."""
    draws: int = Field(default=16, ge=2, le=10_000)
    """Systems that every trial plays."""
    held_out: int = Field(default=64, ge=4, le=50_000)
    """Systems on which the searches are compared, and as many others on which the best one is judged."""
    seconds: float = Field(default=60.0, ge=20, le=3600)
    """Simulated seconds of each system; the first 10 do not count."""
    load_factor: float = Field(default=1.0, gt=0, le=100)
    """Factor on the recorded rates. Each system has this times a number from 0.8 to 1.3: at low load no request waits,
    and no number makes a difference."""
