"""`deepsched train --testbed live`: the policy goes on learning on several live testbeds at once, then is judged."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from rayjobs.progress import Progress, Stage
from rayjobs.runs import RunFolder
from tuning.parallel_options import ParallelOptions

if TYPE_CHECKING:
    from rayjobs.train import TrainOptions
    from tuning.parallel import ParallelRow

BLOCK_OVERHEAD_S = 1.2
POLICIES = 4


def run_live(options: TrainOptions) -> int:
    """Observes the first testbed, trains simulated, trains on all testbeds at once, judges on the first one."""
    from actuators.topology import social_network
    from envs.scenarios import scenario
    from rayjobs.console import remarks, results
    from rayjobs.local_ray import ray_session
    from rayjobs.steps import Steps
    from tuning.algorithm import module_path
    from tuning.conducted import ConductedTestbed
    from tuning.contenders import LEARNED, contenders
    from tuning.live_testbeds import Testbeds
    from tuning.parallel import ParallelTraining
    from tuning.table import print_evaluation

    watched, *_ = [scenario(name) for name in (options.scenario, *options.training.scenarios)]
    folder = RunFolder.create(options.out, "train", options.seed, options)
    training, parallel = options.training, options.parallel
    judging = options.judge.model_copy(update={"learned": LEARNED, "seed": options.seed})
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress(_stages(options, parallel)))
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
                say=lambda text: remarks().print(text, markup=False, soft_wrap=True),
            )
            trainer.net().load_state_dict(run.run(testbeds, watched).state_dict())
        bundle = steps.export(trainer)
        policies = contenders(observed.problem, training.method, bundle.policy())
        evaluation = steps.judge(testbed, policies, watched, observed.deadlines.seconds, judging)
    print_evaluation(evaluation.to_json(), results())
    results().print(f"bundle: {folder.path / 'bundle'}", soft_wrap=True)
    return 0


def _stages(options: TrainOptions, parallel: ParallelOptions) -> list[Stage]:
    observe, judge, interval_s = options.observe, options.judge, options.training.interval_s
    block_s = judge.warm_up_s + judge.measure_s + BLOCK_OVERHEAD_S
    return [
        Stage("start", 20 + 5 * parallel.testbeds),
        Stage("observe", 2 + observe.skip_s + observe.duration_s + observe.explore_s),
        Stage("train", 10 + options.training.steps / 1200),
        Stage("train live", 15 + parallel.steps / parallel.testbeds * interval_s * 1.2),
        Stage("judge", 2 + judge.rounds * POLICIES * block_s),
    ]
