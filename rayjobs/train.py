"""`deepsched train`: observe a simulated testbed, train PPO on many of them, judge the policy, export its bundle."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from pydantic import Field

from actuators.options import Options
from rayjobs.cli import Verb, run_verb
from rayjobs.progress import Progress, Stage
from rayjobs.runs import RunFolder
from tuning.judge import JudgeOptions
from tuning.observing import ObserveOptions
from tuning.options import TrainingOptions


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
    """PPO on simulated testbeds."""
    judge: JudgeOptions = JudgeOptions(rounds=4, measure_s=60.0)
    """The final judgement, on a simulated testbed."""


def run(options: TrainOptions) -> int:
    """Prints the table of the judgement and the bundle's folder."""
    from envs.scenarios import scenario
    from rayjobs.console import results
    from rayjobs.local_ray import ray_session
    from rayjobs.steps import Steps
    from rayjobs.testbeds import open_testbed
    from tuning.contenders import LEARNED, contenders
    from tuning.table import print_evaluation

    watched, *_ = [scenario(name) for name in (options.scenario, *options.training.scenarios)]
    folder = RunFolder.create(options.out, "train", options.seed, options)
    training, judging = options.training, options.judge.model_copy(update={"learned": LEARNED, "seed": options.seed})
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress(_stages(options)))
        steps = Steps(folder, progress, options.seed)
        with progress.stage("start"):
            stack.enter_context(ray_session())
            testbed = stack.enter_context(open_testbed("simulated", folder.path, options.seed))
        observed = steps.observe(testbed, watched, options.observe, training)
        trainer = steps.train(observed, training, watched.work_scale)
        bundle = steps.export(trainer)
        policies = contenders(observed.problem, training.method, bundle.policy())
        evaluation = steps.judge(testbed, policies, watched, observed.deadlines.seconds, judging)
    print_evaluation(evaluation.to_json(), results())
    results().print(f"bundle: {folder.path / 'bundle'}", soft_wrap=True)
    return 0


def _stages(options: TrainOptions) -> list[Stage]:
    return [
        Stage("start", 15),
        Stage("observe", 3),
        Stage("train", 10 + options.training.steps / 1200),
        Stage("judge", 5),
    ]


VERB = Verb(
    name="train",
    summary="train a policy on simulated testbeds, judge it, export its bundle",
    example="deepsched train --seed 1 --set training.steps=20000",
    options=TrainOptions,
    run=run,
)

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
