"""`deepsched demo`: the main job from end to end on this machine, ending with a table and a page."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from actuators.nginx_detect import detect
from actuators.options import Options
from actuators.parts import LiveOptions
from actuators.script import Script
from actuators.topology import Topology
from rayjobs.cli import Verb, run_verb
from rayjobs.interrupts import leave_within
from rayjobs.progress import Progress, Stage
from rayjobs.runs import RunFolder
from rayjobs.testbeds import TestbedKind, open_testbed
from tuning.judge import JudgeOptions
from tuning.observing import ObserveOptions
from tuning.options import AlgorithmOptions, TrainingOptions

if TYPE_CHECKING:
    from envs.observation import Observation
    from tuning.evaluation import Evaluation
    from tuning.plan import Controller
    from tuning.training import Trainer

CLEAN_UP_S = 9.0
POLICIES = 5
BLOCK_OVERHEAD_S = 1.2
"""Seconds that a live block spends on changing the method, resetting and draining."""


class LiveTrainingOptions(Options):
    """The short stretch on the live testbed after the simulated training."""

    steps: int = Field(default=20, ge=0)
    """Control intervals; 0 leaves it out."""
    algorithm: AlgorithmOptions = AlgorithmOptions(learning_rate=3e-5, batch_steps=10, minibatch_steps=10, epochs=2)
    """PPO with small steps: a few noisy intervals must not undo what was learned."""


class DemoOptions(Options):
    """The main job. `--quick` overrides the durations of all stages."""

    seed: int = Field(default=1, ge=0)
    """Fixes everything random but the live testbed's own noise."""
    out: Path | None = None
    """Folder for the run's folder; `runs` when not given."""
    quick: bool = False
    """Short stages, under 120 s in all: shows that everything works, judges little."""
    interval_s: float = Field(default=1.0, gt=0)
    """Control interval: seconds between two decisions."""
    method: Literal["least_conn", "round_robin", "random_two"] = "least_conn"
    """Balancing method under the heuristic's and the policy's weights."""
    testbed: TestbedKind = "live"
    """`simulated` runs the same job without NGINX, load or servers; equal seeds then give equal numbers."""
    scenario: str = "demo"
    """What happens on the testbed: `deepsched scenarios list`."""
    observe: ObserveOptions = ObserveOptions()
    """The observation phase."""
    training: TrainingOptions = TrainingOptions(steps=30_000)
    """Training on simulated testbeds; `interval_s` and `method` come from above."""
    live_training: LiveTrainingOptions = LiveTrainingOptions()
    """Training on the testbed itself."""
    judge: JudgeOptions = JudgeOptions(rounds=4, warm_up_s=1.5, measure_s=4.0)
    """The judgement; `interval_s` and `seed` come from above."""
    live: LiveOptions = LiveOptions()
    """The parts of the live testbed."""


def run(options: DemoOptions) -> int:
    """Prints the table and the report's path; everything started is ended, whatever happens."""
    options = resolve(options)
    leave_within(CLEAN_UP_S)
    from envs.scenarios import scenario
    from rayjobs.console import remarks, results
    from rayjobs.doctor import diagnose, require
    from rayjobs.run_report import write_run_report
    from tuning.table import print_evaluation

    for name in (options.scenario, *options.training.scenarios):
        scenario(name)
    folder = RunFolder.create(options.out, "demo", options.seed, options)
    try:
        with Progress(_stages(options)) as progress:
            with progress.stage("check") as stage:
                findings = diagnose(options.live.nginx.binary)
                require(findings)
                stage.update(f"{len(findings)} things looked at, none is missing")
            evaluation, trainer, seen = _work(options, folder, progress)
            with progress.stage("report"):
                report = write_run_report(folder, evaluation, trainer.curve, trainer.problem, seen)
    except KeyboardInterrupt:
        remarks().print(f"kept in {folder.path}: {folder.contents()}", markup=False, soft_wrap=True)
        raise
    print_evaluation(evaluation.to_json(), results())
    results().print(f"report: {report}", soft_wrap=True)
    return 0


def resolve(options: DemoOptions) -> DemoOptions:
    """The options with `quick`, `interval_s`, `method` and `seed` carried into the stages."""
    from tuning.contenders import LEARNED

    stages: dict[str, Options] = {
        "observe": options.observe,
        "training": options.training,
        "live_training": options.live_training,
        "judge": options.judge,
    }
    interval_s = options.interval_s
    if options.quick:
        interval_s = min(interval_s, 0.5)
        stages["observe"] = options.observe.model_copy(update={"duration_s": 5.0, "explore_s": 4.0, "skip_s": 1.0})
        stages["training"] = options.training.model_copy(update={"steps": 6000})
        brief = options.live_training.algorithm.model_copy(update={"batch_steps": 6, "minibatch_steps": 6})
        stages["live_training"] = options.live_training.model_copy(update={"steps": 6, "algorithm": brief})
        stages["judge"] = options.judge.model_copy(update={"rounds": 2, "warm_up_s": 0.5, "measure_s": 2.0})
    stages["training"] = stages["training"].model_copy(update={"interval_s": interval_s, "method": options.method})
    own = {"interval_s": interval_s, "seed": options.seed, "learned": LEARNED}
    stages["judge"] = stages["judge"].model_copy(update=own)
    return options.model_copy(update={**stages, "interval_s": interval_s})


def _work(options: DemoOptions, folder: RunFolder, progress: Progress) -> tuple[Evaluation, Trainer, list[Observation]]:
    from envs.controller import Recorded
    from envs.scenarios import scenario
    from rayjobs.local_ray import local_ray
    from rayjobs.steps import Steps
    from tuning.contenders import contenders

    watched = scenario(options.scenario)
    steps = Steps(folder, progress, options.seed)
    with contextlib.ExitStack() as stack:
        with progress.stage("start") as stage:
            stage.update("Ray, with proxy, client and server resources of its own")
            stack.enter_context(local_ray())
            stage.update(f"a {options.testbed} testbed")
            work_dir = folder.path / "testbed"
            testbed = stack.enter_context(open_testbed(options.testbed, work_dir, options.seed, options.live))
        observed = steps.observe(testbed, watched, options.observe, options.training)
        trainer = steps.train(observed, options.training, watched.work_scale)
        if options.live_training.steps:
            steps.train_live(trainer, testbed, watched, options.live_training.steps, options.live_training.algorithm)
        bundle = steps.export(trainer)
        learned = Recorded(bundle.policy())
        policies = contenders(observed.problem, options.method, learned)
        policies += _in_memory(options, watched.script(testbed.topology, options.seed), testbed.topology)
        evaluation = steps.judge(testbed, policies, watched, observed.deadlines.seconds, options.judge)
        with progress.stage("end"):
            stack.close()
    return evaluation, trainer, learned.seen


def _in_memory(options: DemoOptions, script: Script, topology: Topology) -> list[Controller]:
    """`expected_delay` with service times learned online, where the NGINX can hold it in memory.

    It is told how many requests each server serves at once, as an operator would from its configuration,
    and learns how long they take.
    """
    from envs.delay_controllers import EstimatorController

    if options.testbed == "live" and not detect(options.live.nginx.binary).has_lua:
        return []
    workers = np.array([float(profile.workers) for profile in script.servers])
    return [EstimatorController(topology, "idle", workers, "expected_delay")]


def _stages(options: DemoOptions) -> list[Stage]:
    """What will happen and about how long it takes here; a simulated testbed takes no time to speak of."""
    pace = 1.0 if options.testbed == "live" else 0.0
    judge, observe, live = options.judge, options.observe, options.live_training
    block_s = judge.warm_up_s + judge.measure_s + BLOCK_OVERHEAD_S
    stages = [
        Stage("check", 3),
        Stage("start", 14 + 6 * pace),
        Stage("observe", 2 + pace * (observe.duration_s + observe.explore_s + observe.skip_s)),
        Stage("train", 10 + options.training.steps / 1500),
        Stage("train live", 1 + pace * live.steps * options.interval_s * 1.3),
        Stage("judge", 2 + pace * judge.rounds * POLICIES * block_s),
        Stage("end", 2),
        Stage("report", 3),
    ]
    return [stage for stage in stages if live.steps or stage.name != "train live"]


VERB = Verb(
    name="demo",
    summary="the main job: observe, learn and judge on a live NGINX of its own",
    example="deepsched demo --quick --seed 1 --out runs",
    options=DemoOptions,
    run=run,
)

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
