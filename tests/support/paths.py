"""Where the repository and the recorded data are."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
VTS = DATA / "vts"
"""Recorded vts documents, one JSON file each."""
