"""Bench `actuation`: what changing weights costs, in memory and by reload: time, requests, workers, CPU.

Changes of weights under load, for bench `actuation`: how long each took, what clients and workers went through.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from actuators.contract.control import BalancingMethod, ServiceTimes, Weights
from actuators.contract.late_binding import LateBinding, LateBindingNumbers
from actuators.contract.request_cost import RequestCost
from actuators.contract.topology import Topology
from actuators.load.summary import LoadSummary
from actuators.nginx.config import NginxOptions
from actuators.nginx.instance import Nginx
from actuators.processes.system import children
from rayjobs.bench.parts.bars import Bar, BenchContext, at_most, figure
from rayjobs.bench.parts.site import (
    Cost,
    constant_servers,
    cost_per_request,
    front,
    load_engine,
    raise_priority,
    streams,
)

LOAD_RPS = 1000.0


@dataclass
class Changes:
    """What a run of changes under load showed.

    Attributes:
        took_ms: of each change, until it was applied and read back.
        read_ms: of reading what is in force, right before each change: what this machine adds to any exchange.
        stale: requests sent right after a change that old weights answered.
        generations: most workers that were alive at once (an NGINX with one worker per generation).
    """

    took_ms: list[float] = field(default_factory=list)
    read_ms: list[float] = field(default_factory=list)
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
        return f"{len(self.took_ms)} changes under {LOAD_RPS:.0f} requests/s, {answered} answers"

    def percentile_ms(self, percent: float) -> float:
        return float(np.percentile(self.took_ms, percent))

    def __str__(self) -> str:
        p50_ms, p99_ms = np.percentile(self.read_ms, [50, 99])
        return f"p50 {self.percentile_ms(50):.2f} ms; only reading p50 {p50_ms:.2f} ms, p99 {p99_ms:.2f} ms"


def change(
    context: BenchContext, nginx: Nginx, count: int, interval_s: float, *, longest_s: float = 0.0, watch: bool = True
) -> Changes:
    """One server after the other takes everything; a request right after each change tells who does.

    Args:
        longest_s: what a change may take at most beyond the interval, for the length of the load.
        watch: count generations of workers; the thread that does costs a change in memory a millisecond now and then.
    """
    changes, topology = Changes(), nginx.topology
    ports = [server.rpartition(":")[2] for server in topology.servers]
    watching = _generations(nginx, changes) if watch else contextlib.nullcontext()
    with load_engine(context.work_dir / "load") as engine, watching:
        duration_s = count * (interval_s + longest_s) + 2.5
        engine.start(nginx.address, topology, streams(LOAD_RPS), seed=context.seed, duration_s=duration_s)
        # Between the load engine's reports, which this process reads every full second.
        due_s = time.monotonic() + 1.5
        for index in range(count):
            server = index % len(ports)
            engine.wait(max(due_s - time.monotonic(), 0.0))
            began_s = time.perf_counter()
            nginx.control()
            changes.read_ms.append((time.perf_counter() - began_s) * 1e3)
            changes.took_ms.append(nginx.apply(_only(topology, server)).duration_s * 1e3)
            changes.stale += int(_who(nginx, topology.groups[1].path) != ports[server])
            due_s += interval_s
        if longest_s:
            engine.stop()
        changes.client = engine.finish(30.0)
    return changes


@dataclass
class SlowRequests:
    """Uploads that take `lasting_s` each, one begun every `interval_s`, in one thread; a context manager.

    Attributes:
        begun, good: requests so far, and those of them that were answered 200.
    """

    address: str
    path: str
    lasting_s: float
    interval_s: float = 0.25
    begun: int = 0
    good: int = 0

    def __enter__(self) -> SlowRequests:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        pending: deque[tuple[float, http.client.HTTPConnection]] = deque()
        while not self._stop.wait(self.interval_s):
            pending.append((time.monotonic() + self.lasting_s, self._begin()))
            while pending and pending[0][0] <= time.monotonic():
                self.good += _ended_well(pending.popleft()[1])
        for due_s, connection in pending:
            time.sleep(max(due_s - time.monotonic(), 0.0))
            self.good += _ended_well(connection)

    def _begin(self) -> http.client.HTTPConnection:
        self.begun += 1
        connection = http.client.HTTPConnection(self.address, timeout=10)
        connection.putrequest("POST", self.path)
        connection.putheader("Content-Length", "2")
        connection.endheaders(b"o")
        return connection


def _ended_well(connection: http.client.HTTPConnection) -> bool:
    with contextlib.closing(connection):
        try:
            connection.send(b"k")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False


@contextlib.contextmanager
def _generations(nginx: Nginx, changes: Changes) -> Iterator[None]:
    """Looks every few milliseconds how many workers are alive."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            changes.generations = max(changes.generations, len(children(nginx.master_pid)))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _only(topology: Topology, server: int) -> Weights:
    down = np.ones(topology.shape, bool)
    down[:, server] = False
    return Weights(topology, np.ones(topology.shape, int), down)


def _who(nginx: Nginx, path: str) -> str:
    """Port of the server that answers a new request."""
    with contextlib.closing(http.client.HTTPConnection(nginx.address, timeout=10)) as connection:
        connection.request("GET", path)
        return connection.getresponse().read().decode()


_COST_RPS = 2500.0
_SHUTDOWN_S = 5.0
"""worker_shutdown_timeout of the reloading NGINX."""
_SLOW_S = 3.0
"""How long the slow requests last that are in flight during reloads."""


def measure(context: BenchContext) -> Sequence[Bar]:
    """Cost and effect of reloads and of weights in memory (docs/results.md#bench-actuation)."""
    return _measured(context, _memory, _reload, _slow_reload, _cost)


def _measured(context: BenchContext, *parts: Callable[[BenchContext, Topology], list[Bar]]) -> Sequence[Bar]:
    """Those parts, before the same servers."""
    raise_priority(os.getpid())
    with constant_servers(context.work_dir / "servers") as topology:
        return [bar for part in parts for bar in part(context, topology)]


def _memory(context: BenchContext, topology: Topology) -> list[Bar]:
    count, interval_s = (200, 0.05) if context.quick else (600, 1.0)
    options = NginxOptions(method="round_robin", actuation="memory")
    with front(topology, options, context.work_dir / "memory") as nginx:
        context.log(f"{count} changes in memory, one every {interval_s:g} s")
        changes = change(context, nginx, count, interval_s, watch=False)
    p99_ms, text = changes.percentile_ms(99), str(changes)
    return [
        at_most("in memory: applied and read back, p99", p99_ms, 5.0, "ms", how=changes.how, reference=text),
        at_most("in memory: requests after the acknowledgement by old weights", changes.stale, 0, "", how=changes.how),
        at_most("in memory: failed requests", changes.failed, 0, "", how=changes.how),
        at_most("in memory: retried requests", changes.retried, 0, "", how=changes.how),
    ]


def _reload(context: BenchContext, topology: Topology) -> list[Bar]:
    count, interval_s = (20, 0.5) if context.quick else (300, 1.0)
    options = NginxOptions(method="round_robin", actuation="reload", shutdown_timeout_s=_SHUTDOWN_S)
    with front(topology, options, context.work_dir / "reload") as nginx:
        context.log(f"{count} changes by reload, one every {interval_s:g} s")
        changes = change(context, nginx, count, interval_s)
    p99_ms, text = changes.percentile_ms(99), f"p50 {changes.percentile_ms(50):.0f} ms"
    how = f"{changes.how}, worker_shutdown_timeout {_SHUTDOWN_S:g} s"
    return [
        at_most("reload: in force, nginx -t included, p99", p99_ms, 250.0, "ms", how=how, reference=text),
        at_most("reload: requests after it by old weights", changes.stale, 0, "", how=how),
        at_most("reload: failed requests after the client's single retry", changes.failed, 0, "", how=how),
        figure("reload: requests that the client retried", changes.retried, "", how=how),
        at_most("reload: generations of workers alive at once", changes.generations, 3, "", how=how),
    ]


def _slow_reload(context: BenchContext, topology: Topology) -> list[Bar]:
    """Requests that outlast the changes keep old workers alive: a change waits until at most one of them is left."""
    count = 4 if context.quick else 20
    options = NginxOptions(method="round_robin", actuation="reload", shutdown_timeout_s=_SHUTDOWN_S)
    path = topology.groups[0].path
    with (
        front(topology, options, context.work_dir / "slow") as nginx,
        SlowRequests(nginx.address, path, _SLOW_S) as slow,
    ):
        context.log(f"{count} changes by reload, as fast as they go, with requests of {_SLOW_S:g} s in flight")
        changes = change(context, nginx, count, 0.0, longest_s=2 * _SHUTDOWN_S)
    text = f"a change took p50 {changes.percentile_ms(50):.0f} ms, at most {max(changes.took_ms):.0f} ms"
    how = f"{changes.how}, beside {slow.begun} uploads of {_SLOW_S:g} s, worker_shutdown_timeout {_SHUTDOWN_S:g} s"
    return [
        at_most(
            "reload with slow requests: generations of workers alive at once", changes.generations, 3, "", how=how,
            reference=text,
        ),
        at_most("reload with slow requests: slow ones cut off", slow.begun - slow.good, 0, "", how=how),
        at_most("reload with slow requests: others failed", changes.failed, 0, "", how=how),
    ]  # fmt: skip


class _Uncounted(Nginx):
    """NGINX alone: no Lua runs for a request, so its statistics stand still."""

    def _main(self, upstreams: Path, method: BalancingMethod, *, memory: bool) -> str:
        return re.sub(r"log_by_lua_block \{[^}]*\}", "", super()._main(upstreams, method, memory=memory))


@dataclass(frozen=True)
class _Arm:
    name: str
    options: NginxOptions
    limit: float | None = None
    kind: type[Nginx] = Nginx


_NATIVE, _NATIVE_LEAST = "round_robin, native", "least_conn, native"
_COSTS = "late_binding with request cost"
_ARMS = (
    _Arm(_NATIVE, NginxOptions(method="round_robin", actuation="reload"), kind=_Uncounted),
    _Arm(_NATIVE_LEAST, NginxOptions(method="least_conn", actuation="reload"), kind=_Uncounted),
    _Arm("least_conn, native, statistics by Lua", NginxOptions(method="least_conn", actuation="reload")),
    _Arm("round_robin in memory", NginxOptions(method="round_robin", actuation="memory"), 1.35),
    _Arm("least_conn in memory", NginxOptions(method="least_conn", actuation="memory"), 1.35),
    _Arm("expected_delay", NginxOptions(method="expected_delay", actuation="memory"), 1.5),
    _Arm("late_binding", NginxOptions(method="late_binding", actuation="memory"), 1.35),
    _Arm(_COSTS, NginxOptions(method="late_binding", actuation="memory")),
)
_TERMS = {
    "one": 0.5, "body": 1e-6, "log_body": 1e-3, "arg:user_id": 1e-6, "log_arg:user_id": 1e-3, "arg:start": 1e-6,
    "arg:stop": 1e-6, "span:start:stop": 1e-2, "log_span:start:stop": 1e-2, "method:GET": 0.1, "method:POST": 0.1,
    **{f"path:/wrk2-api/{number}/*": 0.1 for number in range(21)},
}  # fmt: skip
"""As many as a model may have, of every kind."""


def _cost(context: BenchContext, topology: Topology) -> list[Bar]:
    """CPU of the worker and the client's median per request against native NGINX; arms in turn, forth and back."""
    rounds, duration_s = (2, 1.0) if context.quick else (10, 5.0)
    found: dict[str, list[Cost]] = {arm.name: [] for arm in _ARMS}
    with contextlib.ExitStack() as stack:
        fronts = {
            arm.name: stack.enter_context(front(topology, arm.options, context.work_dir / f"cost-{index}", arm.kind))
            for index, arm in enumerate(_ARMS)
        }
        times = ServiceTimes(topology, np.full(topology.shape, 0.004), np.full(topology.shape[1], 4.0))
        fronts["expected_delay"].apply(times)
        numbers, servers = LateBindingNumbers(valid_s=1e6), topology.shape[1]
        holding = LateBinding(topology, np.full(topology.shape[0], 0.1), np.full(servers, 8), numbers)
        fronts["late_binding"].apply(replace(times, holding=holding))
        costs = RequestCost.of_terms({group.name: _TERMS for group in topology.groups})
        fronts[_COSTS].apply(replace(times, holding=replace(holding, costs=costs)))

        def cost_of(name: str, duration_s: float, index: int) -> Cost:
            return cost_per_request(
                fronts[name], _COST_RPS, context.work_dir, seed=context.seed + index, duration_s=duration_s
            )

        for name in fronts:
            cost_of(name, 0.5, 0)
        for index in range(rounds):
            for arm in _ARMS[:: -1 if index % 2 else 1]:
                cost = cost_of(arm.name, duration_s, index)
                found[arm.name].append(cost)
                told = f"{cost.cpu_us:.1f} us CPU per request, median {cost.median_ms:.3f} ms"
                context.log(f"round {index + 1}/{rounds} {arm.name}: {told}")
    how = (
        f"median of {rounds} rounds of {duration_s:g} s at {_COST_RPS:.0f} requests/s against native NGINX without"
        " any Lua in the same round; statistics by Lua in all others"
    )
    cpu_us = {name: [cost.cpu_us for cost in costs] for name, costs in found.items()}
    median_ms = {name: np.array([cost.median_ms for cost in costs]) for name, costs in found.items()}
    more_ms = float(np.median(median_ms["late_binding"] - median_ms[_NATIVE_LEAST]))
    return [
        *(_cost_bar(arm, cpu_us, how) for arm in _ARMS if arm.kind is Nginx),
        at_most(
            "late_binding that holds nothing: the client's median beyond that of native least_conn", more_ms, 0.1,
            "ms", how=how, reference=f"{np.median(median_ms[_NATIVE_LEAST]):.3f} ms with native least_conn",
        ),
        at_most(
            f"CPU per request of a cost of {len(_TERMS)} terms",
            float(np.median(np.subtract(cpu_us[_COSTS], cpu_us["late_binding"]))), 10.0, "us", how=how,
            reference=f"late_binding without it {np.median(cpu_us['late_binding']):.1f} us",
        ),
    ]  # fmt: skip


def _cost_bar(arm: _Arm, cpu_us: dict[str, list[float]], how: str) -> Bar:
    own = np.array(cpu_us[arm.name])
    native = np.array(cpu_us[_NATIVE if arm.name.startswith("round_robin") else _NATIVE_LEAST])
    name, ratio = f"CPU per request of {arm.name}", float(np.median(own / native))
    text = f"{np.median(own):.1f} us to {np.median(native):.1f} us"
    if arm.limit is None:
        return figure(name, ratio, "×", how=how, reference=text)
    return at_most(name, ratio, arm.limit, "×", how=how, reference=text)


PARTS = {
    "memory": lambda context: _measured(context, _memory), "reload": lambda context: _measured(context, _reload),
    "slow_reload": lambda context: _measured(context, _slow_reload), "cost": lambda context: _measured(context, _cost),
}  # fmt: skip
