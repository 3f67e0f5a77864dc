"""`deepsched demo`: the main job from end to end on this machine, ending with a table and a page."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from actuators.contract.control import BalancingMethod
from actuators.errors import ConfigError
from actuators.nginx.detect import detect, need_lua
from actuators.options import Options
from actuators.testbed.parts import LiveOptions
from rayjobs.cli.interrupts import leave_within
from rayjobs.cli.main import Verb, run_verb
from rayjobs.cli.progress import Progress, Stage
from rayjobs.runs.folder import RunFolder
from rayjobs.runs.testbed import TestbedKind, open_testbed
from tuning.judging.plan import JudgeOptions
from tuning.observing.phase import ObserveOptions
from tuning.options import AlgorithmOptions, TrainingOptions

if TYPE_CHECKING:
    from envs.environment.problem import DecisionProblem
    from envs.heuristics.weights import Policy
    from envs.observation.observer import Observation
    from tuning.judging.evaluation import Evaluation
    from tuning.judging.plan import Controller
    from tuning.learning.trainer import Trainer

CLEAN_UP_S = 9.0
POLICIES = 6
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
    method: Literal["auto", "expected_delay", "least_conn", "round_robin", "random_two"] = "auto"
    """What the policy steers. `auto`: the best that the machine's NGINX allows, service times for `expected_delay`
    where it has Lua, else weights on `least_conn`. The others are judged beside it."""
    testbed: TestbedKind = "live"
    """`simulated` runs the same job without NGINX, load or servers; equal seeds then give equal numbers."""
    scenario: str = "demo"
    """What happens on the testbed: `deepsched scenarios list`."""
    observe: ObserveOptions = ObserveOptions()
    """The observation phase."""
    training: TrainingOptions = TrainingOptions(steps=20_000)
    """Training on simulated testbeds; `interval_s` and `method` come from above, and with `expected_delay` the policy
    is a residual on learned service times, paid for what differs from them on the same arrivals."""
    live_training: LiveTrainingOptions = LiveTrainingOptions()
    """Training on the testbed itself."""
    judge: JudgeOptions = JudgeOptions(rounds=4, warm_up_s=1.5, measure_s=4.0)
    """The judgement; `interval_s` and `seed` come from above."""
    live: LiveOptions = LiveOptions()
    """The parts of the live testbed."""


def run(options: DemoOptions) -> int:
    """Prints the table and the report's path; everything started is ended, whatever happens."""
    options = resolve(options)
    from envs.scenarios.lookup import scenario
    from rayjobs.cli.console import console_err, console_out
    from rayjobs.doctor import diagnose, require
    from rayjobs.runs.report import write_run_report
    from tuning.judging.tables import print_evaluation

    for name in (options.scenario, *options.training.scenarios):
        scenario(name)
    folder = RunFolder.create(options.out, "demo", options.seed, options)

    def kept() -> str:
        return f"kept in {folder.path}: {folder.contents()}"

    leave_within(CLEAN_UP_S, kept)
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
        console_err().print(kept(), markup=False, soft_wrap=True)
        raise
    print_evaluation(evaluation.to_json(), console_out())
    console_out().print(f"report: {report}", soft_wrap=True)
    return 0


def resolve(options: DemoOptions) -> DemoOptions:
    """The options with `quick`, `interval_s`, `method` and `seed` carried into the stages."""
    from tuning.judging.contenders import LEARNED

    stages: dict[str, Options] = {
        "observe": options.observe,
        "live_training": options.live_training,
        "judge": options.judge,
    }
    interval_s, steps = options.interval_s, options.training.steps
    if options.quick:
        interval_s = min(interval_s, 0.5)
        stages["observe"] = options.observe.model_copy(update={"duration_s": 5.0, "explore_s": 4.0, "skip_s": 1.0})
        steps = 6000
        brief = options.live_training.algorithm.model_copy(update={"batch_steps": 6, "minibatch_steps": 6})
        stages["live_training"] = options.live_training.model_copy(update={"steps": 6, "algorithm": brief})
        stages["judge"] = options.judge.model_copy(update={"rounds": 2, "warm_up_s": 0.5, "measure_s": 2.0})
    method = best_base(options)
    stages["training"] = training_on(options.training, method).model_copy(
        update={"interval_s": interval_s, "steps": steps}
    )
    own = {"interval_s": interval_s, "seed": options.seed, "learned": LEARNED}
    stages["judge"] = stages["judge"].model_copy(update=own)
    return options.model_copy(update={**stages, "interval_s": interval_s, "method": method})


def best_base(options: DemoOptions) -> BalancingMethod:
    """The balancing method that the policy steers. Raises MissingToolError for `expected_delay` without Lua."""
    can_weigh_only = options.training.decision.action.kind != "residual"
    if options.method == "auto" and can_weigh_only:
        return "least_conn"
    if options.testbed == "simulated" or options.method not in ("auto", "expected_delay"):
        return "expected_delay" if options.method == "auto" else options.method
    build = detect(options.live.nginx.binary)
    if options.method == "expected_delay":
        need_lua(build)
    return "expected_delay" if build.has_lua else "least_conn"


def training_on(training: TrainingOptions, method: BalancingMethod) -> TrainingOptions:
    """The training on that method; raises ConfigError for actions that are no service times."""
    action = training.decision.action
    if method != "expected_delay":
        action = action.model_copy(update={"baseline": "inverse_latency"})
    elif action.kind != "residual":
        raise ConfigError(
            f"actions of kind {action.kind} set weights, not service times", where="training.decision.action.kind",
            remedy="take residual, or another --method",
        )  # fmt: skip
    elif action.estimator is None:
        action = action.model_copy(update={"baseline": "idle"})
    decision = training.decision.model_copy(update={"action": action})
    return training.model_copy(
        update={"method": method, "decision": decision, "paired": training.paired or method == "expected_delay"}
    )


def _work(options: DemoOptions, folder: RunFolder, progress: Progress) -> tuple[Evaluation, Trainer, list[Observation]]:
    from envs.heuristics.controllers import Recorded
    from envs.scenarios.lookup import scenario
    from rayjobs.runs.local_ray import local_ray
    from rayjobs.runs.steps import Steps

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
        policies = judged(options, observed.problem, learned)
        evaluation = steps.judge(testbed, policies, watched, observed.deadlines.seconds, options.judge)
        with progress.stage("end"):
            stack.close()
    return evaluation, trainer, learned.seen


def judged(options: DemoOptions, problem: DecisionProblem, learned: Policy) -> list[Controller]:
    """NGINX as shipped, the simple heuristic, the in-memory rule without and with learning, and the policy.

    The rule is left out where the NGINX cannot hold it in memory.
    """
    from tuning.judging.contenders import LEARNED, Arena, contender, learned_controller, parse_policies

    weighs: BalancingMethod = "least_conn" if options.method == "expected_delay" else options.training.method
    names = ["round_robin", "least_conn", "inverse_latency"]
    if options.testbed == "simulated" or detect(options.live.nginx.binary).has_lua:
        names += ["type_means", "idle"]
    arena = Arena(problem, weighs, problem.believed_workers)
    others = [contender(spec, arena) for spec in parse_policies(names)]
    return [*others, learned_controller(LEARNED, options.training.method, learned, problem)]


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
    example="deepsched demo --quick --seed 1 --out runs",
    options=DemoOptions,
    run=run,
)

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
