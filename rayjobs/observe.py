"""`deepsched observe`: watch a testbed, derive deadlines, fit the Gaussian mixture; nothing is learned yet."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from actuators.options import Never, Only, OnlyIf, Retired
from actuators.testbed.options import LiveOptions
from envs.environment.phase import ObserveOptions
from rayjobs.cli.console import console_out
from rayjobs.cli.interrupts import kept
from rayjobs.cli.main import Verb, main
from rayjobs.cli.progress import Progress, Stage
from rayjobs.runs.folder import RunFolder
from rayjobs.runs.joining import RayOptions
from rayjobs.runs.testbed import TestbedKind, open_testbed


class ObserveVerbOptions(RayOptions):
    """One observation phase."""

    only: ClassVar = {
        "live.nginx.method": Never("the observation balances by least_conn"), "address": Only(testbed="live"),
    }  # fmt: skip
    moved: ClassVar = {
        name: Retired(f"use `deepsched encoder {instead}`", default=default)
        for name, instead, default in (
            ("check", "check", None),
            ("recalibrate", "recalibrate", None),
            ("rollback", "rollback", None),
            ("snapshots", "check", None),
            ("novel_share", "check", 0.2),
            ("retrain_steps", "recalibrate", 0),
            ("work_scale", "recalibrate", 2.0),
        )
    }

    seed: int = Field(default=1, ge=0)
    """Fixes arrivals, service times, exploring weights and the mixture's start."""
    out: Path | None = None
    """Folder for the run's folder; `runs` when not given."""
    testbed: TestbedKind = "simulated"
    """`live` starts servers, an NGINX and load on this machine."""
    scenario: str = "demo"
    """Load and behaviour of the servers: `deepsched scenarios list`, or a file: YAML, or the `calibration.json` of a
    recorded system."""
    groups: Annotated[
        tuple[str, ...],
        OnlyIf(lambda o: o.scenario.endswith(".json"), "without a recorded system", "set scenario to its calibration"),
    ] = ()
    """Groups of the recorded system that are observed; all when not given."""
    observe: ObserveOptions = ObserveOptions()
    """Durations and the mixture."""
    live: Annotated[LiveOptions, Only(testbed="live")] = LiveOptions()
    """The parts of a live testbed."""


def run(options: ObserveVerbOptions) -> int:
    """Prints deadlines, clusters and the folder with `deadlines.json`, `encoder.npz` and, live, `snapshots.jsonl`."""
    from envs.scenarios.calibrated import CalibratedScenario
    from envs.scenarios.lookup import scenario, topology_of
    from rayjobs.runs.local_ray import ray_session
    from rayjobs.runs.steps import PAGE, Steps, keep_states
    from tuning.options import TrainingOptions

    watched = scenario(options.scenario)
    if options.groups and isinstance(watched, CalibratedScenario):
        watched = replace(watched, calibration=watched.twin_of.of_groups(options.groups))
    folder = RunFolder.create(options.out, "observe", options.seed, options)
    live = options.testbed == "live"
    seconds = options.observe.skip_s + options.observe.duration_s + options.observe.explore_s
    stages = [Stage("start", 20 if live else 2), Stage("observe", 2 + (seconds if live else 0))]
    with contextlib.ExitStack() as stack:
        stack.enter_context(kept(lambda: f"kept in {folder.path}: {folder.contents()}"))
        progress = stack.enter_context(Progress(stages))
        with progress.stage("start"):
            topology = topology_of([watched])
            if live:
                stack.enter_context(ray_session(servers=len(topology.servers), address=options.address))
            work_dir = folder.path / "testbed"
            testbed = stack.enter_context(open_testbed(options.testbed, topology, work_dir, options.seed, options.live))
        steps = Steps(folder, progress, options.seed)
        observed = steps.observe(testbed, watched, options.observe, TrainingOptions())
        candidates = keep_states(folder, observed, options.observe.encoder, options.seed)
    for group, seconds in zip(testbed.topology.groups, observed.deadlines.seconds, strict=True):
        console_out().print(f"{group.request_type}: deadline {1e3 * seconds:.1f} ms")
    encoder = observed.problem.encoder
    criterion = options.observe.encoder.criterion.upper()
    tried = ", ".join(f"{candidate.clusters} ({candidate.stability:.2f})" for candidate in candidates)
    console_out().print(f"{encoder.clusters} clusters, the lowest {criterion}; K (stability): {tried}", markup=False)
    console_out().print(f"what they mean: {folder.path / PAGE}", soft_wrap=True)
    return 0


VERB = Verb(
    name="observe",
    example="deepsched observe --testbed live --set observe.duration_s=30",
    options=ObserveVerbOptions,
    run=run,
    common=(
        "testbed", "scenario", "seed", "out", "address", "observe.duration_s", "observe.explore_s", "observe.window_s",
        "observe.encoder.kind", "observe.encoder.clusters", "observe.encoder.criterion",
    ),
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(["observe", *sys.argv[1:]]))
