"""`deepsched evaluate [BUNDLE]`: policies × scenarios × seeds on live and simulated testbeds, side by side.

The parts of an evaluation, one per testbed and scenario: problem, contenders and peers of each, then its blocks.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from actuators.contract.control import BalancingMethod
from actuators.errors import ConfigError, DataError, DeepSchedError, closest
from actuators.options import Options
from actuators.testbed.parts import LiveOptions
from rayjobs.cli.config import load_options
from rayjobs.cli.console import console_err
from rayjobs.cli.main import Verb, run_verb
from rayjobs.cli.progress import Progress, Stage
from rayjobs.runs.folder import RunFolder
from rayjobs.runs.testbed import TestbedKind, open_testbed
from tuning.judging.plan import JudgeOptions
from tuning.observing.phase import ObserveOptions

if TYPE_CHECKING:
    from actuators.contract.testbed import Testbed
    from actuators.testbed.peers import PeerPrograms
    from envs.environment.problem import DecisionProblem
    from envs.scenarios.catalogue import StudyScenario
    from rayjobs.runs.steps import Steps
    from tuning.judging.contenders import Spec
    from tuning.judging.evaluation import Evaluation
    from tuning.judging.plan import Controller


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
    from rayjobs.cli.console import console_err, console_out
    from rayjobs.runs.report import write_evaluation_report
    from tuning.judging.tables import print_evaluation

    options, folder = _begin(options)
    parts = plan_parts(options, folder)
    try:
        with Progress(stages(parts, options)) as progress:
            evaluations = judge_parts(parts, options, folder, progress)
            with progress.stage("report"):
                report = write_evaluation_report(folder, evaluations)
    except (DeepSchedError, KeyboardInterrupt):
        console_err().print(f"finished blocks are kept; `deepsched evaluate --resume {folder.path}` goes on",
                        markup=False, soft_wrap=True)  # fmt: skip
        raise
    for evaluation in evaluations:
        print_evaluation(evaluation.to_json(), console_out())
    console_out().print(f"report: {report}", soft_wrap=True)
    return 0


def _begin(options: EvaluateOptions) -> tuple[EvaluateOptions, RunFolder]:
    """The options in force and the folder: a new one, or the one that is resumed."""
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
    example="deepsched evaluate --scenario S2b,S3 --policies least_conn,type_means,idle --seeds 3",
    options=EvaluateOptions,
    run=run,
    positional=("bundle",),
)

START_S, BLOCK_OVERHEAD_S, SIMULATED_S = 20.0, 1.2, 10.0


@dataclass(frozen=True)
class Part:
    """One scenario on one testbed, with the policies that can be judged there."""

    kind: TestbedKind
    scenario: StudyScenario
    specs: tuple[Spec, ...]
    folder: RunFolder

    @property
    def title(self) -> str:
        return f"{self.scenario.name}, {self.kind}"


def check(options: EvaluateOptions) -> None:
    """Raises ConfigError (BundleError) for names that do not exist, before anything is made or started."""
    from envs.scenarios.lookup import scenario
    from tuning.judging.contenders import parse_policies

    specs = parse_policies(options.listed)
    names = [spec.name for spec in specs]
    for role in (options.judge.reference, options.judge.learned):
        if role is not None and role not in names:
            raise ConfigError(f"'{role}' is not judged", where="judge", remedy=closest(role, names))
    for name in options.scenario:
        scenario(name)
    if any(spec.is_bundle for spec in specs):
        from tuning.policy.bundle import load_bundle

        for spec in specs:
            if spec.is_bundle:
                load_bundle(Path(spec.base))


def plan_parts(options: EvaluateOptions, folder: RunFolder | None = None) -> list[Part]:
    """Every part, and a remark for each policy that is left out somewhere; a single part is the run folder itself.

    Raises:
        ConfigError: unknown scenario or policy, or nothing to judge.
    """
    from tuning.judging.contenders import parse_policies

    specs = parse_policies(options.listed)
    runnable = {kind: [spec for spec in specs if _can_run(spec, kind, options.live)] for kind in options.testbed}
    pairs = [(kind, _played(name, kind)) for kind in options.testbed for name in options.scenario]
    if not pairs:
        raise ConfigError("nothing to judge", where="scenario, testbed", remedy="name at least one of each")
    home = folder or RunFolder(Path())
    return [
        Part(
            kind,
            played,
            tuple(runnable[kind]),
            home if len(pairs) == 1 else RunFolder(home.path / f"{played.name}-{kind}"),
        )
        for kind, played in pairs
    ]


def stages(parts: Sequence[Part], options: EvaluateOptions) -> list[Stage]:
    """What will happen and about how long it takes here."""
    found = []
    for kind in options.testbed:
        live = kind == "live"
        found.append(Stage(f"start {kind}", START_S if live else 2))
        for part in (part for part in parts if part.kind == kind):
            if options.bundle is None:
                watched_s = options.observe.skip_s + options.observe.duration_s + options.observe.explore_s
                found.append(Stage(f"observe {part.title}", watched_s if live else 3))
            block_s = options.judge.warm_up_s + options.judge.measure_s + BLOCK_OVERHEAD_S
            blocks = options.judge.rounds * options.seeds * len(part.specs)
            found.append(Stage(f"judge {part.title}", blocks * block_s if live else SIMULATED_S))
    return [*found, Stage("report", 3)]


def judge_parts(
    parts: Sequence[Part], options: EvaluateOptions, folder: RunFolder, progress: Progress
) -> list[Evaluation]:
    """Judges part after part; whatever has finished is in the part's folder, also when this raises."""
    from rayjobs.runs.local_ray import ray_session

    evaluations: list[Evaluation] = []
    for kind in options.testbed:
        with contextlib.ExitStack() as stack:
            with progress.stage(f"start {kind}"):
                if kind == "live":
                    stack.enter_context(ray_session())
                work_dir = folder.path / "testbed"
                testbed = stack.enter_context(open_testbed(kind, work_dir, options.seed, options.live))
            own = [part for part in parts if part.kind == kind]
            evaluations += [_judge_part(part, options, testbed, progress) for part in own]
    return evaluations


def _judge_part(part: Part, options: EvaluateOptions, testbed: Testbed, progress: Progress) -> Evaluation:
    import numpy as np

    from rayjobs.runs.steps import Steps
    from tuning.judging.contenders import Arena, contender
    from tuning.judging.plan import Excerpt

    part.folder.path.mkdir(exist_ok=True)
    steps = Steps(part.folder, progress, options.seed)
    problem = _problem(part, options, testbed, steps)
    script = part.scenario.script(testbed.topology, options.seed)
    workers = np.array([float(profile.workers) for profile in script.servers])
    arena = Arena(
        problem, options.method, workers if options.workers is None else np.full(len(workers), options.workers)
    )

    def make(seed: int) -> list[Controller]:
        return [contender(spec, arena) for spec in part.specs]

    judging = options.judge.model_copy(update={"seed": options.seed, "seeds": options.seeds, **_roles(part, options)})
    with _peers(part, testbed, options) as peers:
        return steps.judge(
            testbed, make(options.seed), Excerpt(part.scenario, judging.measure_s), problem.deadlines_s, judging,
            name=f"judge {part.title}", remake=make, peers=peers,
        )  # fmt: skip


def _problem(part: Part, options: EvaluateOptions, testbed: Testbed, steps: Steps) -> DecisionProblem:
    """The first bundle's, or what an observation phase of this scenario gives; a resumed part keeps its own."""
    import numpy as np

    from envs.environment.problem import DecisionOptions, DecisionProblem
    from envs.observation.encoder import Encoder
    from tuning.options import TrainingOptions

    if options.bundle is not None:
        from tuning.policy.bundle import load_bundle

        return load_bundle(options.bundle, testbed.topology).problem
    kept = part.folder.path / "deadlines.json"
    decision = DecisionOptions()
    if kept.exists():
        with progress_of(steps, part):
            found = json.loads(kept.read_text())["deadlines_ms"]
            deadlines_s = np.array([found[name] for name in testbed.topology.request_types]) / 1e3
            return DecisionProblem(
                testbed.topology, deadlines_s, Encoder.load(part.folder.path / "encoder.npz"), decision
            )
    training = TrainingOptions(decision=decision)
    return steps.observe(testbed, part.scenario, options.observe, training, name=f"observe {part.title}").problem


@contextlib.contextmanager
def progress_of(steps: Steps, part: Part) -> Iterator[None]:
    """The observation stage of a part whose observation is already there."""
    with steps.progress.stage(f"observe {part.title}") as stage:
        stage.update("kept from before", 1.0)
        yield


def _roles(part: Part, options: EvaluateOptions) -> dict[str, str | None]:
    """Who is on trial: what was asked for, else the first bundle, else the learning estimator."""
    names = [spec.name for spec in part.specs]
    asked = options.judge.learned
    if asked is not None:
        return {"learned": asked if asked in names else None}
    on_trial = [spec.name for spec in part.specs if spec.is_bundle] or [name for name in names if name == "idle"]
    return {"learned": next((name for name in on_trial if name != options.judge.reference), None)}


@contextlib.contextmanager
def _peers(part: Part, testbed: Testbed, options: EvaluateOptions) -> Iterator[dict[str, Testbed]]:
    """A testbed behind every peer that is judged; all run at once and idle but for one."""
    from actuators.testbed.live import LiveTestbed
    from actuators.testbed.peers import NoStatistics, Peer

    with contextlib.ExitStack() as stack:
        found: dict[str, Testbed] = {}
        for spec in (spec for spec in part.specs if spec.kind == "live"):
            if not isinstance(testbed, LiveTestbed):
                raise DataError(f"{spec.name} needs a live testbed", where="policies")
            folder = part.folder.path.absolute() / "peers"
            peer = stack.enter_context(Peer(spec.base, testbed.topology, folder, _programs(options.live)))
            found[spec.name] = testbed.behind(peer.address, peer, NoStatistics(testbed.topology))
        yield found


def _can_run(spec: Spec, kind: TestbedKind, live: LiveOptions) -> bool:
    from actuators.testbed.peers import why_missing

    if spec.kind not in ("any", kind):
        what = "an oracle of the simulator" if spec.kind == "simulated" else "another balancer"
        console_err().print(f"left out on the {kind} testbed: {spec.name}, {what}", markup=False)
        return False
    missing = why_missing(spec.base, _programs(live)) if spec.kind == "live" else ""
    if missing:
        console_err().print(f"left out: {spec.name}: {missing}", markup=False)
    return not missing


def _programs(live: LiveOptions) -> PeerPrograms:
    from actuators.testbed.peers import PeerPrograms

    return PeerPrograms(nginx=live.nginx.binary)


def _played(name: str, kind: TestbedKind) -> StudyScenario:
    """The scenario; on a live testbed the study's work is doubled, so that half the requests make the same load."""
    from envs.scenarios.catalogue import LIVE_WORK_SCALE
    from envs.scenarios.lookup import scenario

    found = scenario(name)
    return replace(found, work_scale=LIVE_WORK_SCALE) if kind == "live" and found.work_scale == 1.0 else found


if __name__ == "__main__":
    sys.exit(run_verb(VERB))
