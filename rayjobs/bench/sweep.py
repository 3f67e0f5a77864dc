"""Bench `sweep`: 32 simulated trials on all cores, the best of them on live testbeds, as `deepsched sweep` does.

The sweep of the configuration `sweep-ppo` for the bench `sweep`, as the verb runs it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rayjobs.bench.parts.bars import Bar, BenchContext, at_least, at_most, figure
from rayjobs.cli.config import load_options
from rayjobs.sweep import SweepOptions, run

MINUTES = 20.0
BUSY_SHARE = 0.85
PHASES = {
    "start": "until the first result",
    "full": "while all places were taken",
    "tail": "after there was no trial left for a place",
}
LEFT = {
    "idle_s": "that idled",
    "others_s": "that other programs and the system took",
    "stolen_s": "that the host of this virtual machine kept",
}


def measure(context: BenchContext) -> Sequence[Bar]:
    """Duration, use of the cores and outcome; four short trials and nothing live when quick."""
    began_s = time.monotonic()
    found = timed_sweep(context.seed, context.work_dir / "sweep", quick=context.quick)
    minutes, trials = (time.monotonic() - began_s) / 60, len(found.table)
    how = "the configuration sweep-ppo, with the judgement on live testbeds" if found.confirmed else "few short trials"
    bars = [at_most(f"sweep of {trials} trials", minutes, MINUTES, "minutes", how=how)]
    how = "CPU time of its Ray and driver while trials ran"
    # Four short trials are mostly the start of their processes.
    name = "share of the cores that its trials kept busy"
    usage = found.usage
    share, had_s = usage["busy_share"], usage["seconds"] * usage["cores"]
    bars.append(figure(name, share, "", how=how) if context.quick else at_least(name, share, BUSY_SHARE, "", how=how))
    for kind, what in LEFT.items():
        bars.append(figure(f"share of the cores {what}", usage[kind] / had_s, "", how="meanwhile"))
    for phase, what in PHASES.items():
        idle_s = usage["phases"].get(phase, {}).get("idle_s", 0.0)
        bars.append(figure(f"share of the cores that idled {what}", idle_s / had_s, "", how="of all of the time"))
    best = found.table["score"].iloc[0]
    bars.append(figure("best score", best, "log ratio to least_conn", how="validation episodes"))
    for number, ratio in enumerate(found.live_ratios(), 1):
        how = "the best trial over least_conn, both on this testbed"
        bars.append(figure(f"mean latency on live testbed {number}", ratio, "x least_conn", how=how))
    return bars


CONFIG = Path("sweep-ppo")


@dataclass(frozen=True)
class TimedSweep:
    """What a sweep left behind.

    Attributes:
        table: its `sweep.parquet`, best first.
        usage: where the cores' time went while trials ran (`rayjobs.runs.usage`): `busy_share`, CPU time of its Ray and
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
