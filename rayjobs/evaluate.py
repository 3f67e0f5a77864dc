"""`deepsched evaluate BUNDLE`: a trained policy beside NGINX as shipped and the best simple heuristic."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from pydantic import Field

from actuators.control import BalancingMethod
from actuators.options import Options
from actuators.parts import LiveOptions
from rayjobs.cli import Verb, run_verb
from rayjobs.progress import Progress, Stage
from rayjobs.runs import RunFolder
from rayjobs.testbeds import TestbedKind, open_testbed
from tuning.judge import JudgeOptions


class EvaluateOptions(Options):
    """One evaluation."""

    bundle: Path
    """Folder of the policy bundle, for example `runs/train-1-…/bundle`."""
    seed: int = Field(default=1, ge=0)
    """Fixes arrivals, service times and the order of the blocks."""
    out: Path | None = None
    """Folder for the run's folder; `runs` when not given."""
    testbed: TestbedKind = "simulated"
    """`live` starts servers, an NGINX and load on this machine."""
    scenario: str = "demo"
    """What happens meanwhile: `deepsched scenarios list`."""
    method: BalancingMethod = "least_conn"
    """Balancing method under the heuristic's and the policy's weights."""
    judge: JudgeOptions = JudgeOptions()
    """Blocks: how many, how long; `seed` comes from above."""
    live: LiveOptions = LiveOptions()
    """The parts of a live testbed."""


def run(options: EvaluateOptions) -> int:
    """Prints the table; `evaluation.json` and `windows.parquet` are in the run's folder."""
    from envs.scenarios import scenario
    from rayjobs.console import results
    from rayjobs.local_ray import ray_session
    from rayjobs.steps import Steps
    from tuning.bundle import load_bundle
    from tuning.contenders import LEARNED, contenders
    from tuning.table import print_evaluation

    load_bundle(options.bundle)
    folder = RunFolder.create(options.out, "evaluate", options.seed, options)
    judging = options.judge.model_copy(update={"learned": LEARNED, "seed": options.seed})
    live = options.testbed == "live"
    block_s = judging.warm_up_s + judging.measure_s + 1
    stages = [Stage("start", 20 if live else 2), Stage("judge", judging.rounds * 4 * block_s if live else 10)]
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress(stages))
        with progress.stage("start"):
            if live:
                stack.enter_context(ray_session())
            work_dir = folder.path / "testbed"
            testbed = stack.enter_context(open_testbed(options.testbed, work_dir, options.seed, options.live))
            bundle = load_bundle(options.bundle, testbed.topology)
        policies = contenders(bundle.problem, options.method, bundle.policy())
        steps = Steps(folder, progress, options.seed)
        evaluation = steps.judge(testbed, policies, scenario(options.scenario), bundle.problem.deadlines_s, judging)
    print_evaluation(evaluation.to_json(), results())
    results().print(f"kept in {folder.path}", soft_wrap=True)
    return 0


VERB = Verb(
    name="evaluate",
    summary="judge a bundle beside round_robin, least_conn and inverse latency",
    example="deepsched evaluate runs/train-1-20261122T101353Z/bundle --scenario S3",
    options=EvaluateOptions,
    run=run,
    positional=("bundle",),
)

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
