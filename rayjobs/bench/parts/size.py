"""A very large NGINX: 64 upstreams of 300 servers. How long `doctor`, `collect` and a decision of `steer` take.

The statistics are documents as nginx-module-vts writes them, with full rings of last times and histograms, which the
real NGINX of this configuration serves as a file.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from actuators.contract.topology import Group, Topology
from actuators.external.preflight import PreflightOptions, preflight
from actuators.files import write_atomic
from actuators.nginx.detect import detect
from actuators.processes.process import ManagedProcess
from actuators.processes.system import free_port
from actuators.statistics.reader import StatusReader
from actuators.statistics.recording import SnapshotWriter
from actuators.statistics.vts import parse_json
from actuators.statistics.windows import difference
from envs.environment.phase import Watched, fit_problem
from envs.environment.problem import DecisionOptions
from envs.observation.encoder import EncoderOptions
from rayjobs.bench.parts.bars import Bar, BenchContext, at_most, figure
from rayjobs.bench.parts.serve import vts_documents
from rayjobs.steer.controller import Match, SiteController, starting_steering
from rayjobs.steer.folder import SteerFolder
from rayjobs.steer.options import SteerOptions
from rayjobs.steer.site import load_adviser, open_site
from tuning.options import ModelOptions
from tuning.policy.bundle import Bundle
from tuning.policy.model import EquivariantNet
from tuning.steering import audit
from tuning.steering.decide import Steering

GROUPS, SERVERS = 64, 300
_STATUS = "/status/format/json"
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
MOST_S = 1.0
REPEATS, QUICK_REPEATS = 9, 3


def large_topology() -> Topology:
    """64 groups over the same 300 servers."""
    servers = tuple(f"10.0.{index // 200}.{index % 200 + 1}:80" for index in range(SERVERS))
    names = [f"group-{index}" for index in range(GROUPS)]
    return Topology(tuple(Group(name, name, "GET", f"/{name}", 2.0, servers) for name in names))


def documents(topology: Topology, seed: int) -> list[bytes]:
    """Two documents, one second apart; all groups have the counters of the first, which makes them quick to build."""
    one = vts_documents(replace(topology, groups=topology.groups[:1]), seed)
    for document in one:
        (entries,) = document["upstreamZones"].values()
        document["upstreamZones"] = {group.name: entries for group in topology.groups}
    return [json.dumps(document).encode() for document in one]


def large_bars(context: BenchContext) -> list[Bar]:
    """Each of the three in at most one second (docs/results.md#bench-statistics)."""
    topology, repeats = large_topology(), QUICK_REPEATS if context.quick else REPEATS
    bodies = documents(topology, context.seed)
    bundle = _bundle(topology, bodies, context)
    how = f"{GROUPS} groups of {SERVERS} servers, {len(bodies[0]) / 1e6:.0f} MB of statistics, median of {repeats}"
    # A controller's own process holds none of the libraries that are loaded here, and does not search them for garbage.
    gc.collect()
    gc.freeze()
    status = context.work_dir / "status.json"
    status.write_bytes(bodies[0])
    with _nginx(topology, context.work_dir, status) as (config, url):
        checked = PreflightOptions(status_url=url, nginx_conf=config)
        doctor_s = [_timed(lambda: preflight(checked)) for _ in range(repeats)]
        collect_s = _collects(url, context.work_dir / "snapshots.jsonl", repeats)
        folder = context.work_dir / "steer"
        options = SteerOptions(bundle=bundle, folder=folder, nginx_conf=config, status_url=url)
        parts_ms = _decisions(options, topology, repeats, cycle((bodies[1], bodies[0])), status)
    gc.unfreeze()
    decide_s = [(parts["total"] - parts["collect"]) / 1e3 for parts in parts_ms]
    return [
        at_most("doctor: preflight checks", float(np.median(doctor_s)), MOST_S, "s", how=how),
        at_most("collect: read and record one document", float(np.median(collect_s)), MOST_S, "s", how=how),
        at_most("steer: decide and record in shadow", float(np.median(decide_s)), MOST_S, "s", how=how),
        *(
            figure(f"steer: {name}", float(np.median([parts[name] for parts in parts_ms])), "ms", how=how)
            for name in ("collect", "advise", "total")
        ),
    ]


def _timed(action: Any) -> float:
    began_s = time.monotonic()
    action()
    return time.monotonic() - began_s


def _collects(url: str, path: Path, repeats: int) -> list[float]:
    with StatusReader(url) as reader, SnapshotWriter(path) as writer:
        return [_timed(lambda: writer.write(reader.snapshot())) for _ in range(repeats)]


def _decisions(
    options: SteerOptions, topology: Topology, repeats: int, bodies: Iterator[bytes], status: Path
) -> list[dict[str, float]]:
    """Milliseconds of the parts of every step; every second one reads counters that fell, and is not counted."""
    folder = SteerFolder(options.folder)
    folder.make()
    with open_site(options, topology) as site:
        adviser = load_adviser(options.bundle, site, options.workers)
        deadlines_s, now_s = adviser.bundle.problem.deadlines_s, time.monotonic()
        steering = starting_steering(site, folder, lambda first: Steering(deadlines_s, first, options, now_s))
        log = audit.AuditLog(folder.audit, audit.header(steering, deadlines_s, now_s, {}))
        site.collector.begin()
        controller = SiteController(Match(site, steering, adviser, adviser.frames, log.write), folder)
        found: list[dict[str, float]] = []
        while len(found) < repeats:
            write_atomic(status, next(bodies).decode())
            began_s = time.monotonic()
            step = controller.step()
            total_ms = (time.monotonic() - began_s) * 1e3
            if step.decision.state is not None:
                found.append({**step.line["latency_ms"], "total": total_ms})
    return found


def _bundle(topology: Topology, bodies: list[bytes], context: BenchContext) -> Path:
    """A bundle as training begins with it: its speed does not depend on what the network has learned."""
    before, after = (parse_json(body) for body in bodies)
    window = difference(before, after, topology)
    watched, encoder = Watched((window,) * 3, (window,) * 2), EncoderOptions(clusters=(2,))
    problem = fit_problem(watched, topology, DecisionOptions(), encoder, context.seed).problem
    net = EquivariantNet(problem.row_size, GROUPS, ModelOptions())
    folder = context.work_dir / "bundle"
    Bundle(net, problem, ModelOptions(), {"seed": context.seed}).save(folder)
    context.log("bundle made")
    return folder


@contextlib.contextmanager
def _nginx(topology: Topology, folder: Path, status: Path) -> Iterator[tuple[Path, str]]:
    """A running NGINX with these upstreams, to which nobody sends anything; its configuration and status URL."""
    config, pid, port = folder / "nginx.conf", folder / "nginx.pid", free_port("127.0.0.1")
    upstreams = "\n".join(
        f"  upstream {group.name} {{ {' '.join(f'server {server};' for server in group.servers)} }}"
        for group in topology.groups
    )
    places = "\n".join(f"    location {group.path} {{ proxy_pass http://{group.name}; }}" for group in topology.groups)
    temporary = " ".join(f"{name}_temp_path {folder}/{name};" for name in _TEMPORARY)
    main = "user root; " if os.geteuid() == 0 else ""
    main += f"daemon off; pid {pid}; error_log {folder}/error.log;"
    config.write_text(
        f"{main}\nevents {{}}\nhttp {{\n  access_log off; {temporary}\n{upstreams}\n"
        f"  server {{\n    listen 127.0.0.1:{port};\n    location = {_STATUS} {{ alias {status}; }}\n"
        f"{places}\n  }}\n}}\n"
    )
    command = [str(detect("nginx").binary), "-e", f"{folder}/error.log", "-c", str(config)]
    with ManagedProcess(command, name="NGINX", log_path=folder / "error.log") as process:
        process.wait_ready(lambda: pid.exists() and pid.read_text() != "")
        yield config, f"http://127.0.0.1:{port}{_STATUS}"
