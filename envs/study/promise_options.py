"""Options of a promise; apart from `promise` because `--help` must not import the compiled simulator."""

from __future__ import annotations

from pydantic import Field

from actuators.options import Options


class PromiseOptions(Options):
    """What is predicted."""

    measure_s: float = Field(default=600.0, ge=10)
    """Measuring time that the promise is for, in seconds, under each of the two ways to balance."""
    pairs: int = Field(default=40, ge=10)
    """Pairs of simulated measurements."""
    growth: float = Field(default=1.5, gt=1, le=10)
    """Factor on today's traffic of the second promise."""
    warm_up_s: float = Field(default=30.0, ge=0)
    """Seconds before each measurement that do not count: what is learned online must be learned."""
