"""What a bundle says about its origin: seed, command, config, versions, training curve, evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import yaml

from rayjobs.runs import RunFolder, versions
from tuning.training import CurveRow


def provenance(run: RunFolder, seed: int, curve: Sequence[CurveRow]) -> dict[str, Any]:
    """Plain JSON for `bundle.json`; unknown numbers of the curve are null."""
    return {
        "seed": seed,
        "command": (run.path / "command.txt").read_text().strip(),
        "config": yaml.safe_load((run.path / "config.yaml").read_text()),
        "versions": versions(),
        "curve": [_finite(asdict(row)) for row in curve],
    }


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
