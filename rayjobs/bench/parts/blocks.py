"""Paired blocks of balancing methods before the same servers: same arrivals, same work, rotating order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from actuators.contract.histogram import percentile_ms
from actuators.contract.script import Script
from actuators.contract.topology import Topology, social_network
from actuators.contract.window import LoadWindow
from actuators.load.engine import LoadEngine, LoadOptions
from actuators.nginx.config import NginxOptions
from actuators.nginx.instance import Nginx
from actuators.social_network.server import SocialNetworkServer
from actuators.social_network.store import SocialNetworkOptions, create_database
from actuators.statistics.reader import Collector
from envs.heuristics.controllers import Controller
from rayjobs.bench.parts.site import WorkerCpu, front, load_engine, raise_priority

UNDISTURBED_MS = 1.2
"""Largest send delay p99 of a block that is trusted (docs/nginx-facts.md#blocks-to-discard)."""
_ATTEMPTS = 3


@dataclass
class MethodArm:
    """One way to balance, in a separate NGINX.

    Attributes:
        controller: makes what steers it over a scenario; None for a fixed control.
    """

    name: str
    options: NginxOptions
    controller: Callable[[Script, Topology], Controller] | None = None
    nginx: Nginx = field(init=False)
    collector: Collector = field(init=False)


@dataclass(frozen=True)
class MethodBlock:
    """What one arm did in one block, its first seconds left out."""

    mean_ms: float
    p99_ms: float
    requests: int
    errors: int
    retried: int
    cpu_us: float
    send_delay_ms: float


@dataclass(frozen=True)
class Bed:
    """Servers, one NGINX per arm, and a load engine."""

    servers: Sequence[SocialNetworkServer]
    topology: Topology
    engine: LoadEngine
    arms: dict[str, MethodArm]


@contextlib.contextmanager
def bed(folder: Path, arms: Sequence[MethodArm], seed: int, load: LoadOptions | None = None) -> Iterator[Bed]:
    """Everything running; ends it."""
    folder.chmod(0o755)
    options = SocialNetworkOptions()
    database = folder / "social_network.sqlite"
    create_database(database, options, seed)
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(SocialNetworkServer(options, work_dir=folder, database=database, index=index))
            for index in range(3)
        ]
        raise_priority(*(server.pid for server in servers))
        topology = social_network(tuple(server.address for server in servers))
        for index, arm in enumerate(arms):
            arm.nginx = stack.enter_context(front(topology, arm.options, folder / f"arm-{index}"))
            arm.collector = stack.enter_context(Collector(arm.nginx.status_url, topology))
        engine = stack.enter_context(load_engine(folder / "load", load))
        yield Bed(servers, topology, engine, {arm.name: arm for arm in arms})


def pairs(
    bed: Bed, script: Callable[[int], Script], seeds: Sequence[int], skip_s: float, log: Callable[[str], None]
) -> dict[str, list[MethodBlock]]:
    """One block per arm and seed; arms in rotating order, a disturbed block is repeated up to twice.

    Each arm's controller is made anew and keeps what it learned from block to block. A first short block of
    each arm warms everything up and is thrown away.
    """
    names = list(bed.arms)
    first = script(seeds[0])
    steered = {name: a.controller(first, bed.topology) if a.controller else None for name, a in bed.arms.items()}
    blocks: dict[str, list[MethodBlock]] = {name: [] for name in names}
    for name in names:
        run_block(bed, bed.arms[name], None, replace(script(0), duration_s=1.5), 0, 0.0)
    for index, seed in enumerate(seeds):
        order = names[index % len(names) :] + names[: index % len(names)]
        for name in order:
            for _ in range(_ATTEMPTS):
                block = run_block(bed, bed.arms[name], steered[name], script(seed), seed, skip_s)
                if block.send_delay_ms <= UNDISTURBED_MS:
                    break
            blocks[name].append(block)
            log(
                f"{first.name} pair {index + 1}/{len(seeds)} {name}: mean {block.mean_ms:.2f} ms,"
                f" p99 {block.p99_ms:.1f} ms, {block.cpu_us:.0f} us CPU/request,"
                f" send delay p99 {block.send_delay_ms:.2f} ms"
            )
    return blocks


def run_block(
    bed: Bed, arm: MethodArm, steered: Controller | None, script: Script, seed: int, skip_s: float
) -> MethodBlock:
    """Plays the script for its duration through one arm, steering it once a second, then drains."""
    for server in bed.servers:
        server.play(script, bed.topology)
    if steered is not None:
        arm.nginx.apply(steered.begin(bed.topology))
    cpu, engine = WorkerCpu(arm.nginx), bed.engine
    arm.nginx.check()
    arm.collector.begin()
    before_s = cpu.seconds()
    engine.start(arm.nginx.address, bed.topology, script.streams, seed=seed, duration_s=script.duration_s)
    windows: list[LoadWindow] = []
    while not engine.wait(0.05):
        fresh = engine.poll()
        windows += fresh
        if fresh and steered is not None:
            control = steered.decide(arm.collector.window())
            if control is not None:
                arm.nginx.apply(control)
    summary = engine.finish(30.0)
    windows += engine.poll()
    cpu_us = (cpu.seconds() - before_s) / max(int(summary.answered.sum()), 1) * 1e6
    return _block([window for window in windows if window.start_s >= skip_s - 1e-6], cpu_us, summary.send_delay_p99_ms)


def ratio(blocks: Sequence[MethodBlock], reference: Sequence[MethodBlock], of: Callable[[MethodBlock], float]) -> float:
    """Geometric mean of the paired ratios."""
    logs = [np.log(of(a) / of(b)) for a, b in zip(blocks, reference, strict=True)]
    return float(np.exp(np.mean(logs)))


def _block(windows: Sequence[LoadWindow], cpu_us: float, send_delay_ms: float) -> MethodBlock:
    counts = sum(window.latency_counts.sum(axis=0) for window in windows)
    assert not isinstance(counts, int)
    good = int(counts.sum())
    return MethodBlock(
        mean_ms=sum(float(window.latency_s_sum.sum()) for window in windows) / max(good, 1) * 1e3,
        p99_ms=percentile_ms(counts, 99.0),
        requests=good,
        errors=sum(int(each.sum()) for window in windows for each in window.errors.values()),
        retried=sum(int(window.retried.sum()) for window in windows),
        cpu_us=cpu_us,
        send_delay_ms=send_delay_ms,
    )
