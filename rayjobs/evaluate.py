"""`deepsched evaluate [BUNDLE]`: policies × scenarios × seeds on live and simulated testbeds, side by side."""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import Field

from actuators.control import BalancingMethod
from actuators.errors import ConfigError, DeepSchedError
from actuators.options import Options
from actuators.parts import LiveOptions
from rayjobs.cli import Verb, run_verb
from rayjobs.config import load_options
from rayjobs.progress import Progress
from rayjobs.runs import RunFolder
from rayjobs.testbeds import TestbedKind
from tuning.judge import JudgeOptions
from tuning.observing import ObserveOptions


class EvaluateOptions(Options):
    """One evaluation."""

    bundle: Path | None = None
    """Folder of a policy bundle that is on trial, for example `runs/train-1-…/bundle`; deadlines are its own."""
    policies: tuple[str, ...] = ("round_robin", "least_conn", "random_two", "inverse_latency", "type_means", "idle")
    """What is judged beside it. NGINX as shipped: round_robin, least_conn, random_two. Heuristics:
    equal, inverse_latency, little, equaliser, aimd, model_based, utilisation_pid, knapsack; NAME@METHOD
    puts one on another method. `expected_delay`: type_means (nothing learned), idle, ratio,
    inverse_latency@expected_delay. Oracles (simulated): shortest_delay, join_shortest, central_queue,
    true_times, optimal_round_robin, optimal_least_conn. Others (live): shared_least_conn, nginx_fair,
    haproxy_leastconn, haproxy_random, nginx:FILE. Further bundles by their folder. OTHER=NAME shows
    NAME as OTHER in the tables."""
    scenario: tuple[str, ...] = ("demo",)
    """What happens meanwhile, one or several: `deepsched scenarios list`. Rounds begin at random moments of it."""
    testbed: tuple[TestbedKind, ...] = ("simulated",)
    """`simulated`, or `live` (starts servers, an NGINX and load on this machine), or both."""
    seed: int = Field(default=1, ge=0)
    """Fixes arrivals, service times and the order of the blocks; the first of the seeds."""
    seeds: int = Field(default=1, ge=1)
    """How many seeds; with each of them policies start anew. Intervals are over seeds and blocks."""
    out: Path | None = None
    """Folder for the run's folder; `runs` when not given."""
    resume: Path | None = None
    """Run folder of an evaluation that was interrupted: goes on with its options, keeps its finished blocks."""
    method: BalancingMethod = "least_conn"
    """Balancing method under heuristics and bundles that name none."""
    workers: float | None = Field(default=None, ge=0.25)
    """Requests that a server serves at once, as `expected_delay` is told; the scenario's own when not given."""
    observe: ObserveOptions = ObserveOptions()
    """Without a bundle: the phase that deadlines come from."""
    judge: JudgeOptions = JudgeOptions()
    """Blocks: how many, how long; `seed` and `seeds` come from above."""
    live: LiveOptions = LiveOptions()
    """The parts of a live testbed."""

    @property
    def listed(self) -> tuple[str, ...]:
        """All policies, the bundle last."""
        return self.policies if self.bundle is None else (*self.policies, f"learned={self.bundle.absolute()}")


def run(options: EvaluateOptions) -> int:
    """Prints a table per part; `evaluation.json`, both parquet files and `report.html` are in the run's folder."""
    from rayjobs.console import remarks, results
    from rayjobs.evaluating import judge_parts, plan_parts, stages
    from rayjobs.run_report import write_evaluation_report
    from tuning.table import print_evaluation

    options, folder = _begin(options)
    parts = plan_parts(options, folder)
    try:
        with Progress(stages(parts, options)) as progress:
            evaluations = judge_parts(parts, options, folder, progress)
            with progress.stage("report"):
                report = write_evaluation_report(folder, evaluations)
    except (DeepSchedError, KeyboardInterrupt):
        remarks().print(f"finished blocks are kept; `deepsched evaluate --resume {folder.path}` goes on",
                        markup=False, soft_wrap=True)  # fmt: skip
        raise
    for evaluation in evaluations:
        print_evaluation(evaluation.to_json(), results())
    results().print(f"report: {report}", soft_wrap=True)
    return 0


def _begin(options: EvaluateOptions) -> tuple[EvaluateOptions, RunFolder]:
    """The options in force and the folder: a new one, or the one that is resumed."""
    from rayjobs.evaluating import check

    if options.resume is None:
        check(options)
        return options, RunFolder.create(options.out, "evaluate", options.seed, options)
    saved = options.resume / "config.yaml"
    if not saved.exists():
        raise ConfigError(
            "not the folder of a run", where=str(options.resume), remedy="give the one that holds config.yaml"
        )
    return load_options(EvaluateOptions, file=saved), RunFolder(options.resume)


VERB = Verb(
    name="evaluate",
    summary="judge policies beside each other: a bundle, heuristics, NGINX as shipped, oracles, HAProxy",
    example="deepsched evaluate --scenario S2b,S3 --policies least_conn,type_means,idle --seeds 3",
    options=EvaluateOptions,
    run=run,
    positional=("bundle",),
)

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
