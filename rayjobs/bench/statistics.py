"""Bench `statistics`: every counter against what client and servers counted, and what counting costs."""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from actuators.contract.script import Behaviour
from actuators.contract.topology import Group, Topology, social_network
from actuators.contract.window import Window
from actuators.load.engine import LoadOptions
from actuators.load.summary import LoadSummary
from actuators.nginx.config import NginxOptions
from actuators.social_network.capacity import ServerPlan
from actuators.statistics.reader import Collector
from actuators.statistics.vts import parse
from actuators.statistics.windows import difference
from actuators.testbed.options import LiveOptions
from actuators.testbed.parts import make_collector, make_load, make_nginx, make_server
from rayjobs.bench.parts.bars import Bar, BenchContext, at_most, figure
from rayjobs.bench.parts.site import WorkerCpu, constant_servers, front, load_engine, streams
from rayjobs.bench.parts.size import large_bars

_WAYS: tuple[Literal["reload", "memory"], ...] = ("reload", "memory")
_RATE_RPS = 200.0
_DURATION_S = 10.0
_RECORDED = Path("tests/data/vts")


def measure(context: BenchContext) -> Sequence[Bar]:
    """Exactness and cost of the statistics (docs/results.md#bench-statistics)."""
    bars: list[Bar] = []
    for way in _WAYS:
        context.log(f"{_RATE_RPS * _DURATION_S:.0f} requests with errors, a crash and a hang, {way}")
        bars.append(_counters(context, way))
    bars.append(_scrape(context))
    bars.append(_many_servers())
    bars.append(_agreement())
    return [*bars, *large_bars(context)]


def _counters(context: BenchContext, way: Literal["reload", "memory"]) -> Bar:
    """The largest difference between any counter and its counterpart; all must be equal."""
    options = LiveOptions(
        # The client gives up on a server that hangs: those are its aborts.
        load=LoadOptions(timeout_s=0.5),
        nginx=NginxOptions(method="round_robin", actuation=way),
    )
    folder, seed, placeholders = context.work_dir / way, context.seed, social_network()
    with contextlib.ExitStack() as stack:
        servers = []
        for index in range(len(placeholders.servers)):
            servers.append(make_server(options, folder, index, seed))
            stack.callback(servers[-1].close)
        topology = placeholders.with_servers(tuple(server.address for server in servers))
        nginx = stack.enter_context(make_nginx(options, topology, folder))
        collector = stack.enter_context(make_collector(options, topology, nginx.status_url))
        engine = stack.enter_context(make_load(options, folder))
        trouble = {
            0: (Behaviour(2.0, 0, error_ratio=0.2), Behaviour(4.0, 0)),
            1: (Behaviour(4.5, 1, refused=True), Behaviour(6.0, 1)),
            2: (Behaviour(7.0, 2, hang=True), Behaviour(8.5, 2)),
        }
        for index, server in enumerate(servers):
            server.play_plan(ServerPlan(seed=seed, behaviours=trouble[index]))
        before = collector.begin()
        engine.start(nginx.address, topology, streams(_RATE_RPS), seed=seed, duration_s=_DURATION_S)
        client = engine.finish(_DURATION_S + 20.0)
        # Counters move in the log phase, after the answer: wait until the client's count is reached.
        deadline = time.monotonic() + 2.0
        while True:
            after = collector.snapshot()
            window = difference(before, after, topology)
            front_side = after.client_requests["*"] - before.client_requests.get("*", 0)
            pairs = _counterparts(window, front_side, client, [server.counters() for server in servers])
            worst = max(pairs, key=lambda name: abs(pairs[name][0] - pairs[name][1]))
            if pairs[worst][0] == pairs[worst][1] or time.monotonic() > deadline:
                break
    retries = int(window.requests.sum()) - front_side
    how = (
        f"{len(pairs)} counters of {front_side} requests with {retries} retries,"
        f" {int(client.errors['status_5xx'].sum())} errors and"
        f" {int(client.errors['timeout'].sum())} client aborts; the least equal: {worst} {pairs[worst]}"
    )
    value = abs(pairs[worst][0] - pairs[worst][1])
    return at_most(f"counters by Lua, {way}: largest difference to client and servers", value, 0, "requests", how=how)


def _counterparts(
    window: Window, front_side: int, client: LoadSummary, servers: Sequence[dict[str, Any]]
) -> dict[str, tuple[int, int]]:
    """Counter → (what NGINX counted, what client or server counted)."""
    errors = {name: int(counts.sum()) for name, counts in client.errors.items()}
    good = int(client.answered.sum()) - errors["status_4xx"] - errors["status_5xx"]
    retries = int(window.requests.sum()) - front_side
    pairs = {
        "requests": (front_side, int(client.sent.sum())),
        "2xx": (int(window.responses[:, :, 1].sum()), good),
        "4xx": (int(window.responses[:, :, 3].sum()), errors["timeout"] + errors["status_4xx"]),
        # Every attempt that was passed over counts as 5xx on its server.
        "5xx": (int(window.responses[:, :, 4].sum()) - retries, errors["status_5xx"]),
        "histogram": (int(window.latency_histogram.sum()), int(window.requests.sum())),
    }
    for s, counted in enumerate(servers):
        for g, group in enumerate(window.topology.groups):
            own = counted["requests"].get(group.request_type, {})
            pairs[f"2xx of {group.name} on server {s}"] = (int(window.responses[g, s, 1]), own.get("200", 0))
    failed = sum(own.get("500", 0) for own in servers[0]["requests"].values())
    pairs["5xx of server 0"] = (int(window.responses[:, 0, 4].sum()), failed)
    return pairs


def _scrape(context: BenchContext) -> Bar:
    """What one reading costs, and what counting costs a request, at 2500 requests/s."""
    duration_s = 4.0 if context.quick else 10.0
    options = NginxOptions(method="least_conn", actuation="reload")
    with (
        constant_servers(context.work_dir / "constant") as topology,
        front(topology, options, context.work_dir / "front") as nginx,
        Collector(nginx.status_url, topology) as collector,
        load_engine(context.work_dir / "load-scrape") as engine,
    ):
        cpu = WorkerCpu(nginx)
        before_s = cpu.seconds()
        engine.start(nginx.address, topology, streams(2500.0), seed=context.seed, duration_s=duration_s)
        took_ms = []
        while not engine.wait(0.1):
            began_s = time.perf_counter()
            collector.snapshot()
            took_ms.append((time.perf_counter() - began_s) * 1e3)
        answered = int(engine.finish(20.0).answered.sum())
        cpu_us = (cpu.seconds() - before_s) / answered * 1e6
    text = f"{np.percentile(took_ms, 50):.2f} ms p50; {cpu_us:.0f} us CPU per request, statistics and readings included"
    how = f"{len(took_ms)} readings of 9 servers at 2500 requests/s, Python's parsing included"
    return figure(
        "one reading of the statistics, p99", float(np.percentile(took_ms, 99)), "ms", how=how, reference=text
    )


def _many_servers() -> Bar:
    """Parsing and differencing 300 servers, from a recorded document's entry."""
    document = json.loads((_RECORDED / "after_load.json").read_text())
    entry = document["upstreamZones"]["compose_backend"][0]
    servers = tuple(f"10.0.{index // 250}.{index % 250 + 1}:80" for index in range(300))
    document["upstreamZones"] = {"g": [{**entry, "server": server} for server in servers]}
    topology = Topology((Group("g", "t", "GET", "/", 2.0, servers),))
    later = copy.deepcopy(document)
    later["nowMsec"] += 1000
    took_ms = []
    for _ in range(5):
        began_s = time.perf_counter()
        window = difference(parse(document), parse(later), topology)
        took_ms.append((time.perf_counter() - began_s) * 1e3)
    assert window.usable
    how = "two documents to a window, without the JSON parsing, median of 5"
    return figure("300 servers to a window", float(np.median(took_ms)), "ms", how=how)


def _agreement() -> Bar:
    """Recorded documents of the real module against the raw differences of their own counters."""
    topology = social_network(("127.0.0.1:18101", "127.0.0.1:18102", "127.0.0.1:18103"))
    before, after = (json.loads((_RECORDED / f"{name}.json").read_text()) for name in ("before_load", "after_load"))
    window = difference(parse(before), parse(after), topology)
    wrong = 0
    for g, group in enumerate(topology.groups):
        for new in after["upstreamZones"][group.name]:
            old = next(e for e in before["upstreamZones"][group.name] if e["server"] == new["server"])
            s = topology.server_index(new["server"])
            for key, value in (
                ("requestCounter", window.requests), ("inBytes", window.in_bytes), ("outBytes", window.out_bytes),
                ("responseMsecCounter", window.response_ms_sum),
            ):  # fmt: skip
                wrong += int(new[key] - old[key] != value[g, s])
    how = "tests/data/vts, before and after 2632 requests; more in tests/actuators/statistics"
    return at_most("windows from documents of the real module: wrong counters", wrong, 0, "", how=how)
