"""`deepsched demo`: runs the end-to-end demo on this machine: observe, train, judge; a table and a page at the end."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from actuators.contract.control import BalancingMethod
from actuators.errors import ConfigError
from actuators.nginx.detect import detect, need_lua
from actuators.options import GIVEN, Moved, Never, Only, Options, Retired
from actuators.testbed.options import LiveOptions
from envs.environment.phase import ObserveOptions
from envs.estimators.registry import DEFAULT_ESTIMATOR
from rayjobs.cli.interrupts import kept
from rayjobs.cli.main import Verb, run_verb
from rayjobs.cli.progress import Progress, Stage
from rayjobs.runs.folder import RunFolder
from rayjobs.runs.joining import RayOptions
from rayjobs.runs.testbed import TestbedKind, open_testbed
from tuning.judging.plan import BlockOptions, JudgeOptions, check_reference
from tuning.options import ONLINE, AlgorithmOptions, LearningOptions, TrainingOptions, check_live_algorithm

if TYPE_CHECKING:
    from envs.environment.problem import DecisionProblem
    from envs.heuristics.controllers import Controller
    from envs.heuristics.weights import Policy
    from envs.observation.observer import Observation
    from tuning.judging.evaluation import Evaluation
    from tuning.learning.trainer import Trainer

POLICIES = 6
BLOCK_OVERHEAD_S = 1.2
"""Seconds that a live block spends on changing the method, resetting and draining."""

QUICK: dict[str, Any] = {
    "interval_s": 0.5,
    "observe.duration_s": 5.0,
    "observe.explore_s": 4.0,
    "observe.skip_s": 1.0,
    "training.steps": 6000,
    "live_training.steps": 6,
    "live_training.algorithm.batch_steps": 6,
    "live_training.algorithm.minibatch_steps": 6,
    "judge.rounds": 2,
    "judge.warm_up_s": 0.5,
    "judge.measure_s": 2.0,
}
"""What `--quick` sets, where nothing else was given."""


class LiveTrainingOptions(Options):
    """The short training on the testbed itself after the simulated training."""

    only: ClassVar = {"algorithm.array_runner": Never("one testbed is stepped at a time")}

    steps: int = Field(default=20, ge=0)
    """Control intervals; 0 leaves it out."""
    algorithm: Annotated[AlgorithmOptions, Only(steps=GIVEN)] = AlgorithmOptions(
        learning_rate=3e-5, batch_steps=10, minibatch_steps=10, epochs=2
    )
    """PPO with small steps: a few noisy intervals must not undo what was learned."""


class DemoOptions(RayOptions):
    """The end-to-end demo."""

    only: ClassVar = {
        "training.algorithm.recorded_steps": Never("the demo records nothing, give training.algorithm.transitions"),
        "judge.max_core_wait_ms": Only(testbed="live"),
        "live.nginx.method": Never("set --method"),
    }
    moved: ClassVar = {
        "training.interval_s": Moved("interval_s", obeyed=False),
        "training.method": Moved("method", obeyed=False),
        "judge.interval_s": Moved("interval_s", obeyed=False),
        "judge.seed": Moved("seed", obeyed=False),
        "judge.seeds": Retired("judge on more seeds with `deepsched evaluate BUNDLE --seeds N`", default=1),
        "judge.learned": Retired("the trained policy is on trial", obeyed=False),
    }

    seed: int = Field(default=1, ge=0)
    """Fixes everything random but the live testbed's own noise."""
    out: Path | None = None
    """Folder for the run's folder; `runs` when not given."""
    quick: bool = False
    """Short stages, under 120 s in all: a functional check with noisy figures. Other options take precedence."""
    interval_s: float = Field(default=1.0, gt=0)
    """Control interval: seconds between two decisions."""
    method: Literal["auto", "expected_delay", "least_conn", "round_robin", "random_two"] = "auto"
    """What the policy steers. `auto`: the best that the machine's NGINX allows, service times for `expected_delay`
    where it has Lua, else weights on `least_conn`. The others are compared with it."""
    testbed: TestbedKind = "live"
    """`simulated` runs the same job without NGINX, load or servers; equal seeds then give equal numbers."""
    scenario: str = "demo"
    """What happens on the testbed: `deepsched scenarios list`."""
    observe: ObserveOptions = ObserveOptions()
    """The observation phase."""
    training: LearningOptions = LearningOptions(steps=20_000)
    """Training on simulated testbeds. With `expected_delay` the policy is a residual on learned service times
    (`decision.action.baseline=levelled`), `paired` with them, unless these options are given."""
    live_training: LiveTrainingOptions = LiveTrainingOptions()
    """Training on the testbed itself."""
    judge: BlockOptions = BlockOptions(rounds=4, warm_up_s=1.5, measure_s=4.0)
    """Number and length of the blocks of the judgement."""
    live: Annotated[LiveOptions, Only(testbed="live")] = LiveOptions()
    """The parts of the live testbed."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.live_training.steps:
            check_live_algorithm(self.training.algorithm, self.live_training.algorithm)
        return self

    def resolved(self) -> Self:
        """With the values of `quick`, and `method` as this machine allows it."""
        values = {path: value for path, value in QUICK.items() if self.quick and not self.given(path)}
        values["method"] = method = best_method(self)
        baseline, paired = "training.decision.action.baseline", "training.paired"
        if self.training.decision.action.kind == "residual" and not self.given(baseline):
            values[baseline] = DEFAULT_ESTIMATOR if method == "expected_delay" else "inverse_latency"
        if self.training.algorithm.name in ONLINE and not self.given(paired):
            values[paired] = method == "expected_delay"
        return self.changed(values)


def best_method(options: DemoOptions) -> BalancingMethod:
    """The balancing method that the policy steers.

    Raises:
        ConfigError: the actions are not what the method takes.
        MissingToolError: `expected_delay` on an NGINX without Lua.
    """
    action, method = options.training.decision.action, options.method
    chosen = options.given("training.decision.action.baseline")
    sets_times = action.estimator is not None if chosen else action.kind == "residual"
    if method == "auto":
        if not sets_times:
            return "least_conn"
        if options.testbed == "live" and not chosen and not detect(options.live.nginx.binary).has_lua:
            return "least_conn"
        method = "expected_delay"
    if method == "expected_delay" and not sets_times:
        kind = f"residual on {action.baseline}" if action.kind == "residual" else action.kind
        raise ConfigError(
            f"actions of kind {kind} set weights, not service times",
            where="training.decision.action",
            remedy="take kind residual on baseline levelled, or another --method",
        )
    if method != "expected_delay" and chosen and sets_times:
        raise ConfigError(
            f"baseline {action.baseline} sets service times, not weights",
            where="training.decision.action.baseline",
            remedy="set --method expected_delay",
        )
    if method == "expected_delay" and options.testbed == "live":
        need_lua(detect(options.live.nginx.binary))
    return method


def run(options: DemoOptions) -> int:
    """Prints the table and the path of the report; ends everything that it started, also after an error."""
    from envs.scenarios.lookup import scenario
    from rayjobs.cli.console import console_out
    from rayjobs.doctor import diagnose, require
    from rayjobs.runs.report import write_run_report
    from tuning.judging.tables import print_evaluation

    options = options.resolved()
    _check_reference(options)
    for name in (options.scenario, *options.training.scenarios):
        scenario(name)
    folder = RunFolder.create(options.out, "demo", options.seed, options)

    with kept(lambda: f"kept in {folder.path}: {folder.contents()}"), Progress(_stages(options)) as progress:
        if options.testbed == "live":
            with progress.stage("check") as stage:
                findings = diagnose(options.live.nginx.binary)
                require(findings)
                stage.update(f"{len(findings)} checks passed")
        evaluation, trainer, observations = _work(options, folder, progress)
        with progress.stage("report"):
            report = write_run_report(folder, evaluation, trainer.curve, trainer.problem, observations)
    print_evaluation(evaluation.to_json(), console_out())
    console_out().print(f"report: {report}", soft_wrap=True)
    return 0


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
    left_out = {"check": options.testbed == "simulated", "train live": live.steps == 0}
    return [stage for stage in stages if not left_out.get(stage.name)]


def _work(options: DemoOptions, folder: RunFolder, progress: Progress) -> tuple[Evaluation, Trainer, list[Observation]]:
    """The judgement, the training, and what the learned policy observed while it was judged."""
    from envs.heuristics.controllers import RecordingPolicy
    from envs.scenarios.lookup import scenario, topology_of
    from rayjobs.runs.local_ray import ray_session
    from rayjobs.runs.steps import Steps
    from tuning.judging.contenders import LEARNED

    watched, method = scenario(options.scenario), _method(options)
    training = options.training.extended(TrainingOptions, method=method, interval_s=options.interval_s)
    judging = options.judge.extended(JudgeOptions, interval_s=options.interval_s, seed=options.seed, learned=LEARNED)
    steps = Steps(folder, progress, options.seed)
    with contextlib.ExitStack() as stack:
        with progress.stage("start") as stage:
            stage.update("Ray, with proxy, client and server resources")
            topology = topology_of([watched])
            stack.enter_context(ray_session(servers=len(topology.servers), address=options.address))
            stage.update(f"a {options.testbed} testbed")
            work_dir = folder.path / "testbed"
            testbed = stack.enter_context(open_testbed(options.testbed, topology, work_dir, options.seed, options.live))
        observed = steps.observe(testbed, watched, options.observe, training)
        trainer = steps.train(observed, training, watched.work_scale)
        if options.live_training.steps:
            steps.train_live(trainer, testbed, watched, options.live_training.steps, options.live_training.algorithm)
        bundle = steps.export(trainer)
        learned = RecordingPolicy(bundle.policy())
        policies = judged(options, observed.problem, learned)
        evaluation = steps.judge(testbed, policies, watched, observed.deadlines.seconds, judging, kind=options.testbed)
        with progress.stage("end"):
            stack.close()
    return evaluation, trainer, learned.seen


def _method(options: DemoOptions) -> BalancingMethod:
    assert options.method != "auto", "the options are resolved"
    return options.method


def judged(options: DemoOptions, problem: DecisionProblem, learned: Policy) -> list[Controller]:
    """NGINX as shipped, the simple heuristic, the in-memory rule without and with learning, and the policy.

    The rule is left out where the NGINX cannot hold it in memory.
    """
    from tuning.judging.contenders import LEARNED, Arena, contender, learned_controller, parse_policies

    method = _method(options)
    arena = Arena(problem, "least_conn" if method == "expected_delay" else method, problem.believed_workers)
    others = [contender(spec, arena) for spec in parse_policies(_others(options))]
    return [*others, learned_controller(LEARNED, method, learned, problem)]


_ANYWHERE = ("round_robin", "least_conn", "inverse_latency")
_IN_MEMORY = ("expected_delay_static", "expected_delay")


def _others(options: DemoOptions) -> tuple[str, ...]:
    """Names of what is judged beside the policy. Raises MissingToolError without an NGINX."""
    in_memory = options.testbed == "simulated" or detect(options.live.nginx.binary).has_lua
    return (*_ANYWHERE, *_IN_MEMORY) if in_memory else _ANYWHERE


def _check_reference(options: DemoOptions) -> None:
    """Raises ConfigError for a reference that will not be judged."""
    from tuning.judging.contenders import LEARNED

    reference = options.judge.reference
    # Of an NGINX that may be missing, which `diagnose` says better, only those in memory depend.
    if reference not in (*_ANYWHERE, LEARNED):
        check_reference(reference, (*_others(options), LEARNED))


VERB = Verb(
    name="demo",
    example="deepsched demo --quick --seed 1 --out runs",
    options=DemoOptions,
    run=run,
    common=(
        "quick", "testbed", "method", "scenario", "seed", "out", "address", "interval_s", "observe.duration_s",
        "training.steps", "live_training.steps", "judge.rounds", "judge.measure_s",
    ),
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
