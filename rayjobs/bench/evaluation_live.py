"""Bench `evaluation_live`: the learned system before real servers, beside what a user would otherwise run.

Takes about half an hour of a quiet machine; `--quick` shows that it works and judges nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from actuators.contract.testbed import Testbed
from actuators.contract.topology import social_network
from actuators.testbed.live import LiveTestbed
from actuators.testbed.options import LiveOptions
from actuators.testbed.parts import start_local_testbed
from actuators.testbed.peers import NoStatistics, Peer
from envs.environment.phase import ObserveOptions, watch
from envs.heuristics.controllers import Controller, EstimatorController, FixedController
from envs.heuristics.names import ESTIMATED
from envs.observation.deadlines import derive_deadlines
from envs.scenarios.catalogue import LIVE_WORK_SCALE, StudyScenario
from envs.scenarios.lookup import scenario
from rayjobs.bench.parts.bars import Bar, BenchContext, at_most, figure
from tuning.judging.evaluation import Evaluation, describe_machine
from tuning.judging.judge import Judge
from tuning.judging.plan import JudgeOptions
from tuning.judging.statistics import PairedRatio
from tuning.judging.verdicts import describe_ratio

LEARNED, UNLEARNED, SHARED = "expected_delay", "expected_delay_static", "shared_least_conn"
NATIVE = ("least_conn", "random_two", SHARED)
BEST_NATIVE = "the best native arm"


@dataclass(frozen=True)
class Claim:
    """The learned system's median ratio to another arm may be at most `limit`."""

    other: str
    metric: str
    limit: float


CLAIMS: dict[str, tuple[Claim, ...]] = {
    "S2b": (
        Claim("least_conn", "mean_ms", 0.80),
        Claim("least_conn", "p99_ms", 0.65),
        Claim(BEST_NATIVE, "mean_ms", 0.85),
        Claim(UNLEARNED, "mean_ms", 0.85),
    ),
    "S3": (
        Claim("least_conn", "mean_ms", 0.80),
        Claim("least_conn", "p99_ms", 0.65),
        Claim(UNLEARNED, "mean_ms", 0.75),
    ),
    "S1": (Claim("least_conn", "mean_ms", 1.03), Claim("least_conn", "p99_ms", 1.03)),
    "S2": (Claim("round_robin", "mean_ms", 0.50), Claim("round_robin", "p99_ms", 0.42)),
}
"""Scenario → limits (docs/results.md#bench-evaluation_live)."""

SECONDS = {"S2": (6.0, 24.0)}
"""Scenario → warm-up and measured part of a block. Under round robin S2's slow server is busy for 93 % of its time:
its queue takes long to become what it will be, and has its 99th percentile from few long bursts."""


def measure(context: BenchContext) -> Sequence[Bar]:
    """Judges scenario after scenario on one live testbed."""
    quick = context.quick
    common = JudgeOptions(
        rounds=2 if quick else 8, interval_s=0.5 if quick else 1.0, seed=context.seed, learned=LEARNED, repeats=12,
    )  # fmt: skip
    bars: list[Bar] = []
    with start_local_testbed(social_network(), LiveOptions(), context.work_dir, context.seed) as testbed:
        for name in ["S2b"] if quick else CLAIMS:
            played = scenario(name, work_scale=LIVE_WORK_SCALE)
            warm_up_s, measure_s = (0.5, 1.5) if quick else SECONDS.get(name, (2.0, 6.0))
            options = common.model_copy(update={"warm_up_s": warm_up_s, "measure_s": measure_s})
            evaluation = _judge(context, testbed, played, options)
            bars += _bars(name, evaluation, judged=not quick)
    return bars


def _judge(context: BenchContext, testbed: LiveTestbed, played: StudyScenario, options: JudgeOptions) -> Evaluation:
    watching = ObserveOptions(duration_s=4.0 if context.quick else 10.0, explore_s=0, skip_s=1.0, window_s=0.5)
    windows = watch(testbed, played, "least_conn", watching, context.seed)
    deadlines_s = derive_deadlines(windows.equal, testbed.topology).seconds
    names = {claim.other for claim in CLAIMS[played.name]} | {"least_conn"}
    if BEST_NATIVE in names:
        names = names - {BEST_NATIVE} | set(NATIVE)
    controllers = [_controller(name, testbed, played, context.seed) for name in (*sorted(names), LEARNED)]
    with _peers(names, testbed, context) as peers:
        judge = Judge(
            testbed, controllers, played, deadlines_s, options, machine=describe_machine(), peers=peers, kind="live",
            progress=lambda now: context.log(f"{played.name} {now.index + 1}/{now.total}: {now.planned.policy}")
            if now.phase == "measure" else None,
        )  # fmt: skip
        return judge.run()


def _controller(name: str, testbed: LiveTestbed, played: StudyScenario, seed: int) -> Controller:
    if name in (LEARNED, UNLEARNED):
        servers = played.script(testbed.topology, seed).servers
        workers = np.array([float(profile.workers) for profile in servers])
        return EstimatorController(testbed.topology, ESTIMATED[name], workers)
    return FixedController(name, "round_robin" if name == "round_robin" else "random_two" if name == "random_two" else
                           "least_conn")  # fmt: skip


@contextlib.contextmanager
def _peers(names: set[str], testbed: LiveTestbed, context: BenchContext) -> Iterator[dict[str, Testbed]]:
    with contextlib.ExitStack() as stack:
        found: dict[str, Testbed] = {}
        if SHARED in names:
            peer = stack.enter_context(Peer(SHARED, testbed.topology, context.work_dir / "peers"))
            found[SHARED] = testbed.behind(peer.address, peer, NoStatistics(testbed.topology))
        yield found


def _bars(name: str, evaluation: Evaluation, *, judged: bool) -> Iterator[Bar]:
    discarded = sum(not block.usable for block in evaluation.blocks)
    wait_ms = float(np.mean([block.core_wait_ms or 0.0 for block in evaluation.blocks if block.usable] or [np.nan]))
    for claim in CLAIMS[name]:
        ratio, other = _ratio(evaluation, claim)
        how = (
            f"median of {ratio.rounds} paired rounds; pooled {describe_ratio(ratio)}; blocks discarded: {discarded}; "
            f"the machine let everyone wait {wait_ms:.1f} ms for a core"
        )
        text = f"{name}: {LEARNED} / {other}, {claim.metric}"
        value = float("nan") if ratio.median is None else ratio.median
        reference = _value(evaluation, other, claim.metric)
        if judged:
            yield at_most(text, value, claim.limit, "×", how=how, reference=reference)
        else:
            yield figure(text, value, "×", how=how, reference=reference)


def _ratio(evaluation: Evaluation, claim: Claim) -> tuple[PairedRatio, str]:
    """The claim's ratio and the arm that it is to."""
    if claim.other != BEST_NATIVE:
        return evaluation.ratios(LEARNED, claim.other)[claim.metric], claim.other
    found = {name: evaluation.ratios(LEARNED, name)[claim.metric] for name in NATIVE}
    best = max(NATIVE, key=lambda name: found[name].median or 0.0)
    return found[best], best


def _value(evaluation: Evaluation, policy: str, metric: str) -> str:
    value = evaluation.values[policy][metric]
    return "no answer" if value is None else f"{value:.3g} ms"
