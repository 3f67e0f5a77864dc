"""Late binding before real servers while clients, workers and a server fail: what is lost and what is left.

Both arms have equal servers, arrivals and rude clients, and the same happens to them at the same times.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from actuators.contract.control import ServiceTimes
from actuators.contract.late_binding import LateBinding, LateBindingNumbers, slots_for
from actuators.contract.script import Script
from actuators.contract.topology import Topology, social_network
from actuators.load.engine import LoadEngine
from actuators.load.summary import LoadSummary
from actuators.nginx.config import NginxOptions
from actuators.nginx.instance import Nginx
from actuators.processes.system import children, family_cpu_s, resident_mb
from actuators.social_network.server import SocialNetworkServer
from actuators.statistics.reader import StatusReader
from actuators.statistics.vts import Balancer
from actuators.testbed.options import LiveOptions
from actuators.testbed.parts import make_server
from envs.scenarios.catalogue import LIVE_WORK_SCALE
from envs.scenarios.lookup import scenario
from envs.scenarios.timeline import true_tau_s
from envs.study.judge import deadlines_s
from rayjobs.bench.parts.bars import Bar, BenchContext, at_most, figure
from rayjobs.bench.parts.memory import growth_percent
from rayjobs.bench.parts.rude_clients import rude_clients
from rayjobs.bench.parts.site import front, load_engine

NATIVE, LATE = "least_conn", "late_binding"
ABORTED, SLOW = 0.05, 0.01
"""Rude clients, as shares of the other requests."""
NGINX_WORKERS, SERVER_WORKERS = 2, 4.0
NUMBERS = LateBindingNumbers(longest_hold_s=5.0, valid_s=3600.0)
CHAOS_S, CRASH_S, SOAK_S = 600.0, 120.0, 1800.0
EMPTY_S = 20.0
"""For the last requests to end, those of killed workers included."""
MOST_GROWTH = 5.0
"""Percent of NGINX's memory in the soak after its first fifth."""
CHANCE = 2.0
"""Standard errors by which the errors of two arms may differ: what a killed worker had in flight is chance."""


@dataclass
class Arm:
    """One NGINX before the servers."""

    nginx: Nginx
    servers: Sequence[SocialNetworkServer]
    script: Script

    def reload(self) -> None:
        os.kill(self.nginx.master_pid, signal.SIGHUP)

    def kill_worker(self) -> None:
        os.kill(min(children(self.nginx.master_pid)), signal.SIGKILL)

    def kill_server(self) -> None:
        self.servers[0].kill()

    def revive_server(self) -> None:
        self.servers[0].start()
        self.servers[0].play(self.script, self.nginx.topology)

    def balancer(self) -> Balancer:
        """Over a new connection, so that a worker of the newest configuration answers."""
        with StatusReader(self.nginx.status_url) as reader:
            found = reader.snapshot().balancer
        assert found is not None
        return found

    def left(self) -> int:
        """Requests that are held or in flight."""
        found = self.balancer()
        held = sum(entry.in_line for entry in found.holding.groups) if found.holding is not None else 0
        return held + sum(entry.in_flight for entry in found.servers)


Deed = Callable[[Arm], None]
CHAOS: tuple[tuple[float, Deed], ...] = (
    (0.1, Arm.reload), (0.2, Arm.kill_worker), (0.35, Arm.reload), (0.5, Arm.kill_worker), (0.65, Arm.kill_worker),
    (0.8, Arm.reload), (0.9, Arm.kill_worker),
)  # fmt: skip
"""Share of the time at which each is done."""
CRASH: tuple[tuple[float, Deed], ...] = ((0.25, Arm.kill_server), (0.5, Arm.revive_server))


@dataclass
class Outcome:
    """What came of one arm.

    Attributes:
        summary: of the load engine; its requests are not those of rude clients.
        rude: what came of rude clients, by outcome.
        left: requests held or in flight some time after the traffic has ended; 0 for `least_conn`.
        longest_s: upper bound of the longest hold, from NGINX's histogram; 0 for `least_conn`.
        held: requests that were held.
        memory_mb: resident memory of NGINX's processes, once a second.
    """

    summary: LoadSummary
    rude: Mapping[str, int]
    left: int = 0
    longest_s: float = 0.0
    held: int = 0
    memory_mb: list[float] = field(default_factory=list)

    @property
    def errors(self) -> int:
        """Requests without an answer or with a status of 5xx, refusals and those of slow clients included."""
        own = sum(int(counts.sum()) for kind, counts in self.summary.errors.items() if kind != "status_4xx")
        return own + self.rude.get("failed", 0) + self.rude.get("refused", 0)

    def told(self) -> str:
        kinds = {kind: int(counts.sum()) for kind, counts in self.summary.errors.items() if counts.sum()}
        requests = int(self.summary.planned.sum())
        rude = ", ".join(f"{count} {kind}" for kind, count in sorted(self.rude.items()))
        return f"{self.errors} of {requests} {kinds}; rude clients: {rude}"


def chaos(context: BenchContext) -> Sequence[Bar]:
    """Both arms with reloads and killed workers, before unequal servers at a load of 0.9."""
    return list(_beside(context, "reloads and killed workers", "S2", 0.9, CHAOS_S, CHAOS))


def crash(context: BenchContext) -> Sequence[Bar]:
    """Both arms with a server killed and back; at a load of 0.55 the two others can do its work."""
    return list(_beside(context, "a server killed and back", "S1", 0.55, CRASH_S, CRASH))


def soak(context: BenchContext) -> Sequence[Bar]:
    """Half an hour at a load of 0.9 with rude clients: memory of NGINX."""
    seconds = 10.0 if context.quick else SOAK_S
    found = _play(context, LATE, "S2", 0.9, seconds, ())
    growth = growth_percent(found.memory_mb, int(seconds / 5))
    how = f"{seconds:g} s at a load of 0.9, {found.held} requests held"
    return [
        at_most(
            "late binding, growth of NGINX's memory", max(growth, 0.0), MOST_GROWTH, "%", how=how,
            reference=f"{found.memory_mb[0]:.1f} MB at first, {found.memory_mb[-1]:.1f} MB at last; {found.told()}",
        ),
        *_left(found, how),
    ]  # fmt: skip


def _beside(
    context: BenchContext, what: str, name: str, load: float, seconds: float, deeds: Sequence[tuple[float, Deed]]
) -> Iterator[Bar]:
    seconds = 10.0 if context.quick else seconds
    native, late = (_play(context, arm, name, load, seconds, deeds) for arm in (NATIVE, LATE))
    clients = f"{ABORTED:.0%} of clients leave, {SLOW:.0%} are slow"
    how = f"{name} at a load of {load:g}, {what}, {seconds:g} s, {clients}; {late.held} requests held"
    chance = CHANCE * float(np.sqrt(native.errors + late.errors))
    yield at_most(
        "late binding: errors beyond those of least_conn and chance", max(late.errors - native.errors - chance, 0.0),
        0.0, "", how=how, reference=f"late_binding {late.told()}; least_conn {native.told()}",
    )  # fmt: skip
    yield from _left(late, how)


def _left(found: Outcome, how: str) -> Iterator[Bar]:
    yield at_most("late binding: held or in flight after the traffic", found.left, 0, "", how=how)
    # A bound of the histogram may be twice as long as what is in it.
    yield at_most("late binding: longest hold", found.longest_s, 2 * NUMBERS.longest_hold_s, "s", how=how,
                  reference=f"limit {NUMBERS.longest_hold_s:g} s, upper end of its class")  # fmt: skip
    yield figure("late binding: requests held", found.held, "", how=how)


def _play(
    context: BenchContext, arm: str, name: str, load: float, seconds: float, deeds: Sequence[tuple[float, Deed]]
) -> Outcome:
    # Rude clients are a part of the load.
    ordinary = load / (1.0 + ABORTED + SLOW)
    played = replace(scenario(name, work_scale=LIVE_WORK_SCALE), load=ordinary, duration_s=seconds)
    folder = context.work_dir / f"{arm}-{name}"
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(server) for server in _servers(folder, context.seed)]
        topology = social_network(tuple(server.address for server in servers))
        script = played.script(topology, context.seed)
        for server in servers:
            server.play(script, topology)
        ours = arm == LATE
        nginx = NginxOptions(
            method="late_binding" if ours else "least_conn", actuation="memory" if ours else "reload",
            worker_processes=NGINX_WORKERS, shutdown_timeout_s=2.0,
        )  # fmt: skip
        own = Arm(stack.enter_context(front(topology, nginx, folder / "nginx")), servers, script)
        if ours:
            own.nginx.apply(_control(topology, script, deadlines_s(played, topology)))
        engine = stack.enter_context(load_engine(folder / "load"))
        return _watch(context, own, engine, seconds, deeds, told=f"{arm}, {name} at a load of {load:g}")


def _watch(
    context: BenchContext, arm: Arm, engine: LoadEngine, seconds: float, deeds: Sequence[tuple[float, Deed]], told: str
) -> Outcome:
    rate_rps = sum(stream.steps[0].rate_rps for stream in arm.script.streams)
    # Of a mean service time: many leave while they are held, or while a server works for them.
    patience_s = 2 * float(true_tau_s(arm.script, 0.0).mean())
    memory_mb, due = [], list(deeds)
    with rude_clients(arm.nginx.address, arm.nginx.topology, ABORTED * rate_rps, SLOW * rate_rps, patience_s,
                      context.seed) as rude:  # fmt: skip
        engine.start(arm.nginx.address, arm.nginx.topology, arm.script.streams, seed=context.seed, duration_s=seconds)
        began_s = time.monotonic()
        while not engine.wait(1.0):
            engine.poll()
            memory_mb.append(sum(resident_mb(pid) for pid in family_cpu_s(arm.nginx.master_pid)))
            while due and time.monotonic() - began_s >= due[0][0] * seconds:
                name = due[0][1].__name__.replace("_", " ")
                context.log(f"{told}: {name} after {time.monotonic() - began_s:.0f} s")
                due.pop(0)[1](arm)
        summary = engine.finish(1.0)
    found = Outcome(summary, dict(rude), memory_mb=memory_mb)
    if arm.nginx.options.method != "late_binding":
        return found
    limit_s = time.monotonic() + EMPTY_S
    while (left := arm.left()) and time.monotonic() < limit_s:
        time.sleep(0.1)
    holding = arm.balancer().holding
    assert holding is not None
    longest_ms = [
        next(bound for bound, count in zip(entry.held_buckets.msecs, entry.held_buckets.counters, strict=True)
             if count == entry.held)
        for entry in holding.groups if entry.held
    ]  # fmt: skip
    held = sum(entry.held for entry in holding.groups)
    return replace(found, left=left, longest_s=max(longest_ms, default=0) / 1e3, held=held)


def _control(topology: Topology, script: Script, limits_s: np.ndarray) -> ServiceTimes:
    workers = np.full(topology.shape[1], SERVER_WORKERS)
    holding = LateBinding(topology, limits_s, slots_for(workers, NUMBERS.slots_per_worker), NUMBERS)
    return ServiceTimes(topology, true_tau_s(script, 0.0), workers, holding)


def _servers(folder: Path, seed: int) -> Iterator[SocialNetworkServer]:
    for index in range(len(social_network().servers)):
        yield make_server(LiveOptions(), folder, index, seed)
