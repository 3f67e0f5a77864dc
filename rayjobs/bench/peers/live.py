"""Every program that is installed before the same live servers, in paired rounds with ours; the bar is the best."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.control import DirectMethod
from actuators.contract.late_binding import LateBinding, LateBindingNumbers, slots_for
from actuators.contract.testbed import Testbed
from actuators.contract.topology import Topology, social_network
from actuators.files import write_json
from actuators.testbed.live import LiveTestbed
from actuators.testbed.options import LiveOptions
from actuators.testbed.parts import start_local_testbed
from actuators.testbed.peers import PEERS, NoStatistics, Peer, why_missing
from envs.environment.phase import ObserveOptions, watch
from envs.estimators.registry import DEFAULT_ESTIMATOR
from envs.heuristics.controllers import Controller, EstimatorController, FixedController
from envs.heuristics.names import HELD
from envs.observation.deadlines import derive_deadlines
from envs.scenarios.catalogue import StudyScenario
from envs.scenarios.lookup import scenario
from rayjobs.bench.parts.bars import Bar, BenchContext, at_most, figure
from rayjobs.bench.peers.learned import LEARNED, train_weights
from rayjobs.runs.folder import commit
from tuning.judging.blocks import Journal
from tuning.judging.contenders import learned_controller
from tuning.judging.evaluation import Evaluation, describe_machine
from tuning.judging.judge import Judge
from tuning.judging.plan import Excerpt, JudgeOptions, plan_blocks
from tuning.judging.verdicts import describe_ratio
from tuning.learning.study import Trained
from tuning.policy.learned import LearnedPolicy

OURS, HOLDING = "expected_delay", "late_binding"
REFERENCE: DirectMethod = "least_conn"
AT = " at "
"""Between the name of a scenario and another load."""
LIMITS = {"S2b": (0.92, 0.85), "S3": (0.85, 0.85), "S1": (1.02, 1.02)}
"""Scenario → mean and 99th percentile of ours over those of the best program."""


@dataclass(frozen=True)
class Blocks:
    """A factor on the work of a request, and how often and how long every policy is measured."""

    work_scale: float
    rounds: int
    measure_s: float


FAST, SLOW = Blocks(2.0, rounds=8, measure_s=6.0), Blocks(10.0, rounds=7, measure_s=22.0)
"""Services of 11 and of 54 ms: at least 20,000 requests per policy."""

OTHERS = {
    "S2": Blocks(2.0, rounds=5, measure_s=6.0), "S2b at 90 %": Blocks(2.0, rounds=5, measure_s=10.0),
    "S7": Blocks(2.0, rounds=4, measure_s=30.0), "S8": Blocks(2.0, rounds=3, measure_s=60.0),
}  # fmt: skip
"""Scenarios without a bar. Faults of S7 and overloads of S8 come and go: each round has another excerpt of them."""
ONE_EACH = ("nginx131_least_time", "shared_least_conn", "haproxy_leastconn", "envoy_least_request",
            "traefik_leasttime", "caddy_least_conn")  # fmt: skip
"""Beside `OTHERS`: of every program the method that is the better one in part `live`."""

DEADLINES, BLOCKS, EVALUATION = "deadlines.json", "blocks.jsonl", "evaluation.json"
"""Files of each scenario and service time, in the bench's folder: what an interrupted run goes on from, and figures."""


def measure_fast(context: BenchContext) -> Sequence[Bar]:
    """Services of 11 ms: an hour with all programs."""
    return _measure(context, FAST)


def measure_slow(context: BenchContext) -> Sequence[Bar]:
    """Services of 54 ms: two hours with all programs."""
    return _measure(context, SLOW)


def measure_others(context: BenchContext) -> Sequence[Bar]:
    """Figures of `OTHERS`, learned weights beside them; 80 minutes."""
    installed = _installed(context, ONE_EACH)
    trained = train_weights(context, FAST.work_scale)
    bars: list[Bar] = []
    with start_local_testbed(social_network(), LiveOptions(), context.work_dir, context.seed) as testbed:
        for name in ["S2"] if context.quick else OTHERS:
            named, _, at = name.partition(AT)
            played = scenario(named, work_scale=OTHERS[name].work_scale)
            played = replace(played, name=name, load=0.9) if at else played
            steering = _steering(trained, testbed.topology)
            bars += _figures(name, _judge(context, testbed, played, OTHERS[name], installed, [steering]))
    return bars


def _measure(context: BenchContext, service: Blocks) -> Sequence[Bar]:
    """Bars per scenario, and figures of every program that is installed.

    What an interrupted run has measured is kept, and a second call goes on with it.
    """
    installed = _installed(context, PEERS)
    bars: list[Bar] = []
    with start_local_testbed(social_network(), LiveOptions(), context.work_dir, context.seed) as testbed:
        for name in ["S2b"] if context.quick else LIMITS:
            evaluation = _judge(context, testbed, scenario(name, work_scale=service.work_scale), service, installed)
            where = f"{name}, work × {service.work_scale:g}"
            bars += _figures(where, evaluation)
            bars += _bars(where, LIMITS[name], evaluation, judged=not context.quick)
    return bars


def _installed(context: BenchContext, names: Iterable[str]) -> list[str]:
    missing = {name: why for name in names if (why := why_missing(name))}
    for name, why in missing.items():
        context.log(f"left out: {name}: {why}")
    return [name for name in names if name not in missing]


def _steering(trained: Trained, topology: Topology) -> Controller:
    problem = replace(trained.problem, topology=topology)
    return learned_controller(LEARNED, trained.arm.method, LearnedPolicy(trained.net, problem), problem)


def _judge(
    context: BenchContext, testbed: LiveTestbed, played: StudyScenario, service: Blocks, installed: Sequence[str],
    further: Sequence[Controller] = (),
) -> Evaluation:  # fmt: skip
    quick = context.quick
    # What another version measured is not gone on with.
    folder = context.kept / f"{commit()[:9]}{'-quick' if quick else ''}" / f"{played.name}-{service.work_scale:g}"
    folder.mkdir(parents=True, exist_ok=True)
    usual_load = scenario(played.name.partition(AT)[0]).load
    deadlines_s = _deadlines(context, testbed, played, usual_load, folder / DEADLINES)
    options = JudgeOptions(
        rounds=1 if quick else service.rounds, warm_up_s=0.5 if quick else 4.0,
        measure_s=1.5 if quick else service.measure_s, interval_s=0.5 if quick else 1.0, seed=context.seed,
        reference=REFERENCE, learned=OURS, repeats=24,
    )  # fmt: skip
    workers = np.array([float(profile.workers) for profile in played.script(testbed.topology, context.seed).servers])
    controllers: list[Controller] = [FixedController(each, REFERENCE) for each in (REFERENCE, *installed)]
    controllers.append(EstimatorController(testbed.topology, workers=workers))
    numbers = LateBindingNumbers(order=HELD[HOLDING])
    holding = LateBinding(testbed.topology, deadlines_s, slots_for(workers, numbers.slots_per_worker), numbers)
    controllers.append(EstimatorController(testbed.topology, DEFAULT_ESTIMATOR, workers, HOLDING, holding))
    controllers += further
    journal, plan = Journal(folder / BLOCKS), plan_blocks(controllers, options)
    finished = [block for block in journal.read() if block.planned in plan]
    with _running(installed, testbed, context) as peers:
        judge = Judge(
            testbed, controllers, Excerpt(played, options.measure_s), deadlines_s, options,
            machine=describe_machine(), peers=peers, kind="live",
            finished=finished, relearn=False, keep=journal.append,
            progress=lambda now: context.log(f"{played.name} {now.index + 1}/{now.total}: {now.planned.policy}")
            if now.phase == "measure" else None,
        )  # fmt: skip
        evaluation = judge.run()
    write_json(folder / EVALUATION, evaluation.to_json())
    return evaluation


def _deadlines(
    context: BenchContext, testbed: LiveTestbed, played: StudyScenario, load: float, path: Path
) -> FloatArray:
    """Those of an interrupted run, or new ones."""
    if path.exists():
        return np.array(json.loads(path.read_text()))
    # With more work per request fewer come: ten seconds at work × 2.
    seconds = (2.0 if context.quick else 5.0) * played.work_scale
    watching = ObserveOptions(duration_s=seconds, explore_s=0, skip_s=1.0, window_s=0.5)
    # Without what happens in it, at the load of its ordinary times.
    ordinary = replace(played.nominal(), load=load)
    seen = watch(testbed, ordinary, REFERENCE, watching, context.seed).equal
    deadlines_s = derive_deadlines(seen, testbed.topology).seconds
    write_json(path, deadlines_s.tolist())
    return deadlines_s


@contextlib.contextmanager
def _running(names: Sequence[str], testbed: LiveTestbed, context: BenchContext) -> Iterator[dict[str, Testbed]]:
    with contextlib.ExitStack() as stack:
        found: dict[str, Testbed] = {}
        for name in names:
            peer = stack.enter_context(Peer(name, testbed.topology, context.work_dir / "peers"))
            found[name] = testbed.behind(peer.address, peer, NoStatistics(testbed.topology))
        yield found


def _figures(where: str, evaluation: Evaluation) -> Iterator[Bar]:
    policies = evaluation.to_json()["policies"]
    discarded = sum(not block.usable for block in evaluation.blocks)
    for name in evaluation.policies:
        if not policies[name]["judged_requests"]:
            yield figure(f"{where}: {name}, p99", float("nan"), "ms", how=f"no usable block, {discarded} discarded")
            continue
        values, ratios = evaluation.values[name], evaluation.ratios(name, REFERENCE)
        cpu_us = policies[name].get("proxy_cpu_us", float("nan"))
        yield figure(
            f"{where}: {name}, p99", values["p99_ms"], "ms",
            how=f"live, {policies[name]['judged_requests']} requests, {discarded} blocks discarded; over {REFERENCE}:"
            f" mean {describe_ratio(ratios['mean_ms'])}, p99 {describe_ratio(ratios['p99_ms'])}",
            reference=f"mean {values['mean_ms']:.2f} ms, goodput {1 - values['miss_ratio']:.3f},"
            f" {cpu_us:.0f} µs CPU per request",
        )  # fmt: skip


def _bars(where: str, limits: tuple[float, float], evaluation: Evaluation, *, judged: bool) -> Iterator[Bar]:
    others = [name for name in evaluation.policies if name not in (OURS, HOLDING)]
    for metric, limit in zip(("mean_ms", "p99_ms"), limits, strict=True):
        best = min(others, key=lambda name: evaluation.values[name][metric] or float("inf"))
        ratio = evaluation.ratios(OURS, best)[metric]
        value = float("nan") if ratio.median is None else ratio.median
        text, how = f"{where}: {metric} of {OURS} over the best", f"median of {ratio.rounds} paired rounds"
        if judged:
            yield at_most(text, value, limit, "×", how=f"{how}; {describe_ratio(ratio)}", reference=best)
        else:
            yield figure(text, value, "×", how=how, reference=best)
