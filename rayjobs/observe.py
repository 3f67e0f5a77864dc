"""`deepsched observe`: watch a testbed, derive deadlines, fit the Gaussian mixture; nothing is learned yet."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from pydantic import Field

from actuators.errors import ConfigError
from actuators.options import Options
from actuators.parts import LiveOptions
from rayjobs.cli import Verb, run_verb
from rayjobs.progress import Progress, Stage
from rayjobs.runs import RunFolder
from rayjobs.testbeds import TestbedKind, open_testbed
from tuning.observing import ObserveOptions
from tuning.options import TrainingOptions

EXIT_RECALIBRATE = 3


class ObserveVerbOptions(Options):
    """One observation phase."""

    seed: int = Field(default=1, ge=0)
    """Fixes arrivals, service times, exploring weights and the mixture's start."""
    out: Path | None = None
    """Folder for the run's folder; `runs` when not given."""
    testbed: TestbedKind = "simulated"
    """`live` starts servers, an NGINX and load on this machine."""
    scenario: str = "demo"
    """What happens meanwhile: `deepsched scenarios list`."""
    observe: ObserveOptions = ObserveOptions()
    """Durations and the mixture."""
    live: LiveOptions = LiveOptions()
    """The parts of a live testbed."""
    check: Path | None = None
    """Instead of watching: a bundle or the folder of an earlier `observe`, whose encoder is checked against
    `snapshots`; exit code 3 when it must be recalibrated."""
    snapshots: Path | None = None
    """check: a file that `deepsched collect` recorded, or the folder of a run that kept `snapshots.jsonl`."""
    novel_share: float = Field(default=0.2, gt=0, lt=1)
    """check: share of novel windows above which the encoder must be recalibrated."""


def run(options: ObserveVerbOptions) -> int:
    """Prints deadlines, clusters and the folder with `deadlines.json`, `encoder.npz` and, live, `snapshots.jsonl`."""
    if options.check is not None:
        return check_encoder(options, options.check)
    from envs.scenarios import scenario
    from rayjobs.console import results
    from rayjobs.local_ray import ray_session
    from rayjobs.states import PAGE, keep_states
    from rayjobs.steps import Steps

    folder = RunFolder.create(options.out, "observe", options.seed, options)
    live = options.testbed == "live"
    seconds = options.observe.skip_s + options.observe.duration_s + options.observe.explore_s
    stages = [Stage("start", 20 if live else 2), Stage("observe", 2 + (seconds if live else 0))]
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress(stages))
        with progress.stage("start"):
            if live:
                stack.enter_context(ray_session())
            work_dir = folder.path / "testbed"
            testbed = stack.enter_context(open_testbed(options.testbed, work_dir, options.seed, options.live))
        steps = Steps(folder, progress, options.seed)
        observed = steps.observe(testbed, scenario(options.scenario), options.observe, TrainingOptions())
        found = keep_states(folder, observed, options.observe.encoder, options.seed)
    for group, seconds in zip(testbed.topology.groups, observed.deadlines.seconds, strict=True):
        results().print(f"{group.request_type}: deadline {1e3 * seconds:.1f} ms")
    encoder = observed.problem.encoder
    criterion = options.observe.encoder.criterion.upper()
    tried = ", ".join(f"{candidate.clusters} ({candidate.stability:.2f})" for candidate in found)
    results().print(f"{encoder.clusters} clusters, the lowest {criterion}; K (stability): {tried}", markup=False)
    results().print(f"what they mean: {folder.path / PAGE}", soft_wrap=True)
    return 0


def check_encoder(options: ObserveVerbOptions, folder: Path) -> int:
    """Prints what is novel, and the share as a Prometheus line; 3 when a new observation phase is needed."""
    from envs.recalibration import check, load_known
    from rayjobs.calibrate import read_windows, windows_of
    from rayjobs.console import results

    if options.snapshots is None:
        raise ConfigError("nothing to check the encoder against", where="--check", remedy="give --snapshots FILE")
    _, topology, _ = windows_of(options.snapshots)
    topology, encoder, deadlines_s = load_known(folder, topology)
    found = check(read_windows(options.snapshots, topology), topology, encoder, deadlines_s)
    needed = found.share > options.novel_share
    results().print(f"{found.novel} of {found.windows} windows are novel, typical novelty {found.typical:.2f}")
    results().print(f"deepsched_novel_window_share {found.share:.4f}")
    limit = f"the limit is {options.novel_share:.0%}"
    verdict = "recalibrate: run deepsched observe again" if needed else "the encoder still fits"
    results().print(f"{verdict}; {limit}", markup=False)
    return EXIT_RECALIBRATE if needed else 0


VERB = Verb(
    name="observe",
    summary="watch a testbed: deadlines and the Gaussian mixture",
    example="deepsched observe --testbed live --set observe.duration_s=30",
    options=ObserveVerbOptions,
    run=run,
)

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
