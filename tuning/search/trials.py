"""What every search of a rule's numbers on simulated systems needs: trials that are kept, samplers, paired gains."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from scipy.special import stdtrit

from actuators.contract.arrays import FloatArray


@dataclass(frozen=True)
class Gain:
    """What numbers are worth more than the first ones, paired over held-out draws, with its 95 % interval."""

    mean: float
    low: float
    high: float


class Trials:
    """Finished trials as JSON lines, in order.

    Args:
        path: read when it exists; a torn last line, of a process that was killed, is dropped.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[dict[str, Any]] = []
        if path.exists():
            whole = path.read_bytes().splitlines(keepends=True)
            self._rows = [json.loads(line) for line in whole if line.endswith(b"\n")]
            if whole and not whole[-1].endswith(b"\n"):
                path.write_bytes(b"".join(whole[:-1]))

    def of(self, search: int) -> list[dict[str, Any]]:
        """Those of a search: `params` and `score`."""
        return [row for row in self._rows if row["search"] == search]

    def append(self, search: int, params: Mapping[str, Any], score: float) -> None:
        row = {"search": search, "params": dict(params), "score": score}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._rows.append(row)


def paired_gain(differences: FloatArray) -> Gain:
    """Mean and 95 % interval (Student's t) over draws."""
    mean, n = float(differences.mean()), len(differences)
    half = float(stdtrit(n - 1, 0.975) * differences.std(ddof=1) / math.sqrt(n))
    return Gain(mean, mean - half, mean + half)


def sampler(seed: int, search: int, trial: int) -> optuna.samplers.BaseSampler:
    """One for each trial: what it draws does not depend on interruptions."""
    drawn = int(np.random.default_rng([seed, search, trial]).integers(2**31))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=drawn, multivariate=True)
