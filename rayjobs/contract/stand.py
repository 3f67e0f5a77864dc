"""The test stand: servers whose behaviour is known, and load to a proxy in front of them, with what each server got."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from actuators.closing import Closing
from actuators.contract import histogram
from actuators.contract.arrays import IntArray
from actuators.contract.script import RateStep, ServiceDistribution, Stream
from actuators.contract.topology import Group, Topology
from actuators.errors import LoadError, ServiceError
from actuators.files import private_folder
from actuators.load.engine import LoadEngine, LoadOptions
from actuators.load.summary import ERROR_CLASSES, LoadSummary
from actuators.social_network.capacity import EMULATED, ServerPlan
from actuators.social_network.server import SocialNetworkServer
from actuators.social_network.store import SocialNetworkOptions, create_database

TYPES = {"short": (0.5, 0.010), "medium": (0.35, 0.020), "long": (0.15, 0.060)}
"""Request type → its share of the requests and its mean service time in seconds."""
LONG_S = 3.0
"""Service time of the requests that are in flight during a change."""
WINDOW_S = 0.25
"""Of the load engine; moments are exact to it."""
CV = 0.5
_LONG_PATH = f"{EMULATED}patient"
_LONG_REQUESTS = 4
_MOST_LONG_S = 30.0


def topology_of(servers: Sequence[str]) -> Topology:
    """A group per request type, all over the same servers."""
    groups = [Group(name, name, "GET", EMULATED + name, 2.0, tuple(servers)) for name in TYPES]
    patient = Group("patient", "patient", "GET", _LONG_PATH, 2.0, tuple(servers))
    return Topology((*groups, patient))


class Stand(Closing):
    """Running test servers and a load engine; a context manager.

    Args:
        addresses: loopback HOST:PORT of each server; port 0 takes a free one.
        workers: requests that a server serves at once.

    Raises:
        ServiceError, ProcessError: a server did not start, for example because its port is taken.
        MissingToolError: no compiler for the load engine.
    """

    def __init__(self, addresses: Sequence[str], work_dir: Path, *, workers: int, seed: int) -> None:
        self.workers, self._seed = workers, seed
        options = SocialNetworkOptions(users=2, follows_per_user=1, posts_per_user=0)
        database = private_folder(work_dir) / "database.sqlite"
        create_database(database, options, seed)
        self.servers: list[SocialNetworkServer] = []
        with contextlib.ExitStack() as stack:
            for index, address in enumerate(addresses):
                host, _, port = address.rpartition(":")
                server = SocialNetworkServer(
                    options, work_dir=work_dir, database=database, index=index, host=host.strip("[]"), port=int(port)
                )
                self.servers.append(server)
                stack.callback(server.close)
            self._pool = stack.enter_context(ThreadPoolExecutor(len(self.servers)))
            self.each(lambda server: server.start())
            self._engine = stack.enter_context(LoadEngine(LoadOptions(), work_dir))
            self._close = stack.pop_all().close
        self.topology = topology_of([server.address for server in self.servers])

    def each(self, action: Callable[[SocialNetworkServer], Any]) -> list[Any]:
        """What `action` returns for every server, at the same time for all."""
        return list(self._pool.map(action, self.servers))

    @contextlib.contextmanager
    def load(
        self, address: str, rate_rps: float, duration_s: float, distribution: ServiceDistribution = "lognormal"
    ) -> Iterator[Load]:
        """Servers with empty queues and counters, and load through the proxy at `address` until the block ends.

        Raises LoadError when the proxy accepts no connections.
        """
        means = (*((EMULATED + name, mean_s) for name, (_, mean_s) in TYPES.items()), (_LONG_PATH, LONG_S))
        plan = ServerPlan(self._seed, self.workers, 512, means, distribution, CV)
        self.each(lambda server: server.play_plan(plan))
        streams = [Stream(name, (RateStep(0.0, rate_rps * share),)) for name, (share, _) in TYPES.items()]
        self._engine.start(address, self.topology, streams, seed=self._seed, duration_s=duration_s, window_s=WINDOW_S)
        try:
            yield Load(self, self._engine, address)
        finally:
            self._engine.close()

    def counts(self) -> IntArray:
        """``[servers]``: short, medium and long requests that each has answered since the load began."""
        return np.array([_answered(counters) for counters in self.each(_counters)], dtype=np.int64)

    def close(self) -> None:
        """Ends servers and load; idempotent."""
        self._close()


class Load:
    """Load that runs; seconds count from its begin."""

    def __init__(self, stand: Stand, engine: LoadEngine, address: str) -> None:
        self._stand, self._engine, self._address = stand, engine, address
        self._parts: list[LoadSummary] = []

    @property
    def now_s(self) -> float:
        return time.monotonic() - self._engine.started_at_s

    def wait_until(self, at_s: float) -> None:
        """Returns at that second. Raises LoadError when the load engine has died."""
        while (left_s := at_s - self.now_s) > 0:
            time.sleep(min(left_s, WINDOW_S))
            self._parts += self._engine.poll_summaries()

    def by_second(self, since_s: float, until_s: float) -> list[IntArray]:
        """Requests per server ``[servers]`` of each second from one time to the other, which must lie ahead."""
        self.wait_until(since_s)
        readings = [self._stand.counts()]
        for second in range(1, round(until_s - since_s) + 1):
            self.wait_until(since_s + second)
            readings.append(self._stand.counts())
        return [later - earlier for earlier, later in itertools.pairwise(readings)]

    def finish(self) -> LoadSummary:
        """Ends the arrivals; everything of this load, when nothing is in flight. Raises LoadError."""
        self._engine.stop()
        summary = self._engine.finish(_MOST_LONG_S)
        self._parts += self._engine.poll_summaries()
        return summary

    def part(self, since_s: float, until_s: float) -> LoadSummary:
        """What happened from one second to the other, exact to a window."""
        parts = [part for part in self._parts if since_s <= part.start_s + 1e-3 and part.end_s <= until_s + 1e-3]
        if not parts:
            raise LoadError(f"no window from {since_s:g} to {until_s:g} s", remedy="run it again")
        total = parts[0]
        for part in parts[1:]:
            total += part
        return total

    @contextlib.contextmanager
    def long_requests(self) -> Iterator[list[bool]]:
        """Requests of `LONG_S` seconds that are at the servers when the block begins; after it, whether each was whole.

        Raises ServiceError when they do not arrive.
        """
        outcomes: list[bool] = []
        with ThreadPoolExecutor(_LONG_REQUESTS) as pool:
            asked = [pool.submit(_get, self._address, _LONG_PATH) for _ in range(_LONG_REQUESTS)]
            # They wait for a worker like all others; none is that late under the load of this suite.
            self.wait_until(self.now_s + 0.5)
            if any(each.done() for each in asked):
                raise ServiceError(
                    "a long request was answered at once", where=self._address,
                    remedy="pass every path below /emulated/ to the test servers",
                )  # fmt: skip
            yield outcomes
            outcomes += [each.result() for each in asked]


def p99_ms(summary: LoadSummary) -> float:
    """99th percentile of the answers with success, in milliseconds from the intended send time; nan without any."""
    return histogram.percentile_ms(summary.latency_counts.sum(axis=0), 99)


def lost(summary: LoadSummary) -> str:
    """Requests without a successful answer, by kind of error, in words; empty for none."""
    counts = {name: int(summary.errors[name].sum()) for name in ERROR_CLASSES}
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count)


def _counters(server: SocialNetworkServer) -> dict[str, Any]:
    return server.counters()


def _answered(counters: dict[str, Any]) -> int:
    return sum(sum(by_status.values()) for kind, by_status in counters["requests"].items() if kind != _LONG_PATH)


def _get(address: str, path: str) -> bool:
    """Whether a request gets a whole answer with success."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=_MOST_LONG_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status == 200 and answer.read() == b"{}"
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
