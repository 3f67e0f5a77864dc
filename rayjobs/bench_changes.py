"""Changes of weights under load, for bench `actuation`: how long each took, what clients and workers went through."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from actuators.control import Weights
from actuators.load_summary import LoadSummary
from actuators.nginx import Nginx
from actuators.reload import children
from actuators.topology import Topology
from rayjobs.bench import BenchContext
from rayjobs.bench_site import load_engine, streams

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
