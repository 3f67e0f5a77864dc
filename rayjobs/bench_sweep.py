"""The sweep of the configuration `sweep-ppo` for the bench `sweep`, as the verb runs it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rayjobs.config import load_options
from rayjobs.sweep import SweepOptions, run

CONFIG = Path("sweep-ppo")


@dataclass(frozen=True)
class TimedSweep:
    """What a sweep left behind.

    Attributes:
        table: its `sweep.parquet`, best first.
        usage: where the cores' time went while trials ran (`rayjobs.usage`): `busy_share`, CPU time of its Ray and
            driver over wall clock and cores, 0…1, and the rest.
        confirmed: one evaluation per live testbed; empty when none were asked for.
    """

    table: pd.DataFrame
    usage: dict[str, Any]
    confirmed: list[dict[str, Any]]

    def live_ratios(self) -> list[float]:
        """Mean latency of the best trial over that of least_conn, one per live testbed."""
        found = [evaluation["policies"] for evaluation in self.confirmed]
        return [one["learned"]["mean_ms"] / one["least_conn"]["mean_ms"] for one in found]


def timed_sweep(seed: int, out: Path, *, quick: bool) -> TimedSweep:
    """Runs `deepsched sweep --config sweep-ppo`; four short trials and nothing live when quick."""
    short = ("search.trials=4", "search.base.training.steps=2400", "confirm.best=0") if quick else ()
    options = load_options(SweepOptions, file=CONFIG, assignments=short, flags={"seed": seed, "out": out})
    run(options)
    (folder,) = out.iterdir()
    confirmed = folder / "confirmed.json"
    return TimedSweep(
        pd.read_parquet(folder / "sweep.parquet"),
        json.loads((folder / "usage.json").read_text()),
        json.loads(confirmed.read_text()) if confirmed.exists() else [],
    )
