"""Bench `methods`: `expected_delay` in a real NGINX against native least_conn, paired; shares of round_robin; drift."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from actuators.contract.control import Weights
from actuators.contract.topology import Topology, social_network
from actuators.http_client import http_session
from actuators.nginx.config import NginxOptions
from actuators.nginx.instance import Nginx
from actuators.statistics.reader import Collector, StatusReader
from actuators.testbed.options import LiveOptions
from actuators.testbed.parts import start_local_testbed
from envs.estimators.registry import DEFAULT_ESTIMATOR
from envs.heuristics.controllers import Controller, EstimatorController, FixedController
from envs.scenarios.lookup import scenario
from rayjobs.bench.parts.bars import Bar, BenchContext, at_most, figure
from rayjobs.bench.parts.site import WorkerCpu, constant_servers, front, raise_priority
from tuning.judging.blocks import Block
from tuning.judging.contenders import oracle
from tuning.judging.evaluation import Evaluation
from tuning.judging.judge import Judge, JudgeProgress
from tuning.judging.plan import JudgeOptions

WORKERS = 4.0
WORK_SCALE = 2.0
"""Services of 36, 8.8 and 6.6 ms: what one machine can emulate and serve beside the load."""
NATIVE, CLONE, LEARNED, TRUE, MEANS = "least_conn", "least_conn in memory", "learned", "true times", "type means"
DEADLINES_S = np.array([0.12, 0.05, 0.04])
"""Nothing here is judged by deadlines."""
TWO, NATIVE_TWO = "learned, 2 workers", "least_conn, 2 workers"


@dataclass
class _Arm:
    """One policy before the same servers as all others, in an NGINX of its own.

    Attributes:
        cpu_us: NGINX's CPU time per request of each measured block, in microseconds.
    """

    controller: Controller
    nginx: Nginx
    collector: Collector
    cpu_us: list[float] = field(default_factory=list)
    _began_s: float = 0.0

    def begin(self) -> None:
        """A measured part begins."""
        self._began_s = WorkerCpu(self.nginx).seconds()

    def end(self, block: Block) -> None:
        """The measured part has ended."""
        used_s = WorkerCpu(self.nginx).seconds() - self._began_s
        self.cpu_us.append(used_s / max(int(block.tally.answered.sum()), 1) * 1e6)


def measure(context: BenchContext) -> Sequence[Bar]:
    """Latency and cost of the methods, and the exactness of shares (docs/results.md#bench-methods)."""
    quick = context.quick
    options = JudgeOptions(
        rounds=1 if quick else 6, warm_up_s=1.0 if quick else 3.0, measure_s=3.0 if quick else 11.0, repeats=12,
        seed=context.seed, reference=NATIVE, learned=LEARNED,
    )  # fmt: skip
    bars: list[Bar] = []
    note = raise_priority(os.getpid())
    with contextlib.ExitStack() as stack:
        testbed = stack.enter_context(
            start_local_testbed(social_network(), LiveOptions(), context.work_dir / "servers", context.seed)
        )
        arms = stack.enter_context(_arms(context, testbed.topology))
        behind = {name: testbed.behind(arm.nginx.address, arm.nginx, arm.collector) for name, arm in arms.items()}
        for name in ("S2b", "S3"):

            def begin(now: JudgeProgress, name: str = name) -> None:
                if now.phase == "measure":
                    context.log(f"{name} {now.index + 1}/{now.total}: {now.planned.policy}")
                    arms[now.planned.policy].begin()

            evaluation = Judge(
                testbed, [arm.controller for arm in arms.values()], scenario(name, work_scale=WORK_SCALE), DEADLINES_S,
                options, arms=behind, kind="live", progress=begin,
                keep=lambda block: arms[block.planned.policy].end(block),
            ).run()  # fmt: skip
            found = _bars(name, evaluation, arms, note)
            # A single round of three seconds is too short for learning: no bar is held against it.
            bars += [replace(bar, limit=None, holds=True) for bar in found] if quick else found
        bars.append(_drift(arms))
    return [*bars, _shares(context)]


@contextlib.contextmanager
def _arms(context: BenchContext, topology: Topology) -> Iterator[dict[str, _Arm]]:
    native = NginxOptions(method="least_conn", actuation="reload")
    memory = NginxOptions(method="least_conn", actuation="memory")
    delay = NginxOptions(method="expected_delay", actuation="memory")
    wanted: list[tuple[Controller, NginxOptions]] = [
        (FixedController(NATIVE, "least_conn"), native),
        (FixedController(CLONE, "least_conn"), memory),
        (EstimatorController(topology, DEFAULT_ESTIMATOR, WORKERS, LEARNED), delay),
        (oracle("true_times", TRUE), delay),
    ]
    if not context.quick:
        wanted += [
            (EstimatorController(topology, "type_means", WORKERS, MEANS), delay),
            (FixedController(NATIVE_TWO, "least_conn"), native.model_copy(update={"worker_processes": 2})),
            (
                EstimatorController(topology, DEFAULT_ESTIMATOR, WORKERS, TWO),
                delay.model_copy(update={"worker_processes": 2}),
            ),
        ]
    with contextlib.ExitStack() as stack:
        arms = {}
        for index, (controller, options) in enumerate(wanted):
            nginx = stack.enter_context(front(topology, options, context.work_dir / f"arm-{index}"))
            collector = stack.enter_context(Collector(nginx.status_url, topology))
            arms[controller.name] = _Arm(controller, nginx, collector)
        yield arms


def _bars(name: str, evaluation: Evaluation, arms: dict[str, _Arm], note: str) -> list[Bar]:
    ratios = {arm: evaluation.ratios(arm, NATIVE) for arm in arms if arm != NATIVE}
    discarded = sum(not block.usable for block in evaluation.blocks)
    answers = sum(int(block.tally.answered.sum()) for block in evaluation.blocks if block.usable)
    rounds = ratios[LEARNED]["mean_ms"].rounds
    how = f"median of {rounds} paired rounds, {answers} answers, {discarded} blocks discarded, {note}"

    def ratio(arm: str, metric: str) -> float:
        return _known(ratios[arm][metric].median)

    def shown(arm: str, metric: str) -> str:
        return f"{_known(evaluation.values[arm][metric]):.2f} ms"

    def cpu_us(arm: str) -> float:
        return float(np.median(arms[arm].cpu_us))

    to_true = _known(evaluation.ratios(LEARNED, TRUE)["mean_ms"].median)
    bars = [
        at_most(f"{name}: learned to native least_conn, mean", ratio(LEARNED, "mean_ms"), 0.80, "×", how=how,
                reference=shown(NATIVE, "mean_ms")),
        at_most(f"{name}: its p99", ratio(LEARNED, "p99_ms"), 0.65, "×", how=how, reference=shown(NATIVE, "p99_ms")),
        at_most(f"{name}: learned to true service times, mean", to_true, 1.03, "×", how=how,
                reference=shown(TRUE, "mean_ms")),
        at_most(f"{name}: nothing learned yet (least_conn in memory) to native, mean", ratio(CLONE, "mean_ms"), 1.02,
                "×", how=how, reference=shown(NATIVE, "mean_ms")),
        at_most(f"{name}: CPU per request beyond least_conn in memory", cpu_us(LEARNED) - cpu_us(CLONE), 20.0, "us",
                how=how, reference=", ".join(f"{arm} {cpu_us(arm):.0f} us" for arm in (NATIVE, CLONE, LEARNED))),
        figure(f"{name}: errors of all arms", sum(int(b.tally.error_count.sum()) for b in evaluation.blocks), "",
               how=how),
    ]  # fmt: skip
    if MEANS in arms:
        text = f"p99 {ratio(MEANS, 'p99_ms'):.3f}×"
        bars.append(
            figure(f"{name}: type means only, mean to native", ratio(MEANS, "mean_ms"), "×", how=how, reference=text)
        )
    if TWO in arms:
        for metric, kind in (("mean_ms", "mean"), ("p99_ms", "p99")):
            value, one = _known(evaluation.ratios(TWO, NATIVE_TWO)[metric].median), ratio(LEARNED, metric)
            bar = f"{name}: with 2 workers the ratio's {kind} beyond that with 1"
            bars.append(at_most(bar, value - one, 0.03, "×", how=how, reference=f"{value:.3f}× and {one:.3f}×"))
    return bars


def _known(value: float | None) -> float:
    return float("nan") if value is None else value


def _drift(arms: dict[str, _Arm]) -> Bar:
    """All counts of requests in flight after everything has drained."""
    left = 0
    for arm in arms.values():
        balancer = arm.collector.snapshot().balancer
        left += sum(abs(entry.in_flight) for entry in balancer.servers) if balancer else 0
    return at_most(
        "requests in flight when nothing is", left, 0, "", how="sum of the balancers' counts after all blocks"
    )


def _shares(context: BenchContext) -> Bar:
    """Largest deviation from 5/3/2 in any ten consecutive requests of round_robin in memory."""
    worst = 0
    with constant_servers(context.work_dir / "shares") as topology:
        options = NginxOptions(method="round_robin", actuation="memory")
        with front(topology, options, context.work_dir / "shares-front") as nginx:
            nginx.apply(Weights(topology, np.tile([5, 3, 2], (3, 1))))
            counts = [_requests(nginx.status_url, topology.servers)]
            with http_session(10.0) as session:
                for _ in range(20):
                    for _ in range(10):
                        session.get(f"http://{nginx.address}{topology.groups[1].path}")
                    counts.append(_requests(nginx.status_url, topology.servers))
    for before, after in itertools.pairwise(counts):
        worst = max(worst, int(np.abs(after - before - np.array([5, 3, 2])).max()))
    how = "20 times 10 requests, one after the other"
    return at_most("round_robin in memory: deviation from 5/3/2 of every 10", worst, 0, "requests", how=how)


def _requests(status_url: str, servers: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    with StatusReader(status_url) as reader:
        group = reader.snapshot().groups["home_read_backend"]
    return np.array([group[server].request_counter for server in servers])
