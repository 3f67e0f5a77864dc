"""Bench `load`: the schedule, what a request costs beside wrk2, a stall seen, every request accounted for.

The cheapest server there is, to measure clients against: one NGINX process that answers 200 and nothing else.
"""

from __future__ import annotations

import csv
import os
import re
import resource
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actuators.closing import Closing
from actuators.contract.script import ArrivalDistribution, RateStep, Stream
from actuators.contract.topology import Group, Topology, social_network
from actuators.errors import LoadError
from actuators.files import writable_folder
from actuators.load.engine import LoadEngine, LoadOptions
from actuators.load.plans import PlanOptions, make_streams
from actuators.load.summary import LoadSummary
from actuators.nginx.detect import detect
from actuators.processes.process import ManagedProcess
from actuators.processes.system import free_port, is_listening, resident_mb
from rayjobs.bench.parts.bars import Bar, BenchContext, at_least, at_most, figure

_CONFIG = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 600s;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port} backlog=8192; location / {{ return 200 "ok\\n"; }} }}
}}
"""


class TrivialServer(Closing):
    """A context manager. Raises MissingToolError without an NGINX, ProcessError when it does not start."""

    def __init__(self, folder: Path) -> None:
        self._folder = writable_folder(folder)
        self.port = free_port()
        config = self._folder / "trivial.conf"
        config.write_text(_CONFIG.format(folder=self._folder, port=self.port), encoding="utf-8")
        command = [
            str(detect().binary),
            "-p",
            str(self._folder),
            "-e",
            str(self._folder / "error.log"),
            "-c",
            str(config),
        ]
        self._process = ManagedProcess(command, name="the trivial server", log_path=self._folder / "trivial.log")
        self._process.wait_ready(lambda: is_listening(f"127.0.0.1:{self.port}"))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def pause(self) -> None:
        """Stops it from answering; the kernel still accepts connections and bytes."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.resume()
        self._process.close()


_SERVERS = ("server:80",)
READ = Topology((Group("read_backend", "read", "GET", "/", 2.0, _SERVERS),))
"""One type whose requests are as small as wrk's."""
RATE_RPS = 2000
SPIN_US, NO_SPIN_US, CHOSEN_US = 60.0, 1.0, 0.0
"""Busy-waits before a send: exact to microseconds, practically none, and as the engine chooses it."""
WRK2 = "DEEPSCHED_WRK2"
"""Environment variable with the path of a wrk2 of DeathStarBench, which then stands beside ours."""


@dataclass(frozen=True)
class TimedRun:
    """One run at a constant rate; times in seconds, in the order of the requests."""

    priority: str
    spin_us: float
    due_s: NDArray[np.float64]
    sent_s: NDArray[np.float64]

    def send_delay_ms(self, percentile: float) -> float:
        return float(np.percentile(self.sent_s - self.due_s, percentile) * 1e3)

    @property
    def sent_cv(self) -> float:
        """Coefficient of variation of the gaps between actual sends."""
        gaps = np.diff(self.sent_s)
        return float(gaps.std() / gaps.mean())


def measure(context: BenchContext) -> Sequence[Bar]:
    """Accuracy, capacity and cost of the load engine (docs/results.md#bench-load)."""
    bars: list[Bar] = []
    with TrivialServer(context.work_dir / "server") as server:
        for part in (_schedule, _cost, _stall, _random_plan, _kill):
            context.log(part.__name__.strip("_").replace("_", " "))
            bars += part(context, server)
    return bars


def _schedule(context: BenchContext, server: TrivialServer) -> Iterator[Bar]:
    count, seconds = (3, 1.0) if context.quick else (10, 4.0)

    def blocks(distribution: ArrivalDistribution, spin_us: float) -> list[TimedRun]:
        return [_block(context, server, distribution, seconds, context.seed + i, spin_us) for i in range(count)]

    plain, spinning = blocks("exponential", NO_SPIN_US), blocks("exponential", SPIN_US)
    planned, sent, sent_spinning = (
        [_ks_exponential(times) for times in rows]
        for rows in ([b.due_s for b in plain], [b.sent_s for b in plain], [b.sent_s for b in spinning])
    )
    note = (
        f"least disturbed of {count} blocks of {seconds:g} s: other programs on the machine can only add; "
        f"engine at {plain[0].priority} priority"
    )
    yield at_most(
        f"exponential at {RATE_RPS}/s: KS distance of the planned gaps", statistics.median(planned), 0.03, "",
        how=f"against 1 - exp(-{RATE_RPS} t), median of {count} blocks of {seconds:g} s",
    )  # fmt: skip
    yield at_most(
        f"the same of the gaps as sent, spin_us {SPIN_US:g}", min(sent_spinning), 0.03, "", how=note,
        reference=f"median {statistics.median(sent_spinning):.3f}; without spinning {min(sent):.3f}, "
        f"median {statistics.median(sent):.3f}",
    )  # fmt: skip
    yield at_most(
        f"exponential at {RATE_RPS}/s: send delay p99", min(b.send_delay_ms(99) for b in plain), 1.0, "ms", how=note,
        reference=f"median block {statistics.median(b.send_delay_ms(99) for b in plain):.2f} ms; p50 "
        f"{min(b.send_delay_ms(50) for b in plain):.3f} ms, spinning "
        f"{min(b.send_delay_ms(50) for b in spinning):.3f} ms",
    )  # fmt: skip
    fixed = {spin_us: blocks("fixed", spin_us) for spin_us in (CHOSEN_US, NO_SPIN_US, SPIN_US)}
    even = {spin_us: sorted(block.sent_cv for block in rows) for spin_us, rows in fixed.items()}
    ninth = -(-9 * count // 10) - 1
    yield at_most(
        f"fixed at {RATE_RPS}/s: variation of the gaps as sent, in 9 of 10 blocks", even[CHOSEN_US][ninth], 0.02, "",
        reference=f"planned 0; {_listed(even[CHOSEN_US])}; without spinning {_listed(even[NO_SPIN_US])}; "
        f"spin_us {SPIN_US:g}: {_listed(even[SPIN_US])}",
        how=f"standard deviation / mean, {count} blocks of {seconds:g} s; busy-wait as the engine chose it,"
        f" {statistics.median(block.spin_us for block in fixed[CHOSEN_US]):.0f} µs; the reference has all, sorted",
    )  # fmt: skip


def _listed(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def _cost(context: BenchContext, server: TrivialServer) -> Iterator[Bar]:
    repeats, seconds = (2, 2.0) if context.quick else (11, 6.0)
    wrk2 = os.environ.get(WRK2, "")
    ours, theirs, wakes = [], [], []
    for i in range(repeats):
        summary = _run(context, server, 6000, seconds, context.seed + i)
        ours.append(summary.cpu_share * summary.end_s * 1e6 / int(summary.answered.sum()))
        wakes.append(_wake_up_ms())
        if wrk2:
            theirs.append(_wrk2(context, server, wrk2, seconds))
    how = (
        f"user and system time of the processes, median of {repeats} alternating runs of {seconds:g} s;"
        f" {min(ours):.1f} to {max(ours):.1f} ms"
    )
    cost, wake = statistics.median(ours), statistics.median(wakes)
    limit, against = 1.3 * wake, f"no wrk2 in ${WRK2}; limit: 1.3 × wake-ups"
    if theirs:
        limit = statistics.median(theirs)
        against = f"wrk2 -D exp -t1 -c64: {limit:.1f} ms, {min(theirs):.1f} to {max(theirs):.1f}"
    yield at_most("CPU per 1000 requests at 6000/s", cost, limit, "ms", how=how, reference=against)
    yield figure(
        "CPU per 1000 bare timer wake-ups at 6000/s", wake, "ms",
        how="time.sleep in this process, in the same turns: what this machine charges for keeping a time",
        reference=f"ours {cost / wake:.2f} times that; an open-loop sender must wake, wrk never does",
    )  # fmt: skip


def _stall(context: BenchContext, server: TrivialServer) -> Iterator[Bar]:
    seconds = 6.0 if context.quick else 60.0
    summary = _run_with_stall(context, server, LoadOptions(), seconds)
    few = _run_with_stall(context, server, LoadOptions(max_connections=16), seconds if context.quick else 30.0)
    corrected, raw = (few.percentiles_ms(raw=raw)["read"] for raw in (False, True))
    yield at_least(
        "1 s stall at 1000/s: corrected p99.9", summary.percentiles_ms()["read"]["p99.9"] / 1e3, 0.9, "s",
        reference=f"raw p99.9 {summary.percentiles_ms(raw=True)['read']['p99.9'] / 1e3:.3f} s",
        how=f"the server is stopped for 1 s once in {seconds:g} s; connections grow as needed",
    )  # fmt: skip
    yield at_least(
        "the same with 16 connections: corrected p99", corrected["p99"] / 1e3, 0.3, "s",
        reference=f"raw p99 {raw['p99'] / 1e3:.4f} s: coordinated omission",
        how="few connections: most requests of the stall could be sent only after it",
    )  # fmt: skip


def _random_plan(context: BenchContext, server: TrivialServer) -> Iterator[Bar]:
    seconds = 8.0 if context.quick else 600.0
    scale = 0.1 if context.quick else 1.0
    options = PlanOptions(
        duration_s=seconds, seed=context.seed, max_rate_rps=1500, min_burst_s=20 * scale, max_burst_s=60 * scale,
        min_backoff_s=2 * scale, max_backoff_s=10 * scale,
    )  # fmt: skip
    with LoadEngine(LoadOptions(), context.work_dir / "random") as engine:
        engine.start(
            server.address, social_network(_SERVERS), make_streams(options), seed=context.seed, duration_s=seconds
        )
        memory_mb = []
        while not engine.wait(0.5):
            memory_mb.append(resident_mb(engine.pid))
        summary = engine.finish(1.0)
        windows = engine.poll()
    lost = abs(summary.planned - summary.sent - summary.errors["connect"] - summary.errors["not_sent"])
    errors = {name: int(counts.sum()) for name, counts in summary.errors.items() if counts.any()}
    yield at_most(
        "random plan: requests unaccounted for", int((lost + abs(summary.unaccounted)).sum()), 0, "",
        reference=f"sent {summary.sent.sum()}, answered {summary.answered.sum()}, errors {errors or 'none'}",
        how=f"{seconds:g} s, bursts of up to 1500/s per type: planned = sent + not sent, sent = answered + lost",
    )  # fmt: skip
    summed = sum(int(window.sent.sum()) for window in windows)
    yield at_most(
        "random plan: requests missing in the windows", abs(summed - int(summary.sent.sum())), 0, "", how="sum"
    )
    settled = max(memory_mb[: len(memory_mb) // 2])
    growth = max(memory_mb[len(memory_mb) // 2 :]) / settled - 1
    yield at_most(
        "random plan: growth of memory in the second half", growth, 0.05, "",
        reference=f"{settled:.1f} MiB resident in the first half", how="largest resident set, twice a second",
    )  # fmt: skip


def _kill(context: BenchContext, server: TrivialServer) -> Iterator[Bar]:
    """SIGKILL of the engine mid-run: what it had written is known, the server goes on."""
    with LoadEngine(LoadOptions(), context.work_dir / "kill") as engine:
        engine.start(server.address, READ, _constant(1000), seed=context.seed, duration_s=60.0, window_s=0.1)
        while engine.started_at_s + 1.0 > time.monotonic():
            engine.wait(0.05)
            engine.poll()
        killed_s = time.monotonic() - engine.started_at_s
        os.kill(engine.pid, signal.SIGKILL)
        try:
            engine.finish(5.0)
        except LoadError as error:
            context.log(f"as it should: {error}")
        known = _drained(engine)
        after = _run(context, server, 1000, 1.0, context.seed)
    yield at_most(
        "engine killed: seconds of the run without counts", killed_s - known.end_s, 0.25, "s",
        reference=f"{known.sent.sum()} sent and {known.answered.sum()} answered were reported after {killed_s:.2f} s",
        how="SIGKILL after 1 s at 1000/s with windows of 0.1 s; from the last window to the kill",
    )  # fmt: skip
    yield at_most(
        "engine killed: failures of the next run", int(after.planned.sum() - after.answered.sum()), 0, "", how="1 s"
    )


def _block(
    context: BenchContext, server: TrivialServer, distribution: ArrivalDistribution, seconds: float, seed: int,
    spin_us: float,
) -> TimedRun:  # fmt: skip
    path = context.work_dir / "requests.csv"
    with LoadEngine(LoadOptions(spin_us=spin_us), context.work_dir / "engine") as engine:
        engine.start(
            server.address, READ, _constant(RATE_RPS, distribution), seed=seed, duration_s=seconds,
            extra={"requests-csv": str(path)},
        )  # fmt: skip
        engine.finish(seconds + 30.0)
        priority, spinning_us = engine.priority, engine.spin_us
    with open(path, newline="", encoding="utf-8") as file:
        rows = [(int(row["ordinal"]), int(row["due_ns"]), int(row["sent_ns"])) for row in csv.DictReader(file)]
    table = np.array(sorted(row for row in rows if row[2] >= 0), dtype=float)
    return TimedRun(priority, spinning_us, table[:, 1] / 1e9, table[:, 2] / 1e9)


def _run(context: BenchContext, server: TrivialServer, rate: float, seconds: float, seed: int) -> LoadSummary:
    with LoadEngine(LoadOptions(), context.work_dir / "engine") as engine:
        engine.start(server.address, READ, _constant(rate), seed=seed, duration_s=seconds)
        return engine.finish(seconds + 30.0)


def _run_with_stall(context: BenchContext, server: TrivialServer, options: LoadOptions, seconds: float) -> LoadSummary:
    with LoadEngine(options, context.work_dir / "stall") as engine:
        engine.start(server.address, READ, _constant(1000), seed=context.seed, duration_s=seconds)
        engine.wait(seconds / 3)
        server.pause()
        engine.wait(1.0)
        server.resume()
        return engine.finish(seconds + 30.0)


def _drained(engine: LoadEngine) -> LoadSummary:
    """All windows that a dead engine had written, summed."""
    try:
        while True:
            engine.poll()
    except LoadError:
        return engine.partial_summary()


def _constant(rate: float, distribution: ArrivalDistribution = "exponential") -> list[Stream]:
    return [Stream("read", (RateStep(0.0, rate, distribution),))]


def _ks_exponential(times_s: NDArray[np.float64]) -> float:
    """Largest distance between the gaps' distribution and the exponential one of RATE_RPS."""
    gaps = np.sort(np.diff(times_s))
    ideal, n = 1 - np.exp(-gaps * RATE_RPS), len(gaps)
    return float(max(np.max(np.arange(1, n + 1) / n - ideal), np.max(ideal - np.arange(n) / n)))


def _wrk2(context: BenchContext, server: TrivialServer, program: str, seconds: float) -> float:
    """CPU milliseconds per 1000 requests of DeathStarBench's wrk2 at 6000/s, one thread."""
    log = context.work_dir / "wrk2.txt"
    log.unlink(missing_ok=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [program, "-D", "exp", "-t1", "-c64", f"-d{seconds:.0f}s", "-R6000", f"http://{server.address}/"]
    with ManagedProcess(command, name="wrk2", log_path=log) as process:
        process.wait(seconds + 30.0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = re.search(r"(\d+) requests in", log.read_text(encoding="utf-8"))
    if found is None:
        raise LoadError("wrk2 printed no results", where=str(log), evidence=process.log_tail())
    return (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime) * 1e6 / int(found[1])


def _wake_up_ms() -> float:
    """CPU milliseconds of this thread per 1000 sleeps until the next 6000th of a second."""
    wakes, due_s, cpu_s = 6000, time.monotonic(), time.thread_time()
    for _ in range(wakes):
        due_s += 1 / 6000
        time.sleep(max(due_s - time.monotonic(), 0.0))
    return (time.thread_time() - cpu_s) * 1e6 / wakes
