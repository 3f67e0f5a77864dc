"""Bench `actuation`: what changing weights costs, in memory and by reload: time, requests, workers, CPU."""

from __future__ import annotations

import http.client
import itertools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from actuators.control import ServiceTimes, Weights
from actuators.load_summary import LoadSummary
from actuators.nginx import Nginx
from actuators.nginx_options import NginxOptions
from actuators.reload import children
from actuators.topology import Topology
from rayjobs.bench import Bar, BenchContext, at_most, figure
from rayjobs.bench_site import WorkerCpu, constant_servers, front, load_engine, raise_priority, streams

_LOAD_RPS = 1000.0
_COST_RPS = 2500.0
_SHUTDOWN_S = 5.0
"""worker_shutdown_timeout of the reloading NGINX."""


def measure(context: BenchContext) -> Sequence[Bar]:
    """Bars 2 and 3 of issue 4."""
    raise_priority(os.getpid())
    with constant_servers(context.work_dir / "servers") as topology:
        return [*_memory(context, topology), *_reload(context, topology), *_cost(context, topology)]


@dataclass
class Changes:
    """What a run of changes under load showed."""

    took_ms: list[float] = field(default_factory=list)
    stale: int = 0
    generations: int = 0
    client: LoadSummary = field(init=False)

    @property
    def failed(self) -> int:
        return sum(int(counts.sum()) for counts in self.client.errors.values())

    @property
    def retried(self) -> int:
        return int(self.client.retried.sum())

    @property
    def how(self) -> str:
        answered = int(self.client.answered.sum())
        return f"{len(self.took_ms)} changes under {_LOAD_RPS:.0f} requests/s, {answered} answers"

    def p99_ms(self) -> float:
        return float(np.percentile(self.took_ms, 99))


def _memory(context: BenchContext, topology: Topology) -> list[Bar]:
    count, interval_s = (200, 0.05) if context.quick else (600, 1.0)
    options = NginxOptions(method="round_robin", actuation="memory")
    with front(topology, options, context.work_dir / "memory") as nginx:
        context.log(f"{count} changes in memory, one every {interval_s:g} s, at {_LOAD_RPS:.0f} requests/s")
        changes = _change(context, nginx, count, interval_s)
    text = f"p50 {np.percentile(changes.took_ms, 50):.2f} ms"
    return [
        at_most("in memory: applied and read back, p99", changes.p99_ms(), 5.0, "ms", how=changes.how, reference=text),
        at_most("in memory: requests after the acknowledgement by old weights", changes.stale, 0, "", how=changes.how),
        at_most("in memory: failed requests", changes.failed, 0, "", how=changes.how),
        at_most("in memory: retried requests", changes.retried, 0, "", how=changes.how),
    ]


def _reload(context: BenchContext, topology: Topology) -> list[Bar]:
    count, interval_s = (20, 0.5) if context.quick else (300, 1.0)
    options = NginxOptions(method="round_robin", actuation="reload", shutdown_timeout_s=_SHUTDOWN_S)
    with front(topology, options, context.work_dir / "reload") as nginx:
        context.log(f"{count} changes by reload, one every {interval_s:g} s, at {_LOAD_RPS:.0f} requests/s")
        changes = _change(context, nginx, count, interval_s)
    text = f"p50 {np.percentile(changes.took_ms, 50):.0f} ms"
    how = f"{changes.how}, worker_shutdown_timeout {_SHUTDOWN_S:g} s"
    return [
        at_most("reload: in force, nginx -t included, p99", changes.p99_ms(), 250.0, "ms", how=how, reference=text),
        at_most("reload: failed requests after the client's single retry", changes.failed, 0, "", how=how),
        figure("reload: requests that the client retried", changes.retried, "", how=how),
        at_most("reload: generations of workers alive at once", changes.generations, 3, "", how=how),
    ]


def _change(context: BenchContext, nginx: Nginx, count: int, interval_s: float) -> Changes:
    """One server after the other takes everything; a request right after each change tells who does."""
    changes, topology = Changes(), nginx.topology
    ports = [server.rpartition(":")[2] for server in topology.servers]
    with load_engine(context.work_dir / "load") as engine:
        engine.start(
            nginx.address, topology, streams(_LOAD_RPS), seed=context.seed, duration_s=count * interval_s + 2.0
        )
        due_s = time.monotonic() + 1.0
        for index in range(count):
            server = index % len(ports)
            engine.wait(max(due_s - time.monotonic(), 0.0))
            changes.took_ms.append(nginx.apply(_only(topology, server)).duration_s * 1e3)
            changes.stale += int(_who(nginx, topology.groups[1].path) != ports[server])
            changes.generations = max(changes.generations, len(children(nginx.master_pid)))
            due_s += interval_s
        changes.client = engine.finish(30.0)
    return changes


def _only(topology: Topology, server: int) -> Weights:
    down = np.ones(topology.shape, bool)
    down[:, server] = False
    return Weights(topology, np.ones(topology.shape, int), down)


def _who(nginx: Nginx, path: str) -> str:
    """Port of the server that answers a new request."""
    connection = http.client.HTTPConnection(nginx.address, timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse().read().decode()
    connection.close()
    return answer


def _cost(context: BenchContext, topology: Topology) -> list[Bar]:
    """CPU of the worker per request, arms in turn; all with the same statistics."""
    rounds, duration_s = (1, 2.5) if context.quick else (6, 5.0)
    arms: dict[str, tuple[NginxOptions, float]] = {
        "least_conn, native": (NginxOptions(method="least_conn", actuation="reload"), 1.0),
        "round_robin, native": (NginxOptions(method="round_robin", actuation="reload"), 1.0),
        "round_robin in memory": (NginxOptions(method="round_robin", actuation="memory"), 1.35),
        "least_conn in memory": (NginxOptions(method="least_conn", actuation="memory"), 1.35),
        "expected_delay": (NginxOptions(method="expected_delay", actuation="memory"), 1.5),
    }
    cpu_us: dict[str, list[float]] = {name: [] for name in arms}
    for index, name in itertools.product(range(rounds), arms):
        with front(topology, arms[name][0], context.work_dir / f"cost-{index}-{name.split()[0]}-{len(name)}") as nginx:
            if name == "expected_delay":
                nginx.apply(ServiceTimes(topology, np.full(topology.shape, 0.004), np.full(topology.shape[1], 4.0)))
            cpu_us[name].append(_cpu_per_request(context, nginx, duration_s, index))
        context.log(f"round {index + 1}/{rounds} {name}: {cpu_us[name][-1]:.1f} us CPU per request")
    median = {name: float(np.median(values)) for name, values in cpu_us.items()}
    how = f"{rounds} rounds of {duration_s:g} s at {_COST_RPS:.0f} requests/s, medians, statistics by Lua in every arm"
    bars = []
    for name, (_, limit) in arms.items():
        native = median["round_robin, native" if name.startswith("round_robin") else "least_conn, native"]
        if not name.endswith("native"):
            text = f"{median[name]:.1f} us to native {native:.1f} us"
            bars.append(
                at_most(f"CPU per request of {name}", median[name] / native, limit, "×", how=how, reference=text)
            )
    return bars


def _cpu_per_request(context: BenchContext, nginx: Nginx, duration_s: float, index: int) -> float:
    cpu = WorkerCpu(nginx)
    with load_engine(context.work_dir / "load") as engine:
        before_s = cpu.seconds()
        engine.start(
            nginx.address, nginx.topology, streams(_COST_RPS), seed=context.seed + index, duration_s=duration_s
        )
        answered = int(engine.finish(duration_s + 20.0).answered.sum())
        return (cpu.seconds() - before_s) / answered * 1e6
