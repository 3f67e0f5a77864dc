"""`deepsched train`: observe a simulated testbed, train a policy on many of them, judge it, export its bundle.

`deepsched train --testbed live`: the policy goes on learning on several live testbeds at once, then is judged.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from actuators.errors import ConfigError, DataError
from actuators.options import Options
from actuators.testbed.parts import LiveOptions
from rayjobs.cli.main import Verb, run_verb
from rayjobs.cli.progress import Progress, Stage
from rayjobs.runs.folder import RunFolder
from rayjobs.runs.testbed import TestbedKind
from tuning.judging.plan import JudgeOptions
from tuning.observing.phase import Observed, ObserveOptions
from tuning.options import ParallelOptions, TrainingOptions

if TYPE_CHECKING:
    from envs.environment.problem import DecisionProblem
    from tuning.learning.recordings import Transition
    from tuning.live.training import ParallelRow


class TrainOptions(Options):
    """One training run; equal options give equal numbers."""

    seed: int = Field(default=1, ge=0)
    """Fixes everything random."""
    out: Path | None = None
    """Folder for the run's folder; `runs` when not given."""
    scenario: str = "demo"
    """Scenario that is observed first and judged on last; see `training.scenarios` for what is trained on."""
    observe: ObserveOptions = ObserveOptions(duration_s=120.0, explore_s=60.0, interval_s=1.0)
    """The observation phase, on a simulated testbed."""
    training: TrainingOptions = TrainingOptions()
    """Training on simulated testbeds, or from records."""
    judge: JudgeOptions = JudgeOptions(rounds=4, measure_s=60.0)
    """The final judgement, on a simulated testbed."""
    testbed: TestbedKind = "simulated"
    """`live`: observes, trains on after the simulated training, and judges on live testbeds."""
    parallel: ParallelOptions = ParallelOptions()
    """Training on live testbeds, several at once; give `judge` and `observe` shorter durations with it."""
    live: LiveOptions = LiveOptions()
    """The parts of live testbeds."""
    records: tuple[Path, ...] = ()
    """What an offline algorithm learns from: files that `deepsched collect` recorded, or folders of them; their
    groups and servers must be as many as the testbed's. Without any, the observed windows and
    `training.algorithm.recorded_steps` simulated ones."""
    resume: Path | None = None
    """Folder of an earlier run to go on with from its newest checkpoint, with the options it had; only
    `training.steps` may be given anew."""


def run(options: TrainOptions) -> int:
    """Prints the table of the judgement and the bundle's folder."""
    if options.testbed == "live":
        return run_live(options)
    from envs.scenarios.lookup import scenario
    from rayjobs.cli.console import console_err, console_out
    from rayjobs.runs.local_ray import ray_session
    from rayjobs.runs.steps import Steps
    from rayjobs.runs.testbed import open_testbed
    from tuning.judging.contenders import LEARNED, contenders
    from tuning.judging.tables import print_evaluation

    folder, options = resumed(options) if options.resume else (None, options)
    watched, *_ = [scenario(name) for name in (options.scenario, *options.training.scenarios)]
    folder = folder or RunFolder.create(options.out, "train", options.seed, options)
    training, judging = options.training, options.judge.model_copy(update={"learned": LEARNED, "seed": options.seed})
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress(_stages(options)))
        steps = Steps(folder, progress, options.seed)
        with progress.stage("start"):
            stack.enter_context(ray_session())
            testbed = stack.enter_context(open_testbed("simulated", folder.path, options.seed))
        observed = steps.observe(testbed, watched, options.observe, training)
        training = _with_records(training, observed, watched.work_scale, options.seed, folder, options.records)
        trainer = steps.train(observed, training, watched.work_scale)
        bundle = steps.export(trainer)
        if trainer.proof is not None:
            console_err().print(trainer.proof.told(), markup=False, soft_wrap=True)
        policies = contenders(observed.problem, training.method, bundle.policy())
        evaluation = steps.judge(testbed, policies, watched, observed.deadlines.seconds, judging)
    print_evaluation(evaluation.to_json(), console_out())
    console_out().print(f"bundle: {folder.path / 'bundle'}", soft_wrap=True)
    return 0


def resumed(options: TrainOptions) -> tuple[RunFolder, TrainOptions]:
    """The folder and the options of the run to go on with.

    Raises ConfigError when the folder holds no run of `train`.
    """
    from rayjobs.cli.config import load_options

    assert options.resume is not None
    file = options.resume / "config.yaml"
    if not file.is_file():
        raise ConfigError("no run to go on with", where=str(options.resume), remedy="give a folder that train made")
    earlier = load_options(TrainOptions, file=file)
    if "steps" in options.training.model_fields_set:
        training = earlier.training.model_copy(update={"steps": options.training.steps})
        earlier = earlier.model_copy(update={"training": training})
    # What was judged then was an earlier network.
    (options.resume / "blocks.jsonl").unlink(missing_ok=True)
    return RunFolder(options.resume), earlier


def _with_records(
    training: TrainingOptions,
    observed: Observed,
    work_scale: float,
    seed: int,
    folder: RunFolder,
    records: Sequence[Path],
) -> TrainingOptions:
    """Offline algorithms get the recorded windows; without any, the observed ones and some simulated steps."""
    if not training.algorithm.offline or training.algorithm.transitions is not None:
        return training
    from rayjobs.cli.console import console_err
    from rayjobs.runs.steps import training_scenarios
    from tuning.learning.recordings import from_simulation, from_windows, write_transitions
    from tuning.learning.scripts import ScriptSource

    problem, target = observed.problem, folder.path / "transitions"
    if records:
        found = from_files(records, problem)
    else:
        source = ScriptSource(training_scenarios(training, work_scale), problem.topology)
        seen = from_windows([*observed.windows.equal, *observed.windows.exploring], problem, "observed")
        found = itertools.chain(seen, from_simulation(problem, source, training, seed))
    count = write_transitions(found, target)
    console_err().print(f"{training.algorithm.name} learns from {count} steps", markup=False)
    algorithm = training.algorithm.model_copy(update={"transitions": target.resolve()})
    return training.model_copy(update={"algorithm": algorithm})


def from_files(records: Sequence[Path], problem: DecisionProblem) -> Iterator[Transition]:
    """Transitions between the windows of recorded snapshots, an episode or more per file.

    Raises DataError for a folder without any, or a recording of other groups or another number of servers.
    """
    from actuators.contract.topology import Topology
    from rayjobs.runs.recordings import SNAPSHOTS, read_windows, windows_of
    from tuning.learning.recordings import from_windows

    types, servers = problem.topology.request_types, problem.topology.shape[1]
    for path in records:
        alone = path.is_file() or (path / SNAPSHOTS).exists()
        files = [path] if alone else sorted(path.glob("*.json*"))
        if not files:
            raise DataError("no recordings", where=str(path), remedy="give files that `deepsched collect` wrote")
        for number, file in enumerate(files):
            _, seen, _ = windows_of(file)
            if sorted(seen.request_types) != sorted(types) or len(seen.servers) != servers:
                of = f"{', '.join(seen.request_types)} on {len(seen.servers)} servers"
                raise DataError(f"recorded of {of}", where=str(file), remedy=f"record {', '.join(types)} on {servers}")
            topology = Topology(tuple(sorted(seen.groups, key=lambda group: types.index(group.request_type))))
            yield from from_windows(read_windows(file, topology), problem, f"{path.stem}-{number}")


def _stages(options: TrainOptions) -> list[Stage]:
    return [
        Stage("start", 15),
        Stage("observe", 3),
        Stage("train", 10 + options.training.steps / 1200),
        Stage("judge", 5),
    ]


VERB = Verb(
    name="train",
    example="deepsched train --seed 1 --set training.steps=20000",
    options=TrainOptions,
    run=run,
)

BLOCK_OVERHEAD_S = 1.2
POLICIES = 4


def run_live(options: TrainOptions) -> int:
    """Observes the first testbed, trains simulated, trains on all testbeds at once, judges on the first one."""
    from actuators.contract.topology import social_network
    from envs.scenarios.lookup import scenario
    from rayjobs.cli.console import console_err, console_out
    from rayjobs.runs.local_ray import ray_session
    from rayjobs.runs.steps import Steps
    from tuning.judging.contenders import LEARNED, contenders
    from tuning.judging.tables import print_evaluation
    from tuning.learning.algorithm import module_path
    from tuning.live.conductor import ConductedTestbed
    from tuning.live.testbeds import Testbeds
    from tuning.live.training import ParallelTraining

    watched, *_ = [scenario(name) for name in (options.scenario, *options.training.scenarios)]
    folder = RunFolder.create(options.out, "train", options.seed, options)
    training, parallel = options.training, options.parallel
    judging = options.judge.model_copy(update={"learned": LEARNED, "seed": options.seed})
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress(_live_stages(options, parallel)))
        steps = Steps(folder, progress, options.seed)
        with progress.stage("start") as stage:
            stack.enter_context(ray_session(testbeds=parallel.testbeds))
            stage.update(f"{parallel.testbeds} live testbeds")
            work_dir = folder.path / "testbeds"
            opened = Testbeds.live(
                parallel.testbeds, social_network(), options.live, work_dir, options.seed, training.method
            )
            testbeds = stack.enter_context(opened)
            first, conductor = next(iter(testbeds.conductors.items()))
            testbed = ConductedTestbed(conductor, first)
        observed = steps.observe(testbed, watched, options.observe, training)
        trainer = steps.train(observed, training, watched.work_scale)
        with progress.stage("train live") as stage:

            def report(row: ParallelRow) -> None:
                told = f"{row.step} of {parallel.steps} intervals, return {row.episode_return:.2f}"
                lost = f", {row.faults} lost to faults" if row.faults else ""
                stage.update(told + lost, row.step / parallel.steps)

            run = ParallelTraining(
                observed.problem,
                trainer.options,
                parallel,
                folder.path,
                options.seed,
                start=None if trainer.checkpoint is None else module_path(trainer.checkpoint),
                report=report,
                say=lambda text: console_err().print(text, markup=False, soft_wrap=True),
            )
            trainer.net().load_state_dict(run.run(testbeds, watched).state_dict())
        bundle = steps.export(trainer)
        policies = contenders(observed.problem, training.method, bundle.policy())
        evaluation = steps.judge(testbed, policies, watched, observed.deadlines.seconds, judging)
    print_evaluation(evaluation.to_json(), console_out())
    console_out().print(f"bundle: {folder.path / 'bundle'}", soft_wrap=True)
    return 0


def _live_stages(options: TrainOptions, parallel: ParallelOptions) -> list[Stage]:
    observe, judge, interval_s = options.observe, options.judge, options.training.interval_s
    block_s = judge.warm_up_s + judge.measure_s + BLOCK_OVERHEAD_S
    return [
        Stage("start", 20 + 5 * parallel.testbeds),
        Stage("observe", 2 + observe.skip_s + observe.duration_s + observe.explore_s),
        Stage("train", 10 + options.training.steps / 1200),
        Stage("train live", 15 + parallel.steps / parallel.testbeds * interval_s * 1.2),
        Stage("judge", 2 + judge.rounds * POLICIES * block_s),
    ]


if __name__ == "__main__":
    sys.exit(run_verb(VERB))
