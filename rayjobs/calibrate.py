"""`deepsched calibrate`: fits the simulator to snapshots of a live system, with confidence intervals."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from actuators.external.balancing import configured_balancing
from actuators.options import NOT_GIVEN, Only, Options
from envs.calibration.options import CalibrateOptions
from rayjobs.cli.main import Verb, run_verb
from rayjobs.runs.recordings import _between, windows_of

if TYPE_CHECKING:
    from envs.calibration.result import Calibration


FILE = "calibration.json"


class CalibrateVerbOptions(Options):
    """One calibration."""

    only: ClassVar = {"calibrate.method": Only(nginx_conf=NOT_GIVEN)}

    snapshots: Path
    """File that `deepsched collect` recorded, or the folder of a run that kept `snapshots.jsonl`."""
    nginx_conf: Path | None = None
    """Main configuration of the recorded NGINX, from which its balancing method and the workers that share no state
    are read (`auto`: as many as this machine has cores); calibrate.load_balancers counts where it is larger, as with
    several NGINX machines. When not given, both are taken from `calibrate`."""
    seed: int = Field(default=1, ge=0)
    """Fixes simulated arrivals and service times, and the resamples."""
    out: Path | None = None
    """Folder for the run's folder; `runs` when not given."""
    groups: tuple[str, ...] = ()
    """Upstream groups to calibrate; all that had requests when not given."""
    calibrate: CalibrateOptions = CalibrateOptions()
    """Balancing method of the recording, the held-out share, and the fit."""


def run(options: CalibrateVerbOptions) -> int:
    """Prints the fitted parameters with 95 % intervals and the held-out comparison; writes `calibration.json`."""
    from envs.calibration.calibrate import calibrate
    from rayjobs.cli.console import console_err, console_out
    from rayjobs.cli.progress import Progress, Stage
    from rayjobs.runs.folder import RunFolder

    windows, topology, notes = windows_of(options.snapshots, options.groups, in_rotation=True)
    fit = as_configured(options, [group.name for group in topology.groups])
    folder = RunFolder.create(options.out, "calibrate", options.seed, options)
    with Progress([Stage("calibrate", 60)]) as progress, progress.stage("calibrate") as stage:
        source = str(options.snapshots)
        calibration = calibrate(windows, topology, fit, options.seed, source, stage.update)
    calibration.save(folder.path / FILE)
    for note in (*notes, *assumptions(options), *warnings(calibration)):
        console_err().print(f"warning: {note}", markup=False, soft_wrap=True)
    tables = (parameters_table, response_table, arrivals_table, comparison_table)
    for table in (make(calibration) for make in tables):
        console_out().print(table)
    console_out().print(f"balanced by {calibration.balancing}", soft_wrap=True, markup=False)
    console_out().print(verdict(calibration), soft_wrap=True, markup=False)
    console_out().print(f"train on it: deepsched train --scenario {folder.path / FILE}", soft_wrap=True, markup=False)
    return 0


def as_configured(options: CalibrateVerbOptions, groups: Sequence[str]) -> CalibrateOptions:
    """How the simulator is fitted, under what the configuration says of these groups where it is given.

    Raises ConfigError as `configured_balancing`.
    """
    if options.nginx_conf is None:
        return options.calibrate
    found = configured_balancing(options.nginx_conf, groups)
    workers = max(found.workers, options.calibrate.load_balancers)
    return options.calibrate.changed({"method": found.method, "load_balancers": workers})


def assumptions(options: CalibrateVerbOptions) -> list[str]:
    """What is assumed of the balancing because nothing was given, in at most one sentence."""
    known = {"calibrate.method": options.calibrate.method, "calibrate.load_balancers": "one shared state"}
    assumed = [] if options.nginx_conf else [path for path in known if not options.given(path)]
    if not assumed:
        return []
    what = " and ".join(known[path] for path in assumed)
    return [f"assumed of the balancing: {what}; give --nginx-conf, or --set {' and --set '.join(assumed)}"]


def verdict(calibration: Calibration) -> str:
    """Whether the simulator passes on held-out windows, in a sentence."""
    bars = "mean within 10 % and p99 within 20 % per group on held-out windows"
    if not all(row.within for row in calibration.compared):
        return f"the simulator does not pass: {bars}"
    if calibration.uncompared:
        return f"too few held-out requests to tell ({', '.join(calibration.uncompared)}): {bars}"
    return f"the simulator passes: {bars}"


def warnings(calibration: Calibration) -> list[str]:
    """What limits the figures, in sentences."""
    notes = []
    if calibration.observed.error_ratio > 0.01:
        notes.append(
            f"{calibration.observed.error_ratio:.1%} of the answers failed; the simulator is fitted without failures"
        )
    if calibration.observed.left_out:
        notes.append(f"{calibration.observed.left_out} windows with faults were left out")
    return notes


def parameters_table(calibration: Calibration) -> Any:
    """Service times per group and server, and the parameters that all servers share."""
    low, high = calibration.interval()
    best = calibration.parameters
    table = _table("fitted parameters", ("parameter", "group", "server", "value", "95 %", "speed"))
    for g, s in np.argwhere(calibration.topology.mask):
        spread = _between(low["service_ms"][g, s], high["service_ms"][g, s])
        value, speed = f"{best.service_ms[g][s]:.2f}", f"{best.speeds[g, s]:.2f}"
        table.add_row("service ms", calibration.groups[g], calibration.servers[s], value, spread, speed)
    for name in ("workers", "service_cv", "overhead_ms"):
        value = f"{getattr(best, name):.3g}"
        table.add_row(name.replace("_", " "), "", "", value, _between(low[name], high[name]), "")
    return table


def response_table(calibration: Calibration) -> Any:
    """Observed response times and deadlines, and the weights in force at the end."""
    table = _table("observed", ("group", "requests", "mean ms", "deviation ms", "deadline ms", "weights"))
    for g, (group, times) in enumerate(zip(calibration.topology.groups, calibration.response_times, strict=True)):
        weights = calibration.today.values[g][calibration.topology.mask[g]]
        figures = (f"{value:.1f}" for value in (times.mean_ms, times.deviation_ms, times.deadline_ms))
        table.add_row(group.name, str(times.requests), *figures, _shortened([str(w) for w in weights]))
    return table


def _shortened(words: list[str], most: int = 12) -> str:
    return " ".join(words if len(words) <= most else [*words[:most], "…"])


def arrivals_table(calibration: Calibration) -> Any:
    """The arrivals of each group."""
    table = _table("arrivals", ("group", "requests/s", "least", "most", "gaps", "dispersion"))
    for name, arrivals in zip(calibration.groups, calibration.arrivals, strict=True):
        rates = [rate for _, rate in arrivals.steps]
        figures = (f"{value:.1f}" for value in (float(np.mean(rates)), min(rates), max(rates)))
        table.add_row(name, *figures, arrivals.distribution, f"{arrivals.dispersion:.2f}")
    return table


def comparison_table(calibration: Calibration) -> Any:
    """Held-out live windows compared with simulated ones."""
    columns = ("group", "server", "requests", "mean ms", "simulated", "p50 ms", "simulated", "p99 ms", "simulated", "")
    table = _table("held-out windows", columns)
    for row in calibration.held_out:
        pairs = zip(row.live_ms, row.simulated_ms, row.errors(), strict=True)
        cells = [text for live, ours, error in pairs for text in (f"{live:.2f}", f"{ours:.2f} ({error:+.0%})")]
        table.add_row(row.group, row.server or "all", str(row.requests), *cells, "" if row.within else "off")
    return table


def _table(title: str, columns: tuple[str, ...]) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("parameter", "group", "server", "gaps") else "right")
    return table


VERB = Verb(
    name="calibrate",
    example="deepsched calibrate snapshots.json --nginx-conf /etc/nginx/nginx.conf",
    options=CalibrateVerbOptions,
    run=run,
    positional=("snapshots",),
    common=(
        "nginx_conf",
        "groups",
        "seed",
        "out",
        "calibrate.method",
        "calibrate.load_balancers",
        "calibrate.workers",
        "calibrate.held_out",
        "calibrate.priorities",
        "calibrate.deadlines_ms",
    ),
)


if __name__ == "__main__":
    sys.exit(run_verb(VERB))
