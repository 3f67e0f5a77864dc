"""Bench `onboard`: ten systems drawn by seed: does the measured gain lie in the interval that onboarding promised?

Each is a live testbed on this machine: watched under what balances it today, onboarded, and then measured in paired
blocks, with a second arm of today's balancing beside as an A/A pair. Several systems run at a time, each with servers,
NGINX and load of its own. Repeated, it goes on with the systems that are missing. `--quick`: one system, simulated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from actuators.contract.control import BalancingMethod, Control, Weights
from actuators.contract.testbed import Testbed
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from actuators.errors import DataError
from actuators.files import write_json, write_private
from actuators.nginx.instance import Nginx
from actuators.testbed.live import LiveTestbed
from actuators.testbed.options import LiveOptions
from envs.calibration.options import CalibrateOptions
from envs.heuristics.controllers import Controller, FixedController
from envs.simulator.testbed import SimulatedTestbed
from envs.study.promise import LEAST_GAIN, MOST_HALF_WIDTH, Interval
from envs.study.promise_options import PromiseOptions
from rayjobs.bench.parts.bars import Bar, BenchContext, at_least, at_most, figure
from rayjobs.bench.parts.own_systems import OwnSystem, own_systems, running
from rayjobs.cli.console import console_err
from rayjobs.onboard.__main__ import run as run_onboard
from rayjobs.onboard.fit import Fit, fit
from rayjobs.onboard.judge import TODAY, Judged, judge
from rayjobs.onboard.kept import PLACE
from rayjobs.onboard.learn import BUNDLE, learn
from rayjobs.onboard.options import OnboardOptions
from rayjobs.onboard.system import Way
from rayjobs.onboard.twin import BETWEEN_RELOADS_S
from tuning.judging.blocks import Journal
from tuning.judging.contenders import learned_controller
from tuning.judging.evaluation import Evaluation, describe_machine
from tuning.judging.judge import Judge
from tuning.judging.plan import JudgeOptions
from tuning.policy.bundle import Bundle, load_bundle

NEW, AGAIN = "new", "today, again"
WATCH_S, LONGER_S = 300.0, 900.0
"""Seconds of watching, and of a second onboarding where the first one says that it must watch longer."""
BLOCK_S, ROUNDS, WARM_UP_S = 60.0, 6, 45.0
"""Length and number of the blocks of each of the three arms, and length of the warm-up of each block: long enough for
service times that are learned anew, as steering that goes on for hours knows them."""
TRUE_GAIN = 0.10
QUICK_WATCH_S = 240
AT_ONCE = 4
"""Systems that run at a time: together they have up to 600 requests per second, and their servers wait, not compute."""


@dataclass(frozen=True)
class Result:
    """What was promised of one system, and what was measured.

    Attributes:
        promised: interval of the ratio of the mean response times; conclusion: what onboarding recommends.
        measured: ratio of the mean response times; low, high: its 95 % interval over the rounds.
        same: ratio of the two arms of today's balancing.
    """

    system: str
    conclusion: str
    proposal: str
    promised: tuple[float, float, float]
    measured: float
    low: float
    high: float
    same: float

    @property
    def inside(self) -> bool:
        """Whether something was promised, and it came out."""
        _, low, high = self.promised
        return high - low <= 2 * MOST_HALF_WIDTH and low <= self.measured <= high

    def __str__(self) -> str:
        value, low, high = self.promised
        return (
            f"{self.system}: {self.conclusion}; promised {value:.2f} ({low:.2f} to {high:.2f}), measured"
            f" {self.measured:.2f} ({self.low:.2f} to {self.high:.2f}), A/A {self.same:.2f}"
        )


class _AsByReload:
    """A controller whose weights stay in force as long as steering leaves those of a reload."""

    def __init__(self, inner: Controller) -> None:
        self.name: str = inner.name
        self.method: BalancingMethod = inner.method
        self._inner, self._changed_s = inner, -np.inf
        self._last: Control | None = None

    def begin(self, topology: Topology) -> Control:
        self._changed_s = -np.inf
        return self._inner.begin(topology) if self._last is None else self._last

    def decide(self, window: Window) -> Control | None:
        decided = self._inner.decide(window)
        if decided is None or window.end_s - self._changed_s < BETWEEN_RELOADS_S:
            return None
        self._last, self._changed_s = decided, window.end_s
        return decided


def measure(context: BenchContext) -> list[Bar]:
    """Promises against measurements (docs/results.md#bench-onboard)."""
    systems = own_systems(context.seed)
    if context.quick:
        result = _simulated(systems[0], context)
        context.log(str(result))
        return bars([result], "one system, simulated, watched for 240 s")
    # Each in a process of its own: one interpreter cannot train one system and read another's counters in time.
    with ProcessPoolExecutor(AT_ONCE, get_context("spawn")) as pool:
        results = list(pool.map(_kept, systems, repeat(replace(context, log=_say))))
    blocks = f"{ROUNDS} paired blocks of {BLOCK_S:.0f} s per arm"
    how = f"live, {AT_ONCE} systems at a time; watched {WATCH_S:.0f} s, or {LONGER_S:.0f} s if need be, then {blocks}"
    return bars(results, how)


def _say(line: str) -> None:
    console_err().print(f"bench onboard: {line}", markup=False)


def bars(results: Sequence[Result], how: str) -> list[Bar]:
    """The bars; with fewer than all systems they are figures."""
    inside = sum(result.inside for result in results)
    gaining = [r for r in results if r.high < 1 and r.measured <= 1 - TRUE_GAIN]
    recommended = sum(result.conclusion == "change" for result in gaining)
    without = [r for r in results if r.measured > 1 - TRUE_GAIN]
    left = sum(result.conclusion != "change" for result in without)
    lost = sum(result.conclusion == "change" and result.measured > 1 - LEAST_GAIN for result in results)
    widest = max((r.promised[2] - r.promised[1]) / 2 for r in results)
    aa = max(abs(r.same - 1) for r in results)
    names = ("measured gain inside the promised interval", "systems with a true gain of 10 % that are recommended",
             "systems without a gain of 10 % that are not recommended")  # fmt: skip
    counted = zip(names, (inside, recommended, left), (8, 4, 3), strict=True)
    full = len(results) > 1
    of = f"of {len(results)}"
    return [
        *(at_least(n, v, least, of, how=how) if full else figure(n, v, of, how=how) for n, v, least in counted),
        at_most("systems that are recommended without a gain", lost, 0, of, how=how),
        figure("widest promised interval, half-width", 100 * widest, "points", how=how),
        figure("A/A: largest difference between two arms of today", 100 * aa, "%", how=how),
    ]


def _kept(system: OwnSystem, context: BenchContext) -> Result:
    """The result of an earlier run, or a new one, which is kept."""
    path = context.kept / system.name / "result.json"
    if path.exists():
        kept = json.loads(path.read_bytes())
        result = Result(**{**kept, "promised": tuple(kept["promised"])})
        context.log(f"kept: {result}")
        return result
    path.parent.mkdir(parents=True, exist_ok=True)
    context.log(f"{system}: onboarding")
    result = _live(system, path.parent, context)
    write_json(path, asdict(result))
    context.log(str(result))
    return result


def _live(system: OwnSystem, folder: Path, context: BenchContext) -> Result:
    with running(system, LiveOptions(), context.work_dir / system.name, context.seed) as (testbed, nginx):
        place = folder / "onboarding"
        judged = _onboarded(system, place, testbed, nginx, context, WATCH_S)
        if judged.promise.conclusion == "watch_longer":
            context.log(f"{system.name}: onboarding again, as it says")
            place = folder / "onboarding-longer"
            judged = _onboarded(system, place, testbed, nginx, context, LONGER_S)
        bundle = load_bundle(place / BUNDLE, testbed.topology)
        workers = json.loads((place / PLACE / "fit.json").read_bytes())["result"]["workers"]
        bundle = replace(bundle, problem=replace(bundle.problem, workers=np.array(workers)))
        context.log(f"{system.name}: measuring")
        evaluation = _judged(testbed, system, bundle, folder / "blocks.jsonl", context.seed, "live")
    return _result(system, judged, evaluation)


def _onboarded(
    system: OwnSystem, folder: Path, testbed: LiveTestbed, nginx: Nginx, context: BenchContext, watch_s: float
) -> Judged:
    """What onboarding says of the system, watched under its load and what balances it today."""
    token = context.work_dir / f"{system.name}.token"
    write_private(token, nginx.token)
    way: dict[str, Any] = {"nginx_conf": nginx.config_path}
    if system.in_memory:
        way = {"control_url": nginx.control_url, "token_file": token}
    options = OnboardOptions(
        status_url=nginx.status_url, folder=folder, watch_s=watch_s, seed=context.seed,
        promise=PromiseOptions(measure_s=ROUNDS * BLOCK_S), **way,
    )  # fmt: skip
    testbed.set_method(system.method)
    # The load ends by itself soon after the watch, so that it does not disturb the training.
    testbed.reset(replace(system, duration_s=watch_s + 20.0), context.seed)
    if run_onboard(options) != 0:
        raise DataError("the onboarding failed", where=str(folder), remedy="see its lines above")
    testbed.drain()
    return Judged.model_validate(json.loads((folder / PLACE / "judge.json").read_bytes())["result"])


def _simulated(system: OwnSystem, context: BenchContext) -> Result:
    """The same on a simulated testbed, without files: watch, fit, judge, measure."""
    with SimulatedTestbed(system.topology, system.method) as testbed:
        testbed.reset(system, context.seed)
        windows = [testbed.advance(1.0) for _ in range(QUICK_WATCH_S)]
    way = Way(system.method, system.in_memory, True, "drawn")
    quick = CalibrateOptions(bootstraps=6, replicas=1, rounds=4, workers=system.workers)
    say: Callable[[str, float], None] = lambda text, part: None  # noqa: E731 - it has to be typed
    fitted: Fit = fit(windows[1:], system.topology, way, quick, context.seed, system.name, say)
    context.log(f"{system.name}: fitted")
    bundle, _ = learn(fitted, way, 0, 1.0, context.seed, context.work_dir, say)
    promised = PromiseOptions(measure_s=120.0, pairs=12, warm_up_s=15.0)
    judged, bundle = judge(fitted, way, bundle, promised, context.seed, say)
    # The groups of a recording know no paths, but the load needs them.
    bundle = replace(bundle, problem=replace(bundle.problem, topology=system.topology))
    with SimulatedTestbed(system.topology, system.method) as testbed:
        evaluation = _judged(testbed, system, bundle, None, context.seed, "simulated", rounds=2)
    return _result(system, judged, evaluation)


def _judged(
    testbed: Testbed,
    system: OwnSystem,
    bundle: Bundle,
    journal: Path | None,
    seed: int,
    kind: str,
    rounds: int = ROUNDS,
) -> Evaluation:
    """Paired blocks of what balances today, the same again, and the proposal; goes on with what the journal holds."""
    equal = Weights.equal(testbed.topology)
    proposal = learned_controller(NEW, system.method, bundle.policy(), bundle.problem)
    controllers: list[Controller] = [
        FixedController(TODAY, system.method, equal),
        FixedController(AGAIN, system.method, equal),
        _AsByReload(proposal) if isinstance(proposal.begin(testbed.topology), Weights) else proposal,
    ]
    options = JudgeOptions(
        rounds=rounds, warm_up_s=WARM_UP_S, measure_s=BLOCK_S, reference=TODAY, learned=NEW, seed=seed + 1000
    )
    kept = Journal(journal) if journal is not None else None
    return Judge(
        testbed, controllers, system, bundle.problem.deadlines_s, options, machine=describe_machine(), kind=kind,
        finished=kept.read() if kept else (), keep=kept.append if kept else None,
    ).run()  # fmt: skip


def _result(system: OwnSystem, judged: Judged, evaluation: Evaluation) -> Result:
    values, ratio = evaluation.values, evaluation.ratios(NEW, TODAY)["mean_ms"]
    today: Any = values[TODAY]["mean_ms"]
    promised = judged.promise.loads[0].figure("mean_ms").ratio or Interval(value=1.0, low=0.0, high=10.0)
    measured = values[NEW]["mean_ms"] / today
    return Result(
        system=str(system),
        conclusion=judged.promise.conclusion,
        proposal=judged.promise.proposal,
        promised=(promised.value, promised.low, promised.high),
        measured=measured,
        low=measured if ratio.low is None else ratio.low,
        high=measured if ratio.high is None else ratio.high,
        same=values[AGAIN]["mean_ms"] / today,
    )
