"""Bench `methods`: `expected_delay` in a real NGINX against native least_conn, paired; shares of round_robin; drift."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from actuators.contract.control import Weights
from actuators.contract.script import Script
from actuators.http_client import http_session
from actuators.nginx.config import NginxOptions
from actuators.statistics.reader import StatusReader
from envs.heuristics.controllers import Controller, EstimatorController
from envs.scenarios.lookup import scenario
from rayjobs.bench.parts.bars import Bar, BenchContext, at_most, figure
from rayjobs.bench.parts.blocks import Bed, MethodArm, MethodBlock, bed, pairs, ratio
from rayjobs.bench.parts.site import constant_servers, front, raise_priority
from tuning.judging.contenders import Oracle, oracle

WORKERS = 4.0
WORK_SCALE = 2.0
"""Services of 36, 8.8 and 6.6 ms: what one machine can emulate and serve beside the load."""
NATIVE, CLONE, LEARNED, TRUE, MEANS = "least_conn", "least_conn in memory", "learned", "true times", "type means"
TWO, NATIVE_TWO = "learned, 2 workers", "least_conn, 2 workers"


def measure(context: BenchContext) -> Sequence[Bar]:
    """Latency and cost of the methods, and the exactness of shares (docs/results.md#bench-methods)."""
    pairs_wanted, block_s = (1, 5.0) if context.quick else (5, 14.0)
    seeds = [context.seed * 100 + index for index in range(pairs_wanted)]
    bars: list[Bar] = []
    skip_s = 2.0 if context.quick else 3.0
    with bed(context.work_dir, _arms(quick=context.quick), context.seed) as site:
        note = raise_priority(os.getpid())
        for name in ("S2b", "S3"):
            blocks = pairs(site, _script(name, block_s, site), seeds, skip_s, context.log)
            bars += _bars(name, blocks, note)
        bars.append(_drift(site))
    return [*bars, _shares(context)]


def _arms(*, quick: bool) -> list[MethodArm]:
    native = NginxOptions(method="least_conn", actuation="reload")
    memory = NginxOptions(method="least_conn", actuation="memory")
    delay = NginxOptions(method="expected_delay", actuation="memory")
    arms = [
        MethodArm(NATIVE, native),
        MethodArm(CLONE, memory),
        MethodArm(LEARNED, delay, lambda _, topology: EstimatorController(topology, "idle", WORKERS)),
        MethodArm(TRUE, delay, lambda script, _: _true_times(script)),
    ]
    if quick:
        return arms
    two = delay.model_copy(update={"worker_processes": 2})
    return [
        *arms,
        MethodArm(MEANS, delay, lambda _, topology: EstimatorController(topology, "type_means", WORKERS)),
        MethodArm(NATIVE_TWO, native.model_copy(update={"worker_processes": 2})),
        MethodArm(TWO, two, lambda _, topology: EstimatorController(topology, "idle", WORKERS)),
    ]


def _true_times(script: Script) -> Controller:
    controller = oracle("true_times")
    assert isinstance(controller, Oracle)
    controller.inform(script)
    return controller


def _script(name: str, block_s: float, site: Bed) -> Callable[[int], Script]:
    base = scenario(name, duration_s=block_s, work_scale=WORK_SCALE)
    return lambda seed: replace(base.script(site.topology, seed), duration_s=block_s)


def _bars(name: str, blocks: dict[str, list[MethodBlock]], note: str) -> list[Bar]:
    native, learned, true, clone = blocks[NATIVE], blocks[LEARNED], blocks[TRUE], blocks[CLONE]
    how = f"{_how(blocks)}, {note}"
    mean, p99 = _ratios(learned, native)
    bars = [
        at_most(f"{name}: learned to native least_conn, mean", mean, 0.80, "×", how=how, reference=_mean(native)),
        at_most(f"{name}: its p99", p99, 0.65, "×", how=how, reference=_p99(native)),
        at_most(
            f"{name}: learned to true service times, mean", _ratios(learned, true)[0], 1.03, "×", how=how,
            reference=_mean(true),
        ),
        at_most(
            f"{name}: nothing learned yet (least_conn in memory) to native, mean", _ratios(clone, native)[0], 1.02, "×",
            how=how, reference=_mean(native),
        ),
        at_most(
            f"{name}: CPU per request beyond least_conn in memory", _cpu(learned) - _cpu(clone), 20.0, "us", how=how,
            reference=f"native {_cpu(native):.0f} us, in memory {_cpu(clone):.0f} us, learned {_cpu(learned):.0f} us",
        ),
        figure(f"{name}: errors of all arms", sum(b.errors for each in blocks.values() for b in each), "", how=how),
    ]  # fmt: skip
    if MEANS in blocks:
        means = _ratios(blocks[MEANS], native)
        text = f"p99 {means[1]:.3f}×"
        bars.append(figure(f"{name}: type means only, mean to native", means[0], "×", how=how, reference=text))
    if TWO in blocks:
        two = _ratios(blocks[TWO], blocks[NATIVE_TWO])
        for kind, value, one in (("mean", two[0], mean), ("p99", two[1], p99)):
            bar = f"{name}: with 2 workers the ratio's {kind} beyond that with 1"
            bars.append(at_most(bar, value - one, 0.03, "×", how=how, reference=f"{value:.3f}× and {one:.3f}×"))
    return bars


def _drift(site: Bed) -> Bar:
    """All counts of requests in flight after everything has drained."""
    left = 0
    for arm in site.arms.values():
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


def _ratios(blocks: Sequence[MethodBlock], reference: Sequence[MethodBlock]) -> tuple[float, float]:
    return ratio(blocks, reference, lambda b: b.mean_ms), ratio(blocks, reference, lambda b: b.p99_ms)


def _cpu(blocks: Sequence[MethodBlock]) -> float:
    return float(np.median([block.cpu_us for block in blocks]))


def _mean(blocks: Sequence[MethodBlock]) -> str:
    return f"{np.mean([block.mean_ms for block in blocks]):.2f} ms"


def _p99(blocks: Sequence[MethodBlock]) -> str:
    return f"{np.mean([block.p99_ms for block in blocks]):.1f} ms"


def _how(blocks: dict[str, list[MethodBlock]]) -> str:
    each = [block for arm in blocks.values() for block in arm]
    worst = max(block.send_delay_ms for block in each)
    return (
        f"{len(blocks[NATIVE])} paired blocks per arm, {sum(b.requests for b in each)} answers, geometric mean of "
        f"paired ratios; send delay p99 up to {worst:.2f} ms"
    )
