"""`deepsched evaluate [BUNDLE]`: compares policies on scenarios and seeds, on live and simulated testbeds.

An evaluation has a part per testbed and scenario. Each part has a decision problem (a bundle's, or from an observation
phase), the policies that can run there, and its blocks, which `tuning.judging.judge` runs.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field

from actuators.contract.control import DirectMethod
from actuators.errors import ConfigError, DataError, DeepSchedError, closest
from actuators.options import Moved, Never, Only, OnlyIf
from actuators.testbed.options import LiveOptions
from envs.environment.phase import ObserveOptions
from envs.heuristics.names import TODAY
from rayjobs.cli.config import resumed
from rayjobs.cli.console import console_err
from rayjobs.cli.interrupts import kept
from rayjobs.cli.main import Verb, run_verb
from rayjobs.cli.progress import Progress, Stage
from rayjobs.runs.folder import RunFolder
from rayjobs.runs.joining import RayOptions
from rayjobs.runs.testbed import TestbedKind, check_live, open_testbed
from tuning.judging.plan import BlockOptions, JudgeOptions, PolicyName, check_reference

if TYPE_CHECKING:
    from actuators.contract.testbed import Testbed
    from actuators.contract.topology import Topology
    from actuators.testbed.programs import PeerPrograms
    from envs.environment.problem import DecisionProblem
    from envs.heuristics.controllers import Controller
    from envs.scenarios.catalogue import StudyScenario
    from rayjobs.runs.steps import Steps
    from tuning.judging.contenders import Spec
    from tuning.judging.evaluation import Evaluation
    from tuning.judging.steered_pool import SteeredPool

START_S, BLOCK_OVERHEAD_S, SIMULATED_S = 20.0, 1.2, 10.0


def _takes_method(options: EvaluateOptions) -> bool:
    return any(spec.takes_method and not _sets_times(spec) for spec in options.specs())


def _takes_workers(options: EvaluateOptions) -> bool:
    return any(spec.takes_workers and (not spec.is_bundle or _sets_times(spec)) for spec in options.specs())


class EvaluateOptions(RayOptions):
    """One evaluation."""

    only: ClassVar = {
        "judge.max_core_wait_ms": Only(testbed="live"),
        "address": Only(testbed="live"),
        "live.nginx.method": Never("every policy brings its own method, or takes --method"),
    }
    moved: ClassVar = {
        "judge.seed": Moved("seed", obeyed=False),
        "judge.seeds": Moved("seeds", obeyed=False),
        "judge.interval_s": Moved("interval_s"),
        "judge.learned": Moved("learned"),
    }

    bundle: Path | None = None
    """Folder of the policy bundle on trial, for example `runs/train-1-…/bundle`, which also gives the deadlines; they
    come from an observation phase when not given."""
    policies: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "round_robin", "least_conn", "random_two", "inverse_latency", "expected_delay_static", "expected_delay",
    )  # fmt: skip
    """Policies to compare with it. NGINX as shipped: round_robin, least_conn, random_two. Heuristics:
    equal, inverse_latency, little, equaliser, aimd, model_based, utilisation_pid, knapsack; NAME@METHOD
    runs one on another method. Rules with service times: expected_delay (learned),
    expected_delay_static (nothing learned), ratio, unlevelled, inverse_latency@expected_delay; late_binding and
    earliest_deadline also hold requests until a server has a free slot, and send them in their own order; with
    _learned behind the name they learn how many slots. Oracles (simulated): shortest_delay, join_shortest,
    central_queue, true_times, optimal_round_robin, optimal_least_conn.
    Rules of other balancers and of papers (simulated): least_time, least_time_shared, peak_ewma,
    least_request, random_choose, c3, join_idle_queue, prequal. NGINX without Lua (simulated and live):
    shared_least_conn, stock:FILE (a plan of `deepsched weights suggest`).
    Others (live, `make setup-peers`): nginx_fair, nginx131_least_time,
    nginx131_least_time_shared, haproxy_leastconn, haproxy_random, envoy_least_request, traefik_leasttime,
    traefik_p2c, caddy_least_conn, caddy_random_choose, nginx:FILE; haproxy_steered and envoy_steered balance round
    robin by weights that we set, by inverse latency. Further bundles by their folder. today (on
    the `calibration.json` of a recorded system, where it comes first unless policies are given): the weights and the
    method of the recording. OTHER=NAME shows NAME as OTHER in the tables."""
    scenario: tuple[str, ...] = Field(default=("demo",), min_length=1)
    """Scenarios to play, one or several: `deepsched scenarios list`, YAML files, or the `calibration.json` of a
    recorded system. Rounds begin at random moments of it."""
    testbed: tuple[TestbedKind, ...] = Field(default=("simulated",), min_length=1)
    """`simulated`, or `live` (starts servers, an NGINX and load on this machine), or both."""
    seed: int = Field(default=1, ge=0)
    """Fixes arrivals, service times and the order of the blocks; the first of the seeds."""
    seeds: int = Field(default=1, ge=1)
    """Number of seeds; policies start anew with each. Intervals are over seeds and blocks."""
    interval_s: float = Field(default=1.0, gt=0)
    """Control interval: seconds between two decisions."""
    learned: PolicyName | None = None
    """The policy on trial; the first bundle when not given, or else `expected_delay`."""
    out: Annotated[Path | None, Only(resume=None)] = None
    """Folder for the run's folder; `runs` when not given."""
    resume: Path | None = None
    """Run folder of an interrupted evaluation: continues it with its options and finished blocks. Of a seed that is not
    finished, policies that learn repeat their blocks, as what they had learned is lost. A new one when not given."""
    method: Annotated[
        DirectMethod, OnlyIf(_takes_method, "as every policy brings its own method", "judge a heuristic")
    ] = "least_conn"
    """Balancing method under heuristics and bundles that name none."""
    workers: Annotated[
        float | None, OnlyIf(_takes_workers, "as no policy uses it", "judge a policy on expected_delay")
    ] = Field(default=None, ge=0.25)
    """Requests that a server serves at once, for `expected_delay`; the scenario's own when not given."""
    observe: Annotated[ObserveOptions, Only(bundle=None)] = ObserveOptions()
    """Without a bundle: the observation phase that deadlines come from."""
    judge: BlockOptions = BlockOptions()
    """Number and length of the blocks."""
    live: Annotated[LiveOptions, Only(testbed="live")] = LiveOptions()
    """The parts of a live testbed."""

    def specs(self) -> tuple[Spec, ...]:
        """All policies, the bundle last. Raises ConfigError for a name that does not exist."""
        from tuning.judging.contenders import parse_policies

        listed = self.policies if self.bundle is None else (*self.policies, f"learned={self.bundle.absolute()}")
        return parse_policies(listed)

    def resolved(self) -> Self:
        if self.resume is not None:
            return resumed(self, self.resume)
        own = any(name.endswith(".json") for name in self.scenario)
        return self.changed({"policies": (TODAY, *self.policies)} if own and not self.given("policies") else {})


def run(options: EvaluateOptions) -> int:
    """Prints a table per part and means; `evaluation.json`, parquet files and `report.html` are in the run's folder."""
    from rayjobs.cli.console import console_out
    from rayjobs.runs.report import write_evaluation_report
    from tuning.judging.tables import print_evaluation, print_means

    options = options.resolved()
    check(options)
    folder = RunFolder(options.resume) if options.resume else None
    folder = folder or RunFolder.create(options.out, "evaluate", options.seed, options)
    parts = plan_parts(options, folder)
    resume = f"finished blocks are kept; go on with: deepsched evaluate --resume {folder.path}"
    with kept(lambda: resume, DeepSchedError), Progress(_stages(parts, options)) as progress:
        evaluations = _judge_parts(parts, options, folder, progress)
        with progress.stage("report"):
            report = write_evaluation_report(folder, evaluations)
    for evaluation in evaluations:
        print_evaluation(evaluation.to_json(), console_out())
    print_means([evaluation.to_json() for evaluation in evaluations], console_out())
    console_out().print(f"report: {report}", soft_wrap=True)
    return 0


def system(options: EvaluateOptions) -> Topology:
    """The system that is judged: that of the calibrated scenarios, else that of the first bundle, else the demo's."""
    from envs.scenarios.lookup import scenario, topology_of

    bundle = next((Path(spec.base) for spec in options.specs() if spec.is_bundle), None)
    if bundle is None or any(name.endswith(".json") for name in options.scenario):
        return topology_of(scenario(name) for name in options.scenario)
    from tuning.policy.bundle import load_bundle

    return load_bundle(bundle).problem.topology


def check(options: EvaluateOptions) -> None:
    """Raises ConfigError (BundleError) for what cannot be judged, before anything is made or started."""
    specs = options.specs()
    names = [spec.name for spec in specs]
    if options.learned is not None and options.learned not in names:
        raise ConfigError(
            f"'{options.learned}' is not judged", where="--learned", remedy=closest(options.learned, names)
        )
    check_reference(options.judge.reference, names)
    _check_reference_runs(options, specs)
    _check_names(options)
    topology = system(options)
    if "live" in options.testbed:
        check_live(topology)
    _check_today(options, specs)
    bundles = [Path(spec.base) for spec in specs if spec.is_bundle]
    if bundles:
        from tuning.policy.bundle import load_bundle

        for bundle in bundles:
            load_bundle(bundle, topology)


def _check_reference_runs(options: EvaluateOptions, specs: Sequence[Spec]) -> None:
    (reference,) = (spec for spec in specs if spec.name == options.judge.reference)
    for kind in options.testbed:
        if lack := _lack(reference, kind, options.live):
            what = f"'{reference.name}' cannot be judged on the {kind} testbed: {lack}"
            raise ConfigError(what, where="judge.reference", remedy="take a policy that every testbed can judge")


def _check_names(options: EvaluateOptions) -> None:
    """Scenarios of one name would share a folder with its deadlines and blocks. Raises ConfigError."""
    from envs.scenarios.lookup import scenario

    given: dict[str, str] = {}
    for text in options.scenario:
        name = scenario(text).name
        if name in given:
            what = f"{given[name]} and {text} are both called '{name}'"
            remedy = "give each its own name; a calibration.json has that of its folder"
            raise ConfigError(what, where="scenario", remedy=remedy)
        given[name] = text
    if len(set(options.testbed)) < len(options.testbed):
        raise ConfigError("a testbed is given twice", where="testbed", remedy="name each once")


def _check_today(options: EvaluateOptions, specs: Sequence[Spec]) -> None:
    others = [name for name in options.scenario if not name.endswith(".json")]
    if others and any(spec.base == TODAY for spec in specs):
        what = f"nothing balances the scenario {others[0]} today"
        raise ConfigError(what, where=f"policy '{TODAY}'", remedy="judge on the calibration.json of a recorded system")


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


def plan_parts(options: EvaluateOptions, folder: RunFolder) -> list[Part]:
    """Every part, and a remark for each policy that is left out somewhere; a single part is the run folder itself.

    Raises:
        ConfigError: unknown scenario or policy, or nothing to judge.
    """
    specs = options.specs()
    runnable = {kind: [spec for spec in specs if _can_run(spec, kind, options.live)] for kind in options.testbed}
    pairs = [(kind, _scenario_on(kind, name)) for kind in options.testbed for name in options.scenario]
    if not pairs:
        raise ConfigError("nothing to judge", where="scenario, testbed", remedy="name at least one of each")
    return [
        Part(
            kind,
            scenario,
            tuple(runnable[kind]),
            folder if len(pairs) == 1 else RunFolder(folder.path / f"{scenario.name}-{kind}"),
        )
        for kind, scenario in pairs
    ]


def _can_run(spec: Spec, kind: TestbedKind, live: LiveOptions) -> bool:
    lack = _lack(spec, kind, live)
    if lack:
        console_err().print(f"left out on the {kind} testbed: {spec.name}, {lack}", markup=False)
    return not lack


def _lack(spec: Spec, kind: TestbedKind, live: LiveOptions) -> str:
    """Why a policy cannot be judged on a testbed; empty when it can."""
    from actuators.testbed.peers import why_missing

    if spec.kind not in ("any", kind):
        return "the simulator's own" if spec.kind == "simulated" else "another balancer"
    return why_missing(spec.base, _programs(live)) if kind == "live" and spec.is_peer else ""


def _programs(live: LiveOptions) -> PeerPrograms:
    from actuators.testbed.programs import PeerPrograms

    return PeerPrograms(nginx=live.nginx.binary)


def _scenario_on(kind: TestbedKind, name: str) -> StudyScenario:
    """The scenario; on a live testbed requests take twice the work, so that half as many make the same load."""
    from envs.scenarios.catalogue import LIVE_WORK_SCALE
    from envs.scenarios.lookup import scenario

    named = scenario(name)
    return replace(named, work_scale=LIVE_WORK_SCALE) if kind == "live" and named.work_scale == 1.0 else named


def _stages(parts: Sequence[Part], options: EvaluateOptions) -> list[Stage]:
    """What will happen and about how long it takes here."""
    stages = []
    for kind in options.testbed:
        live = kind == "live"
        stages.append(Stage(f"start {kind}", START_S if live else 2))
        for part in (part for part in parts if part.kind == kind):
            if options.bundle is None:
                watched_s = options.observe.skip_s + options.observe.duration_s + options.observe.explore_s
                stages.append(Stage(f"observe {part.title}", watched_s if live else 3))
            block_s = options.judge.warm_up_s + options.judge.measure_s + BLOCK_OVERHEAD_S
            blocks = options.judge.rounds * options.seeds * len(part.specs)
            stages.append(Stage(f"judge {part.title}", blocks * block_s if live else SIMULATED_S))
    return [*stages, Stage("report", 3)]


def _judge_parts(
    parts: Sequence[Part], options: EvaluateOptions, folder: RunFolder, progress: Progress
) -> list[Evaluation]:
    """Judges part after part; a finished part is in its folder, also when this raises."""
    from rayjobs.runs.local_ray import ray_session

    topology = system(options)
    evaluations: list[Evaluation] = []
    for kind in options.testbed:
        with contextlib.ExitStack() as stack:
            with progress.stage(f"start {kind}"):
                if kind == "live":
                    stack.enter_context(ray_session(servers=len(topology.servers), address=options.address))
                work_dir = folder.path / "testbed"
                testbed = stack.enter_context(open_testbed(kind, topology, work_dir, options.seed, options.live))
            own = [part for part in parts if part.kind == kind]
            evaluations += [_judge_part(part, options, testbed, progress) for part in own]
    return evaluations


def _judge_part(part: Part, options: EvaluateOptions, testbed: Testbed, progress: Progress) -> Evaluation:
    import numpy as np

    from rayjobs.runs.steps import Steps, today_of
    from tuning.judging.contenders import Arena, contender
    from tuning.judging.plan import Excerpt

    part.folder.path.mkdir(exist_ok=True)
    steps = Steps(part.folder, progress, options.seed)
    problem = _problem(part, options, testbed, steps)
    script = part.scenario.script(testbed.topology, options.seed)
    workers = np.array([float(profile.workers) for profile in script.servers])
    workers = workers if options.workers is None else np.full(len(workers), options.workers)
    arena = Arena(problem, options.method, workers, today_of(part.scenario), script.load_balancers)

    def make(seed: int) -> list[Controller]:
        return [contender(spec, arena) for spec in part.specs]

    judging = options.judge.extended(
        JudgeOptions,
        interval_s=options.interval_s,
        seed=options.seed,
        seeds=options.seeds,
        learned=_on_trial(part, options),
    )
    with _peers(part, testbed, options) as (peers, pools):

        def remake(seed: int) -> list[Controller]:
            for pool in pools:
                pool.forget()
            return make(seed)

        return steps.judge(
            testbed, make(options.seed), Excerpt(part.scenario, judging.measure_s), problem.deadlines_s, judging,
            kind=part.kind, name=f"judge {part.title}", remake=remake, peers=peers,
        )  # fmt: skip


def _problem(part: Part, options: EvaluateOptions, testbed: Testbed, steps: Steps) -> DecisionProblem:
    """The bundle's, or what an observation phase of this scenario gives; a resumed part keeps its own."""
    import numpy as np

    from envs.environment.problem import DecisionOptions, DecisionProblem
    from envs.observation.encoder import Encoder
    from tuning.options import TrainingOptions

    if options.bundle is not None:
        from tuning.policy.bundle import load_bundle

        return load_bundle(options.bundle, testbed.topology).problem
    kept, name = part.folder.path / "deadlines.json", f"observe {part.title}"
    if kept.exists():
        with steps.progress.stage(name) as stage:
            deadlines_ms = json.loads(kept.read_text())["deadlines_ms"]
            deadlines_s = np.array([deadlines_ms[kind] for kind in testbed.topology.request_types]) / 1e3
            encoder = Encoder.load(part.folder.path / "encoder.npz")
            stage.update("kept from before", 1.0)
        return DecisionProblem(testbed.topology, deadlines_s, encoder, DecisionOptions())
    return steps.observe(testbed, part.scenario, options.observe, TrainingOptions(), name=name).problem


def _on_trial(part: Part, options: EvaluateOptions) -> str | None:
    """The policy that `learned` names, else the first bundle, else the learning estimator."""
    names = [spec.name for spec in part.specs]
    if options.learned is not None:
        return options.learned if options.learned in names else None
    bundles = [spec.name for spec in part.specs if spec.is_bundle]
    candidates = bundles or [name for name in names if name == "expected_delay"]
    return next((name for name in candidates if name != options.judge.reference), None)


@contextlib.contextmanager
def _peers(
    part: Part, testbed: Testbed, options: EvaluateOptions
) -> Iterator[tuple[dict[str, Testbed], list[SteeredPool]]]:
    """A testbed behind every peer that is judged, and those of them that we steer. All run at once, and one at a time
    has traffic."""
    from actuators.testbed.live import LiveTestbed
    from actuators.testbed.peers import NoStatistics, Peer
    from actuators.testbed.steered import STEERED, SteeredProxy, pool_of
    from tuning.judging.steered_pool import SteeredPool

    with contextlib.ExitStack() as stack:
        peers: dict[str, Testbed] = {}
        pools: list[SteeredPool] = []
        for spec in (spec for spec in part.specs if part.kind == "live" and spec.is_peer):
            if not isinstance(testbed, LiveTestbed):
                raise DataError(f"{spec.name} needs a live testbed", where="policies")
            folder = part.folder.path.absolute() / "peers"
            if spec.base in STEERED:
                proxy = stack.enter_context(SteeredProxy(spec.base, pool_of(testbed.topology), folder))
                pools.append(stack.enter_context(SteeredPool(testbed.topology, proxy)))
                peers[spec.name] = testbed.behind(proxy.address, pools[-1], pools[-1])
                continue
            peer = stack.enter_context(Peer(spec.base, testbed.topology, folder, _programs(options.live)))
            peers[spec.name] = testbed.behind(peer.address, peer, NoStatistics(testbed.topology))
        yield peers, pools


def _sets_times(spec: Spec) -> bool:
    """Whether it is a bundle that sets service times; False also for a folder that cannot be read."""
    from envs.environment.problem import DecisionOptions

    if not spec.is_bundle:
        return False
    try:
        decision = json.loads((Path(spec.base) / "bundle.json").read_bytes())["decision"]
        return DecisionOptions.model_validate(decision).action.estimator is not None
    except (OSError, ValueError, KeyError, TypeError):
        return False


VERB = Verb(
    name="evaluate",
    example="deepsched evaluate --scenario S2b,S3 --policies least_conn,inverse_latency,expected_delay --seeds 3",
    options=EvaluateOptions,
    run=run,
    positional=("bundle",),
    common=(
        "policies", "scenario", "testbed", "seed", "seeds", "interval_s", "method", "out", "resume", "address",
        "judge.rounds", "judge.measure_s", "judge.reference",
    ),
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
