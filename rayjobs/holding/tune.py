"""`deepsched holding tune`: searches order, θ, slots and refuse factor for one recorded system, simulated, and judges
them.

A separate verb and not a space of `sweep`, as `admission tune`: a trial is seconds of simulation without a policy, so
that a sweep's encoder, its number of clusters K, training and live confirmation mean nothing here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

import numpy as np
from pydantic import Field

from actuators.contract.arrays import FloatArray
from actuators.contract.late_binding import LateBindingPlan
from actuators.errors import ConfigError, closest
from actuators.files import write_json
from actuators.options import Never, Only
from envs.calibration.tuned_holding import FILE
from rayjobs.cli.config import resumed
from rayjobs.cli.interrupts import kept
from rayjobs.cli.main import Verb
from rayjobs.cli.progress import Progress, Stage
from rayjobs.runs.folder import RunFolder
from tuning.search.holding_options import HoldingObjective, HoldingSearchOptions

if TYPE_CHECKING:
    from envs.calibration.result import Calibration
    from envs.calibration.tuned_holding import TunedHolding
    from tuning.search.holding_numbers import HeldSystem, HoldingJudged, Played

REQUESTS_PER_S = 4e5
"""What one thread simulates, roughly; only for the display."""
TRIALS, SEARCHES, CALIBRATION = "trials.jsonl", "searches.json", "calibration.json"


class TuneOptions(LateBindingPlan):
    """One search. Its results: `holding.json`, which `holding set` reads, `searches.json` and `trials.jsonl`."""

    only: ClassVar = {
        "load_balancers": Never("it is tuned for one NGINX with all the traffic of the recording"),
        "numbers.valid_s": Never("it makes no difference in a simulation"),
    }

    calibration: Annotated[Path | None, Only(resume=None)] = None
    """`calibration.json` of the system, as `onboard` and `calibrate` write it; needed unless a search goes on."""
    workers: Annotated[float | None, Field(ge=1, le=1e4)] = None
    """Requests that a server is believed to serve at once; those of the calibration when not given."""
    seed: int = Field(default=1, ge=0, le=10**9)
    """Fixes the drawn systems and what is tried."""
    out: Annotated[Path | None, Only(resume=None)] = None
    """Folder for the search's folder; `runs` when not given."""
    resume: Path | None = None
    """Folder of an interrupted search: continues it with its options, without its finished trials. A new search when
    not given."""
    objective: HoldingObjective = HoldingObjective()
    """What is wanted."""
    search: HoldingSearchOptions = HoldingSearchOptions()
    """How much is searched."""

    def resolved(self) -> Self:
        return self if self.resume is None else resumed(self, self.resume)


def run(options: TuneOptions) -> int:
    """0 with and without a gain; without one the numbers stay those that the search began with."""
    from envs.calibration.result import Calibration
    from rayjobs.cli.console import console_out

    options = options.resolved()
    if options.resume is not None:
        folder = RunFolder(options.resume)
        system = _system(options, Calibration.load(folder.path / CALIBRATION))
    else:
        if options.calibration is None:
            remedy = "give calibration.json of onboard or calibrate"
            raise ConfigError("no system was given", where="--calibration", remedy=remedy)
        system = _system(options, Calibration.load(options.calibration))
        folder = RunFolder.create(options.out, "holding-tune", options.seed, options)
        system.calibration.save(folder.path / CALIBRATION)
    with kept(lambda: f"go on with: deepsched holding tune --resume {folder.path}"):
        found, judged = _search(options, folder, system)
    for line in _told(found, judged):
        console_out().print(line, markup=False, soft_wrap=True)
    console_out().print(f"numbers: {folder.path / FILE}", markup=False, soft_wrap=True)
    return 0


def _system(options: TuneOptions, calibration: Calibration) -> HeldSystem:
    """The system. Raises ConfigError before anything is searched."""
    from tuning.search.holding_numbers import HeldSystem

    for name in options.objective.groups:
        if name not in calibration.groups:
            remedy = closest(name, calibration.groups)
            raise ConfigError(f"no group '{name}' in the calibration", where="objective.groups", remedy=remedy)
    wanted = options.objective
    if wanted.mean + wanted.p99 + wanted.goodput == 0 or all(wanted.groups.get(n) == 0 for n in calibration.groups):
        raise ConfigError("every weight is 0", where="objective", remedy="give one of mean, p99, goodput")
    system = HeldSystem(calibration, options, options.workers or float(calibration.parameters.workers))
    believed = np.full(len(calibration.servers), system.workers)
    options.binding(calibration.topology, system.deadlines_s, believed)
    return system


def _search(options: TuneOptions, folder: RunFolder, system: HeldSystem) -> tuple[TunedHolding, HoldingJudged]:
    from tuning.search.holding_numbers import search_all, tuned_holding
    from tuning.search.trials import Trials

    with Progress(_stages(options, system)) as progress, progress.stage("search") as stage:
        trials, threads = Trials(folder.path / TRIALS), os.cpu_count() or 1
        judged = search_all(system, options.objective, options.search, options.seed, threads, trials, stage.update)
    found = tuned_holding(system, judged, options.seed)
    write_json(folder.path / FILE, found.model_dump(mode="json"))
    write_json(folder.path / SEARCHES, judged.to_json())
    return found, judged


def _told(found: TunedHolding, judged: HoldingJudged) -> Iterator[str]:
    how = f"simulated, {found.draws} held-out systems within the uncertainty of the calibration"
    gain = f"{found.gain:+.4f} ({found.low:+.4f} to {found.high:+.4f})"
    if found.gained:
        yield f"objective {gain} over the numbers before ({how})"
    else:
        yield f"nothing was gained: {gain} for the best that was found, so the numbers stay as they were ({how})"
    mean, low, high = found.over_expected_delay
    word = "better than" if low > 0 else "worse than" if high < 0 else "as good as"
    yield f"with these numbers late binding is {word} expected_delay: objective {mean:+.4f} ({low:+.4f} to {high:+.4f})"
    chosen, first, delayed = judged.played
    rows = (
        ("these numbers", chosen if found.gained else first),
        ("numbers before", first),
        ("expected_delay", delayed),
    )
    for name, played in rows:
        for g, group in enumerate(found.groups):
            yield f"{name:<14}  {group}: {_figures(played, g)}"
    each = "; ".join(f"{gain.mean:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})" for gain in judged.gains)
    yield f"all searches, each with other drawn systems: {each}"
    if found.gained:
        numbers = found.numbers
        refuses = "off" if numbers.refuse_factor is None else f"{numbers.refuse_factor:.2f}"
        yield (
            f"order {numbers.order}, theta {numbers.theta:.2f}, slots_per_worker {numbers.slots_per_worker:.2f},"
            f" waiting_weight {numbers.waiting_weight:.2f}, late_weight {numbers.late_weight:.2f},"
            f" refuse_factor {refuses}"
        )


def _figures(played: Played, group: int) -> str:
    def mean(values: FloatArray) -> float:
        column = values[:, group]
        return float(np.nanmean(column)) if not np.isnan(column).all() else float("nan")

    return (
        f"mean {1e3 * mean(played.mean_s):.1f} ms, p99 {1e3 * mean(played.p99_s):.0f} ms, in time"
        f" {mean(played.goodput):.2%}, refused {mean(played.refused):.2%}"
    )


def _stages(options: TuneOptions, system: HeldSystem) -> list[Stage]:
    search = options.search
    draws = search.searches * (search.trials * search.draws + 2 * search.held_out) + 3 * search.held_out
    requests = draws * search.seconds * search.load_factor * float(system.calibration.rates_rps.sum())
    return [Stage("search", 5 + requests / REQUESTS_PER_S / (os.cpu_count() or 1))]


VERB = Verb(
    name="holding tune",
    example="deepsched holding tune --calibration DIR/onboard/calibration.json --set search.load_factor=1.3"
    " --set objective.goodput=5",
    options=TuneOptions,
    run=run,
    common=(
        "calibration", "workers", "deadlines_ms", "importance", "never_refused", "seed", "out", "resume",
        "objective.mean", "objective.p99", "objective.goodput", "search.load_factor",
    ),
)  # fmt: skip
