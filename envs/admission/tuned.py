"""Numbers of an admission rule that were found for one system, and what they were worth there, simulated."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from actuators.contract.admission import AdmissionNumbers, AdmissionRule
from actuators.errors import ConfigError
from actuators.options import Options, read_document

FILE, _BUNDLE = "admission.json", "bundle.json"
_REMEDY = "make one with: deepsched admission tune"


class TunedNumbers(Options):
    """What a search has found; `admission.json`, and `admission` in a bundle's `bundle.json`."""

    format_version: Literal[1] = 1
    """Version of the file format."""
    rule: AdmissionRule
    """The rule whose numbers they are."""
    numbers: AdmissionNumbers
    """The best numbers; those that the search began with when nothing was gained."""
    groups: tuple[str, ...]
    """Groups of the system."""
    gained: bool
    """Whether the interval of the gain lies above 0."""
    gain: float = Field(allow_inf_nan=False)
    """Goodput of the best numbers found less that of the numbers that the search began with, paired over held-out
    draws of simulated systems."""
    low: float = Field(allow_inf_nan=False)
    """Lower end of the 95 % interval of the gain."""
    high: float = Field(allow_inf_nan=False)
    """Upper end."""
    goodput: float = Field(ge=0, le=1)
    """Importance-weighted share of the requests that were answered in time with `numbers`, simulated."""
    without: float = Field(ge=0, le=1)
    """The same when every request may enter."""
    draws: int = Field(ge=1)
    """Held-out draws behind these figures."""
    seed: int = Field(ge=0)
    """Seed of the search."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """From a file, or from the folder of a bundle or of a search. Raises ConfigError."""
        if path.is_dir():
            bundle = path / _BUNDLE
            path = bundle if bundle.exists() else path / FILE
        found = cls._read(path)
        if found is None:
            raise ConfigError("the bundle holds no numbers", where=str(path), remedy=_REMEDY)
        return found

    @classmethod
    def of_bundle(cls, folder: Path) -> Self | None:
        """Those of a bundle, None when it has none or is missing. Raises ConfigError when it cannot be read."""
        path = folder / _BUNDLE
        return cls._read(path) if path.exists() else None

    @classmethod
    def _read(cls, path: Path) -> Self | None:
        member = "admission" if path.name == _BUNDLE else ""
        return read_document(cls, path, what="no numbers of an admission rule", remedy=_REMEDY, member=member)
