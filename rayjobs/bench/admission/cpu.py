"""What admission control costs: NGINX's CPU per request with it to the same configuration without it, in pairs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import stats

from actuators.contract.admission import Admission, AdmissionNumbers
from actuators.contract.arrays import FloatArray
from actuators.contract.topology import Topology
from actuators.errors import DataError
from actuators.nginx.config import NginxOptions
from actuators.nginx.instance import Nginx
from actuators.processes.system import children
from actuators.statistics.reader import StatusReader
from rayjobs.bench.parts.bars import Bar, BenchContext, at_most, figure
from rayjobs.bench.parts.site import MIX, constant_servers, costs_together, front

WAYS = {
    "least_conn in memory": NginxOptions(method="least_conn", actuation="memory"),
    "NGINX's least_conn": NginxOptions(method="least_conn", actuation="reload", statistics="lua"),
}
RATE_RPS = 2500.0
LIMIT = 1.08
STARTS, PAIRS, BLOCK_S = 4, 12, 2.0
"""Pairs of blocks from each start of both NGINX, as LuaJIT compiles other traces in each process. The two blocks of a
pair run at the same time on the same core, so that both meet the same machine."""


def measure(context: BenchContext) -> Sequence[Bar]:
    """Upper 95 % limits of the ratio (docs/results.md#bench-admission)."""
    bars = []
    with _beside_one_core() as core, constant_servers(context.work_dir / "constant") as topology:
        for way, options in WAYS.items():
            with_us, without_us = _pairs(context, topology, way, options, core)
            bars.append(_bar(context, way, with_us, without_us))
    return bars


@contextlib.contextmanager
def _beside_one_core() -> Iterator[set[int]]:
    """The core that workers of NGINX get for themselves; this process and what it starts has the others, so that no
    block depends on who shares a core with whom. On a machine with one core all share it."""
    cores = sorted(os.sched_getaffinity(0))
    try:
        os.sched_setaffinity(0, cores[1:] or cores)
        yield set(cores[:1])
    finally:
        os.sched_setaffinity(0, cores)


def _pairs(
    context: BenchContext, topology: Topology, way: str, options: NginxOptions, core: set[int]
) -> tuple[FloatArray, FloatArray]:
    """CPU in microseconds per request with and without admission, of each pair."""
    starts, pairs, duration_s = (1, 3, 1.0) if context.quick else (STARTS, PAIRS, BLOCK_S)
    with_it = options.model_copy(update={"admission": True})
    found: dict[bool, list[float]] = {True: [], False: []}
    for start in range(starts):
        with contextlib.ExitStack() as stack:
            folder = context.work_dir / f"{way.partition(' ')[0]}-{start}"
            nginx = {
                admits: stack.enter_context(front(topology, chosen, folder / str(admits)))
                for admits, chosen in ((True, with_it), (False, options))
            }
            nginx[True].admit(wide(topology))
            for each in nginx.values():
                for worker in children(each.master_pid):
                    os.sched_setaffinity(worker, core)
            seeds = (context.seed, context.seed + 1)
            costs_together(dict(zip(nginx.values(), seeds, strict=True)), RATE_RPS, folder, duration_s=2.0)
            for pair in range(pairs):
                number = start * pairs + pair
                seeds = (context.seed + 2 * number, context.seed + 2 * number + 1)
                first = number % 2 == 0
                order = {nginx[first]: seeds[0], nginx[not first]: seeds[1]}
                used = costs_together(order, RATE_RPS, folder, duration_s=duration_s)
                for admits in nginx:
                    found[admits].append(used[nginx[admits]].cpu_us)
                last = f"{found[True][-1]:.1f} us with, {found[False][-1]:.1f} us without"
                context.log(f"{way}, pair {number + 1}/{starts * pairs}: {last}")
            _require_counted(nginx[True])
    return np.array(found[True]), np.array(found[False])


def wide(topology: Topology) -> Admission:
    """A rule with limits far above what is in flight: every request is counted and none refused."""
    rates_rps = RATE_RPS * np.array(MIX)
    return Admission(
        topology, "aimd_thresh", np.ones(3), np.ones(3), np.full(3, 0.1), rates_rps, AdmissionNumbers()
    )  # fmt: skip


def _require_counted(nginx: Nginx) -> None:
    """Raises DataError when requests were not counted, or refused: then something else was measured."""
    with StatusReader(nginx.status_url) as reader:
        balancer = reader.snapshot().balancer
    groups = balancer.admission.groups if balancer is not None and balancer.admission is not None else ()
    if not all(entry.finished and not entry.refused for entry in groups) or not groups:
        raise DataError("requests were refused, or passed uncounted", remedy="is the machine busy with other work?")


def _bar(context: BenchContext, way: str, with_us: FloatArray, without_us: FloatArray) -> Bar:
    logs = np.log(with_us / without_us)
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    upper, mean, lower = (float(np.exp(logs.mean() + shift)) for shift in (half, 0.0, -half))
    name = f"{way}: CPU per request with admission to without, upper 95 % limit"
    how = (
        f"{len(logs)} pairs of blocks at {RATE_RPS:g} requests/s each, both at the same time on one core that only"
        " they use, no request refused; geometric mean, Student's t"
    )
    text = (
        f"{mean:.3f}, 95 %: {lower:.3f} to {upper:.3f}; medians {np.median(with_us):.1f} and"
        f" {np.median(without_us):.1f} us"
    )
    if context.quick:
        return figure(name, upper, "×", how=how, reference=text)
    return at_most(name, upper, LIMIT, "×", how=how, reference=text)
