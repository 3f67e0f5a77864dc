"""Options of the search of admission's numbers; apart because `--help` must not import the compiled simulator."""

from __future__ import annotations

from pydantic import Field

from actuators.options import Options


class NumbersSearchOptions(Options):
    """How much is searched. Drawn systems are rounded up to a multiple of eight, the kinds of family H."""

    searches: int = Field(default=3, ge=1, le=20)
    """Independent searches, each on other drawn systems; the one that is best on further systems is judged."""
    trials: int = Field(default=60, ge=2, le=10_000)
    """Numbers that each search tries, those to begin with included."""
    draws: int = Field(default=48, ge=8, le=10_000)
    """Systems of 50 s that every trial plays."""
    held_out: int = Field(default=200, ge=16, le=50_000)
    """Systems on which the searches are compared, and as many others on which the best one is judged."""
