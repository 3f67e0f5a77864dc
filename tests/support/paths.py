"""Where the repository and the recorded data are."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
VTS = DATA / "vts"
"""Recorded vts documents, one JSON file each."""


def environment_elsewhere() -> dict[str, str]:
    """Variables for a program that must find nothing of this checkout: with its PYTHONPATH, pip takes the checkout's
    own metadata for an installed package.
    """
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    return {name: value for name, value in os.environ.items() if name not in hidden}
