"""`deepsched admission tune`: searches the numbers of a rule for one recorded system, simulated, and judges them.

A separate verb and not a space of `sweep`: a sweep trains policies in Ray trials, and none of its options (encoder,
training, validation, live confirmation) means anything here, where a trial is a second of simulation.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field

from actuators.errors import ConfigError
from actuators.files import write_json
from actuators.options import Only
from envs.admission.tuned import FILE, TunedNumbers
from envs.calibration.options import AdmissionPlan
from rayjobs.calibrate import FILE as CALIBRATION
from rayjobs.cli.config import resumed
from rayjobs.cli.interrupts import kept
from rayjobs.cli.main import Verb
from rayjobs.cli.progress import Progress, Stage
from rayjobs.runs.folder import RunFolder
from tuning.search.admission_options import NumbersSearchOptions

if TYPE_CHECKING:
    from envs.calibration.result import Calibration
    from tuning.search.admission_numbers import Judged, System

ATTEMPTS_PER_S = 1.2e6
"""What one thread simulates, roughly; only for the display."""
TRIALS, SEARCHES, FIRST = "trials.jsonl", "searches.json", "first.json"
"""Trials and results of the searches, and what `numbers_file` had when the search began, if it was given."""


class TuneOptions(AdmissionPlan):
    """One search. Its results: `admission.json`, which `admission set` reads, `searches.json` and `trials.jsonl`."""

    calibration: Annotated[Path | None, Only(resume=None)] = None
    """`calibration.json` of the system, as `onboard` and `calibrate` write it; needed unless a search goes on."""
    seed: int = Field(default=1, ge=0, le=10**9)
    """Fixes the drawn systems and what is tried."""
    out: Annotated[Path | None, Only(resume=None)] = None
    """Folder for the search's folder; `runs` when not given."""
    resume: Path | None = None
    """Folder of an interrupted search: continues it with its options, without its finished trials. A new search when
    not given."""
    bundle: Path | None = None
    """Bundle of the same system that receives the numbers; none when not given."""
    search: NumbersSearchOptions = NumbersSearchOptions()
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
        if (folder.path / FIRST).exists():
            options = options.changed({"numbers_file": folder.path / FIRST})
        calibration = Calibration.load(folder.path / CALIBRATION)
    else:
        calibration = _checked(options)
        folder = RunFolder.create(options.out, "admission-tune", options.seed, options)
        calibration.save(folder.path / CALIBRATION)
        if options.numbers_file is not None:
            write_json(folder.path / FIRST, TunedNumbers.load(options.numbers_file).model_dump(mode="json"))
    with kept(lambda: f"go on with: deepsched admission tune --resume {folder.path}"):
        found, judged = _search(options, folder, calibration)
    for line in _told(found, judged):
        console_out().print(line, markup=False, soft_wrap=True)
    console_out().print(f"numbers: {folder.path / FILE}", markup=False, soft_wrap=True)
    return 0


def _checked(options: TuneOptions) -> Calibration:
    """The system. Raises ConfigError or BundleError before anything is searched."""
    from envs.calibration.admission import calibrated_admission
    from envs.calibration.result import Calibration
    from tuning.policy.bundle import load_bundle

    if options.calibration is None:
        remedy = "give calibration.json of onboard or calibrate"
        raise ConfigError("no system was given", where="--calibration", remedy=remedy)
    if options.rule == "none":
        raise ConfigError("'none' has no numbers", where="--rule", remedy="name another rule")
    calibration = Calibration.load(options.calibration)
    calibrated_admission(calibration, options, 100.0)
    if options.bundle is not None:
        own = tuple(group.name for group in load_bundle(options.bundle).problem.topology.groups)
        if own != calibration.groups:
            what = f"the bundle is of the groups {', '.join(own)[:200]}"
            raise ConfigError(what, where=str(options.bundle), remedy="give a bundle of the calibrated system")
    return calibration


def _search(options: TuneOptions, folder: RunFolder, calibration: Calibration) -> tuple[TunedNumbers, Judged]:
    from envs.calibration.admission import calibrated_admission
    from tuning.policy.bundle import put_admission
    from tuning.search.admission_numbers import System, search_all, tuned
    from tuning.search.trials import Trials

    system = System(calibration, calibrated_admission(calibration, options, 100.0))
    search = options.search
    with Progress(_stages(options, system)) as progress, progress.stage("search") as stage:
        trials = Trials(folder.path / TRIALS)
        judged = search_all(system, search, options.seed, os.cpu_count() or 1, trials, stage.update)
    found = tuned(system, judged, options.seed)
    write_json(folder.path / FILE, found.model_dump(mode="json"))
    write_json(folder.path / SEARCHES, judged.to_json())
    if options.bundle is not None:
        put_admission(options.bundle, found)
    return found, judged


def _told(found: TunedNumbers, judged: Judged) -> Iterator[str]:
    how = f"simulated, {found.draws} held-out systems of family H around yours"
    gain = f"{_points(found.gain)} points ({_points(found.low)} to {_points(found.high)})"
    _, first, _ = judged.mean_goodput
    if found.gained:
        yield f"goodput {found.goodput:.3f}, {gain} more than with the numbers before ({how})"
    else:
        yield f"nothing was gained: {gain} for the best that was found, so the numbers stay as they were ({how})"
    yield f"goodput with the numbers before {first:.3f}, without admission {found.without:.3f}"
    refused, before = judged.refused
    yield f"refused when nothing happens: {refused:.2%}, before {before:.2%}; " + (
        f"goodput of the worst group: {judged.worst_group[0]:.3f}, before {judged.worst_group[1]:.3f}"
    )
    each = "; ".join(f"{_points(gain.mean)} ({_points(gain.low)} to {_points(gain.high)})" for gain in judged.gains)
    yield f"all searches, each with other drawn systems: {each}"
    if found.gained:
        changed = found.numbers.model_dump()
        yield ", ".join(f"{name} {value:.3g}" for name, value in changed.items())


def _points(share: float) -> str:
    return f"{100 * share:+.2f}"


def _stages(options: TuneOptions, system: System) -> list[Stage]:
    search = options.search
    draws = search.searches * (search.trials * search.draws + 2 * search.held_out)
    attempts = draws * 50.0 * float(system.calibration.rates_rps.sum())
    return [Stage("search", 5 + attempts / ATTEMPTS_PER_S / (os.cpu_count() or 1))]


VERB = Verb(
    name="admission tune",
    example="deepsched admission tune --calibration DIR/onboard/calibration.json",
    options=TuneOptions,
    run=run,
    common=(
        "calibration", "rule", "importance", "never_refused", "deadlines_ms", "load_balancers", "seed", "out", "resume",
        "bundle", "search.searches", "search.trials", "search.draws",
    ),
)  # fmt: skip
