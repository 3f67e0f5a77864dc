"""`deepsched observe`: watch a testbed, derive deadlines, fit the Gaussian mixture; nothing is learned yet."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from pydantic import Field

from actuators.options import Options
from actuators.parts import LiveOptions
from rayjobs.cli import Verb, run_verb
from rayjobs.progress import Progress, Stage
from rayjobs.runs import RunFolder
from rayjobs.testbeds import TestbedKind, open_testbed
from tuning.observing import ObserveOptions
from tuning.options import TrainingOptions


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
    recalibrate: Path | None = None
    """Instead of watching: a bundle or the folder of an earlier `observe`, whose encoder is refitted to what it knew
    and to `snapshots`. It takes the old one's place when held-out windows prove it; exit code 4 when they do not."""
    rollback: Path | None = None
    """Instead of watching: a bundle or folder whose encoder (and policy) before the last recalibration comes back."""
    snapshots: Path | None = None
    """check, recalibrate: a file that `deepsched collect` recorded, or the folder of a run that kept
    `snapshots.jsonl`."""
    novel_share: float = Field(default=0.2, gt=0, lt=1)
    """check, recalibrate: share of novel windows with which an encoder still fits."""
    retrain_steps: int = Field(default=0, ge=0)
    """recalibrate: environment steps for which a bundle's policy is trained further, on simulated testbeds."""
    work_scale: float = Field(default=2.0, gt=0)
    """recalibrate: factor on the work of the scenarios that it is trained further on; 2 as on live testbeds."""


def run(options: ObserveVerbOptions) -> int:
    """Prints deadlines, clusters and the folder with `deadlines.json`, `encoder.npz` and, live, `snapshots.jsonl`."""
    if (asked := _about_an_encoder(options)) is not None:
        return asked
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


def _about_an_encoder(options: ObserveVerbOptions) -> int | None:
    """What was asked about an encoder that there is already; None when a testbed is to be watched."""
    if options.check is None and options.recalibrate is None and options.rollback is None:
        return None
    from rayjobs.recalibrating import check_encoder, recalibrate_encoder, roll_back

    if options.check is not None:
        return check_encoder(options, options.check)
    if options.recalibrate is not None:
        return recalibrate_encoder(options, options.recalibrate)
    assert options.rollback is not None
    return roll_back(options.rollback)


VERB = Verb(
    name="observe",
    summary="watch a testbed: deadlines and the Gaussian mixture",
    example="deepsched observe --testbed live --set observe.duration_s=30",
    options=ObserveVerbOptions,
    run=run,
)

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
