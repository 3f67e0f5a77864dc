"""What the benches of statistics and actuation share: constant servers, an NGINX before them, load, CPU of workers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from actuators.contract.histogram import percentile_ms
from actuators.contract.script import ArrivalDistribution, RateStep, Stream
from actuators.contract.topology import Topology, social_network
from actuators.load.engine import LoadEngine, LoadOptions
from actuators.nginx.config import NginxOptions
from actuators.nginx.detect import detect
from actuators.nginx.instance import Nginx
from actuators.processes.process import ManagedProcess
from actuators.processes.system import children, free_port, is_listening

MIX = (0.1, 0.6, 0.3)
"""Shares of compose, home read and user read in DeathStarBench's mixed workload."""

_PRIORITY = -15

_CONFIG = """daemon off;
pid {folder}/pid;
error_log {folder}/error.log error;
worker_processes 1;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_timeout 600s; keepalive_requests 1000000000; default_type text/plain;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
{servers}}}
"""


def raise_priority(*pids: int) -> str:
    """Puts the sessions of these processes before other work of this machine, where that is allowed; says whether.

    Linux shares the CPU among sessions first (sched_autogroup), so a process's own nice value is not enough.
    """
    try:
        for pid in pids:
            for child in (pid, *children(pid)):
                os.setpriority(os.PRIO_PROCESS, child, _PRIORITY)
            Path(f"/proc/{pid}/autogroup").write_text(str(_PRIORITY))
    except OSError:
        return "ordinary priority"
    return f"priority {_PRIORITY}"


@contextlib.contextmanager
def constant_servers(folder: Path, count: int = 3) -> Iterator[Topology]:
    """Servers that answer 200 at once, in a process of their own; the topology over their addresses."""
    folder.mkdir(parents=True)
    ports = [free_port() for _ in range(count)]
    servers = "".join(
        f"  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ return 200 '{port}'; }} }}\n"
        for port in ports
    )
    config = folder / "nginx.conf"
    config.write_text(_CONFIG.format(folder=folder, servers=servers))
    command = [str(detect().binary), "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(config)]
    with ManagedProcess(command, name="constant servers", log_path=folder / "error.log") as process:
        process.wait_ready(lambda: all(is_listening(f"127.0.0.1:{port}") for port in ports))
        raise_priority(process.pid)
        yield social_network(tuple(f"127.0.0.1:{port}" for port in ports))


@contextlib.contextmanager
def front(topology: Topology, options: NginxOptions, folder: Path, kind: type[Nginx] = Nginx) -> Iterator[Nginx]:
    """A running NGINX before the topology."""
    folder.mkdir(parents=True, exist_ok=True)
    with kind(options, topology, work_dir=folder) as nginx:
        nginx.start()
        raise_priority(nginx.master_pid)
        yield nginx


@contextlib.contextmanager
def load_engine(folder: Path, options: LoadOptions | None = None) -> Iterator[LoadEngine]:
    """A load engine of its own folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with LoadEngine(options or LoadOptions(), folder) as engine:
        yield engine


def streams(rate_rps: float, distribution: ArrivalDistribution = "exponential") -> tuple[Stream, ...]:
    """The mixed workload at a constant rate."""
    types = social_network().request_types
    return tuple(
        Stream(name, (RateStep(0.0, rate_rps * share, distribution),)) for name, share in zip(types, MIX, strict=True)
    )


@dataclass
class WorkerCpu:
    """CPU seconds that the workers of an NGINX used; old generations are remembered while they live."""

    nginx: Nginx

    def seconds(self) -> float:
        """User and system time of all workers that are alive now."""
        return sum(_cpu_s(pid) for pid in children(self.nginx.master_pid))


@dataclass(frozen=True)
class Cost:
    """What an answer costs.

    Attributes:
        cpu_us: CPU time of NGINX's workers per answer, microseconds.
        median_ms: the client's median, from the intended send time to the last byte.
    """

    cpu_us: float
    median_ms: float


def cost_per_request(nginx: Nginx, rate_rps: float, folder: Path, *, seed: int, duration_s: float) -> Cost:
    """Of the mixed workload at that rate."""
    return costs_together({nginx: seed}, rate_rps, folder, duration_s=duration_s)[nginx]


def costs_together(
    seeds: Mapping[Nginx, int], rate_rps: float, folder: Path, *, duration_s: float
) -> Mapping[Nginx, Cost]:
    """The same of several at once, each with a load of that rate drawn by its own seed: what the machine does
    meanwhile meets all alike."""
    with contextlib.ExitStack() as stack:
        engines = {each: stack.enter_context(load_engine(folder / f"load-{n}")) for n, each in enumerate(seeds)}
        before_s = {each: WorkerCpu(each).seconds() for each in engines}
        for each, engine in engines.items():
            engine.start(each.address, each.topology, streams(rate_rps), seed=seeds[each], duration_s=duration_s)
        found = {}
        for each, engine in engines.items():
            summary = engine.finish(duration_s + 20.0)
            cpu_us = (WorkerCpu(each).seconds() - before_s[each]) / int(summary.answered.sum()) * 1e6
            found[each] = Cost(cpu_us, percentile_ms(summary.latency_counts.sum(axis=0), 50.0))
        return found


def free_address() -> str:
    """A loopback address that was free a moment ago."""
    return f"127.0.0.1:{free_port()}"


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(fields[0]) / 1e9
