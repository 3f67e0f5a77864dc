"""Numbers of late binding that were found for one system, and what they were worth there, simulated."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from actuators.contract.late_binding import LateBindingNumbers
from actuators.options import Options, read_document

FILE = "holding.json"
_REMEDY = "make one with: deepsched holding tune"


class TunedHolding(Options):
    """What a search has found; `holding.json`."""

    format_version: Literal[1] = 1
    """Version of the file format."""
    numbers: LateBindingNumbers
    """The best numbers; those that the search began with when nothing was gained."""
    groups: tuple[str, ...]
    """Groups of the system."""
    gained: bool
    """Whether the interval of the gain lies above 0."""
    gain: float = Field(allow_inf_nan=False)
    """Objective of the best numbers found, where that of the numbers that the search began with is 0: a mean of paired
    differences over held-out draws of simulated systems."""
    low: float = Field(allow_inf_nan=False)
    """Lower end of the 95 % interval of the gain."""
    high: float = Field(allow_inf_nan=False)
    """Upper end."""
    over_expected_delay: tuple[float, float, float]
    """Objective of `numbers` where that of expected_delay, which holds nothing, is 0: mean and ends of its 95 %
    interval. Below 0 late binding does harm."""
    draws: int = Field(ge=1)
    """Held-out draws behind these figures."""
    seed: int = Field(ge=0)
    """Seed of the search."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """From a file, or from the folder of a search. Raises ConfigError."""
        path = path / FILE if path.is_dir() else path
        found = read_document(cls, path, what="no numbers of late binding", remedy=_REMEDY)
        assert found is not None, "the whole document was asked for"
        return found
