"""`deepsched train`: observe, train a policy in simulation or from records, export its bundle, judge it.

With `--testbed live` the system that is observed is a live one, the trained policy goes on learning on several live
testbeds at once, and it is judged on one of them.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field, model_validator

from actuators.contract.control import DirectMethod
from actuators.errors import DataError
from actuators.options import GIVEN, NOT_GIVEN, Moved, Never, Only, Retired
from actuators.testbed.options import LiveOptions
from envs.environment.actions import ActionCodec, check_method
from envs.environment.phase import Observed, ObserveOptions
from rayjobs.cli.config import dump_yaml, resumed
from rayjobs.cli.interrupts import kept
from rayjobs.cli.main import Verb, run_verb
from rayjobs.cli.progress import Progress, Stage
from rayjobs.runs.folder import RunFolder
from rayjobs.runs.joining import RayOptions
from rayjobs.runs.storage import stored
from rayjobs.runs.testbed import TestbedKind, check_live, of_one_system
from tuning.judging.plan import BlockOptions, JudgeOptions, check_reference
from tuning.options import (
    OFFLINE,
    ONLINE,
    LearningOptions,
    ParallelOptions,
    RunnerOptions,
    TrainingOptions,
    check_live_algorithm,
)

if TYPE_CHECKING:
    from actuators.contract.script import Scenario
    from actuators.contract.testbed import Testbed
    from actuators.contract.topology import Topology
    from envs.environment.problem import DecisionProblem
    from tuning.learning.recordings import Transition
    from tuning.learning.trainer import Trainer
    from tuning.live.testbeds import Testbeds
    from tuning.live.training import ParallelRow

POLICIES, BLOCK_OVERHEAD_S = 4, 1.2
MAY_DIFFER = ("training.steps", "training.proof_episodes", "address", "storage")
"""Options that may be given anew to a run that goes on."""


class TrainOptions(RayOptions):
    """One training run; equal options give equal numbers."""

    only: ClassVar = {
        "training.environments": (
            Only(training__algorithm__name=ONLINE),
            Only(records=NOT_GIVEN, training__algorithm__transitions=NOT_GIVEN),
            Only(training__imitation__steps=GIVEN),
        ),
        "training.algorithm.recorded_steps": Only(records=NOT_GIVEN),
        "judge.max_core_wait_ms": Only(testbed="live"),
        "live.nginx.method": Never("set --method"),
    }
    moved: ClassVar = {
        "training.interval_s": Moved("interval_s"),
        "training.method": Moved("method"),
        "judge.interval_s": Moved("interval_s"),
        "judge.seed": Moved("seed", obeyed=False),
        "judge.seeds": Retired("judge on more seeds with `deepsched evaluate BUNDLE --seeds N`", default=1),
        "judge.learned": Retired("the trained policy is on trial", obeyed=False),
    }

    seed: int = Field(default=1, ge=0)
    """Fixes everything random."""
    out: Annotated[Path | None, Only(resume=None)] = None
    """Folder for the run's folder; `runs` when not given."""
    storage: str | None = None
    """Folder or pyarrow URL (file://, s3://…) to which the run's folder is copied at the end, also after a failure. A
    submitted job without it leaves its results on the cluster."""
    scenario: str = "demo"
    """Scenario that is observed first and judged on last; see `training.scenarios` for what is trained on. The
    `calibration.json` of a recorded system is also trained on, unless `training.scenarios` is given."""
    interval_s: float = Field(default=1.0, gt=0)
    """Control interval: seconds between two decisions."""
    method: DirectMethod = "least_conn"
    """Under the weights: `least_conn`, the better base. On `round_robin` weights matter more and learning wins more
    over heuristics, but the best policy there still loses to untuned `least_conn` where servers change quickly.
    `expected_delay` for a residual on a service-time estimator (`training.decision.action.baseline`), and for it
    only."""
    observe: ObserveOptions = ObserveOptions(duration_s=120.0, explore_s=60.0, window_s=1.0)
    """The observation phase."""
    training: LearningOptions = LearningOptions()
    """Training on simulated testbeds, or from records."""
    judge: BlockOptions = BlockOptions(rounds=4, measure_s=60.0)
    """Number and length of the blocks of the final judgement."""
    testbed: TestbedKind = "simulated"
    """`live`: observes, trains on after the simulated training, and judges on live testbeds."""
    parallel: Annotated[ParallelOptions, Only(testbed="live")] = ParallelOptions()
    """Training on live testbeds, several at once; give `judge` and `observe` shorter durations with it."""
    live: Annotated[LiveOptions, Only(testbed="live")] = LiveOptions()
    """The parts of live testbeds."""
    records: Annotated[
        tuple[Path, ...], Only(training__algorithm__name=OFFLINE, training__algorithm__transitions=NOT_GIVEN)
    ] = ()
    """What an offline algorithm learns from: files that `deepsched collect` recorded, or folders of them; their
    groups and servers must be as many as the testbed's. Without any, the observed windows and
    `training.algorithm.recorded_steps` simulated ones."""
    resume: Annotated[Path | None, Only(testbed="simulated")] = None
    """Folder of an earlier run to continue from its newest checkpoint, with its options; a new run when not given. Only
    `training.steps` and `training.proof_episodes` may be given anew. More steps also continue a training that early
    stopping ended."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_method(self.method, self.training.decision.action)
        if self.testbed == "live":
            check_live_algorithm(self.training.algorithm, self.parallel.algorithm)
        return self

    def resolved(self) -> Self:
        if self.resume is not None:
            return resumed(self, self.resume, MAY_DIFFER)
        return self.changed(of_one_system(self, "training.scenarios"))


def run(options: TrainOptions) -> int:
    """Prints the table of the judgement and the bundle's folder."""
    from envs.scenarios.lookup import scenario, topology_of
    from rayjobs.cli.console import console_err, console_out
    from rayjobs.runs.steps import Steps, today_of, training_scenarios
    from tuning.judging.contenders import LEARNED, contender_names, contenders
    from tuning.judging.tables import print_evaluation

    options = options.resolved()
    played = [
        scenario(name) for name in (options.scenario, *options.training.scenarios, *options.training.held_out.scenarios)
    ]
    watched, topology = played[0], topology_of(played)
    if options.testbed == "live":
        check_live(topology)
    names = contender_names(options.training.decision.action.estimator, today=today_of(watched) is not None)
    check_reference(options.judge.reference, names)
    training = options.training.extended(TrainingOptions, method=options.method, interval_s=options.interval_s)
    ActionCodec(topology, training.decision.action).check()
    if training.proof_episodes:
        from tuning.learning.proof import check_episodes

        check_episodes(training.proof_episodes, training_scenarios(training, watched.work_scale))
    folder = _folder(options)
    judging = options.judge.extended(JudgeOptions, interval_s=options.interval_s, seed=options.seed, learned=LEARNED)
    with contextlib.ExitStack() as stack:
        stack.enter_context(stored(folder.path, options.storage))
        stack.enter_context(kept(lambda: _kept(options, folder)))
        progress = stack.enter_context(Progress(_stages(options)))
        steps = Steps(folder, progress, options.seed)
        with progress.stage("start") as stage:
            if options.testbed == "live":
                stage.update(f"{options.parallel.testbeds} live testbeds")
            testbed, testbeds = _open(options, topology, folder, stack)
        observed = steps.observe(testbed, watched, options.observe, training)
        training = _with_records(training, observed, watched.work_scale, options.seed, folder, options.records)
        trainer = steps.train(observed, training, watched.work_scale)
        if testbeds is not None:
            _train_live(trainer, testbeds, watched, options.parallel, progress)
        bundle = steps.export(trainer)
        if trainer.proof is not None:
            console_err().print(trainer.proof.summary(), markup=False, soft_wrap=True)
        policies = contenders(observed.problem, options.method, bundle.policy(), today_of(watched))
        evaluation = steps.judge(testbed, policies, watched, observed.deadlines.seconds, judging, kind=options.testbed)
    print_evaluation(evaluation.to_json(), console_out())
    console_out().print(f"bundle: {folder.path / 'bundle'}", soft_wrap=True)
    return 0


def _folder(options: TrainOptions) -> RunFolder:
    """A new folder, or that of the run that goes on, whose config then holds the new number of steps."""
    if options.resume is None:
        return RunFolder.create(options.out, "train", options.seed, options)
    folder = RunFolder(options.resume)
    folder.write("config.yaml", dump_yaml(options.changed({"resume": None})))
    # What was judged then was an earlier network.
    (options.resume / "blocks.jsonl").unlink(missing_ok=True)
    return folder


def _kept(options: TrainOptions, folder: RunFolder) -> str:
    """What an interrupted run leaves; live training begins anew each time."""
    if options.testbed == "simulated":
        return f"go on with: deepsched train --resume {folder.path}"
    return f"kept in {folder.path}: {folder.contents()}"


def _open(
    options: TrainOptions, topology: Topology, folder: RunFolder, stack: contextlib.ExitStack
) -> tuple[Testbed, Testbeds | None]:
    """The testbed to observe and judge on, and with `--testbed live` all of them, of which it is the first."""
    from rayjobs.runs.local_ray import ray_session
    from rayjobs.runs.testbed import open_testbed

    if options.testbed == "simulated":
        stack.enter_context(ray_session(address=options.address))
        return stack.enter_context(open_testbed("simulated", topology, folder.path, options.seed)), None
    from tuning.learning.algorithm import check_room
    from tuning.live.conductor import ConductedTestbed
    from tuning.live.testbeds import Testbeds

    count, work_dir = options.parallel.testbeds, folder.path / "testbeds"
    stack.enter_context(ray_session(testbeds=count, servers=len(topology.servers), address=options.address))
    # RLlib asks for them after observation and simulated training, and would then wait for ever.
    check_room(RunnerOptions(num_env_runners=options.parallel.env_runners), "parallel.env_runners")
    testbeds = Testbeds.live(count, topology, options.live, work_dir, options.seed, options.method)
    stack.enter_context(testbeds)
    first, conductor = next(iter(testbeds.conductors.items()))
    return ConductedTestbed(conductor, first), testbeds


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
        transitions = from_files(records, problem)
    else:
        source = ScriptSource(training_scenarios(training, work_scale), problem.topology)
        watched = from_windows([*observed.windows.equal, *observed.windows.exploring], problem, "observed")
        transitions = itertools.chain(watched, from_simulation(problem, source, training, seed))
    count = write_transitions(transitions, target)
    console_err().print(f"{training.algorithm.name} learns from {count} steps", markup=False)
    return training.changed({"algorithm.transitions": target.resolve()})


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
            _, recorded, _ = windows_of(file)
            if sorted(recorded.request_types) != sorted(types) or len(recorded.servers) != servers:
                of = f"{', '.join(recorded.request_types)} on {len(recorded.servers)} servers"
                raise DataError(f"recorded of {of}", where=str(file), remedy=f"record {', '.join(types)} on {servers}")
            topology = Topology(tuple(sorted(recorded.groups, key=lambda group: types.index(group.request_type))))
            yield from from_windows(read_windows(file, topology), problem, f"{path.stem}-{number}")


def _train_live(
    trainer: Trainer, testbeds: Testbeds, watched: Scenario, options: ParallelOptions, progress: Progress
) -> None:
    """Goes on with the trained network on all testbeds at once."""
    from rayjobs.cli.console import console_err
    from tuning.learning.algorithm import module_path
    from tuning.live.training import ParallelTraining

    with progress.stage("train live") as stage:

        def report(row: ParallelRow) -> None:
            text = f"{row.step} of {options.steps} intervals, return {row.episode_return:.2f}"
            lost = f", {row.faults} lost to faults" if row.faults else ""
            stage.update(text + lost, row.step / options.steps)

        training = ParallelTraining(
            trainer.problem,
            trainer.options,
            options,
            trainer.folder,
            trainer.seed,
            start=None if trainer.checkpoint is None else module_path(trainer.checkpoint),
            report=report,
            say=lambda text: console_err().print(text, markup=False, soft_wrap=True),
        )
        trainer.net().load_state_dict(training.run(testbeds, watched).state_dict())
        trainer.prove()


def _stages(options: TrainOptions) -> list[Stage]:
    """What will happen and about how long it takes here."""
    train = Stage("train", 10 + options.training.steps / 1200)
    if options.testbed == "simulated":
        return [Stage("start", 15), Stage("observe", 3), train, Stage("judge", 5)]
    observe, judge, parallel = options.observe, options.judge, options.parallel
    block_s = judge.warm_up_s + judge.measure_s + BLOCK_OVERHEAD_S
    return [
        Stage("start", 20 + 5 * parallel.testbeds),
        Stage("observe", 2 + observe.skip_s + observe.duration_s + observe.explore_s),
        train,
        Stage("train live", 15 + parallel.steps / parallel.testbeds * options.interval_s * 1.2),
        Stage("judge", 2 + judge.rounds * POLICIES * block_s),
    ]


VERB = Verb(
    name="train",
    example="deepsched train --seed 1 --set training.steps=20000",
    options=TrainOptions,
    run=run,
    common=(
        "scenario", "testbed", "seed", "out", "resume", "storage", "records", "training.steps",
        "training.scenarios", "training.algorithm.name", "training.algorithm.learning_rate", "judge.rounds",
        "parallel.testbeds",
    ),
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
