"""Emulated capacity of one server: its plan, a FIFO queue before c workers in virtual time, draws of work, counters.

Finish times follow from arrival times alone (start = max(now, earliest free worker)), so that a late event loop delays
responses a little but never occupies a worker. Knows neither sockets nor storage.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass
from functools import lru_cache
from heapq import heapify, heappop, heappush, heapreplace
from statistics import NormalDist
from typing import Any, Generic, TypeVar

from actuators.contract.script import Behaviour, Script, ServiceDistribution
from actuators.contract.topology import Topology
from actuators.errors import ConfigError, closest

PATHS = {
    "/wrk2-api/post/compose": "compose",
    "/wrk2-api/home-timeline/read": "home_read",
    "/wrk2-api/user-timeline/read": "user_read",
}
"""URL path of each endpoint → its request type."""
EMULATED = "/emulated/"
"""A path below it takes the time that the plan says and does nothing else: the endpoint of any other request type."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class ServerPlan:
    """The part of a Script that one server plays.

    Attributes:
        service_s: request type → mean service time of this server in seconds, without interference; 0 for none.
        behaviours: ascending in `at_s`, of this server only.
        stages: HOST:PORT of the stages that requests pass after their work here; empty for none.
        varied: work depends on the request, as `actuators.social_network.costs` says.
    """

    seed: int = 0
    workers: int = 4
    queue_limit: int = 512
    service_s: tuple[tuple[str, float], ...] = ()
    distribution: ServiceDistribution = "constant"
    cv: float = 1.0
    behaviours: tuple[Behaviour, ...] = ()
    stages: str = ""
    varied: bool = False

    def __post_init__(self) -> None:
        if self.workers < 1 or self.queue_limit < 0:
            raise ConfigError(f"{self.workers} workers, queue of {self.queue_limit}", remedy="give at least 1 and 0")
        if any(not 0 <= mean < float("inf") for _, mean in self.service_s) or self.cv < 0:
            what, remedy = "a service time is negative or not finite, or cv is negative", "give numbers of at least 0"
            raise ConfigError(what, where="server plan", remedy=remedy)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ServerPlan:
        """Inverse of `to_json`; raises TypeError or KeyError for a dict of another shape."""
        behaviours = tuple(Behaviour(**entry) for entry in data["behaviours"])
        service_s = tuple((str(name), float(mean)) for name, mean in data["service_s"])
        return cls(**{**data, "behaviours": behaviours, "service_s": service_s})


def endpoint_of(path: str) -> str | None:
    """The request type that a path serves, as plans name it; None when there is no such endpoint."""
    return path if path.startswith(EMULATED) else PATHS.get(path)


def plan_of(script: Script, topology: Topology, index: int, stages: str = "") -> ServerPlan:
    """The part of a script that server `index` of the topology plays; `stages` is the address of its stages.

    An endpoint that no group uses has no emulated service time. Raises ConfigError for an unknown path, or a script of
    another shape.
    """
    if not index < len(script.servers) or len(script.mean_service_s) != len(topology.groups):
        raise ConfigError(f"script {script.name!r} does not fit server {index}", remedy="make it for this topology")
    profile = script.servers[index]
    service_s = []
    for group, mean_s, speed in zip(topology.groups, script.mean_service_s, profile.speeds, strict=True):
        endpoint = endpoint_of(group.path)
        if endpoint is None:
            raise ConfigError(
                f"no endpoint {group.path}", where=f"group {group.name}", remedy=closest(group.path, PATHS)
            )
        service_s.append((endpoint, mean_s / speed))
    return ServerPlan(
        seed=script.seed,
        workers=profile.workers,
        queue_limit=profile.queue_limit,
        service_s=tuple(service_s),
        distribution=script.service_distribution,
        cv=script.service_cv,
        behaviours=tuple(entry for entry in script.behaviours if entry.server == index),
        stages=stages,
        varied=bool(script.kinds),
    )


class VirtualQueue(Generic[Item]):
    """A bounded FIFO queue before `workers` workers. All times are seconds of one monotonic clock."""

    def __init__(self, workers: int, queue_limit: int) -> None:
        self._queue_limit = queue_limit
        self._free_s = [0.0] * workers
        self._starts_s: deque[float] = deque()
        self._due: list[tuple[float, int, float, Item]] = []
        self._order = 0

    def offer(self, now_s: float, service_s: float, item: Item) -> float | None:
        """Finish time of the item; None when the queue is full and the item is not taken."""
        start_s = now_s
        if self._free_s[0] > now_s:
            if self.waiting(now_s) >= self._queue_limit:
                return None
            start_s = self._free_s[0]
            self._starts_s.append(start_s)
        finish_s = start_s + service_s
        heapreplace(self._free_s, finish_s)
        self._order += 1
        heappush(self._due, (finish_s, self._order, start_s, item))
        return finish_s

    @property
    def next_finish_s(self) -> float | None:
        """Finish time of the next item; None when there is none."""
        return self._due[0][0] if self._due else None

    def pop_finished(self, now_s: float) -> tuple[float, Item] | None:
        """The earliest finished item with its finish time, or None. Each item is returned once."""
        if not self._due or self._due[0][0] > now_s:
            return None
        finish_s, _, _, item = heappop(self._due)
        return finish_s, item

    def waiting(self, now_s: float) -> int:
        """Number of items that wait for a worker."""
        starts = self._starts_s
        while starts and starts[0] <= now_s:
            starts.popleft()
        return len(starts)

    def busy(self, now_s: float) -> int:
        """Number of busy workers."""
        return sum(free_s > now_s for free_s in self._free_s)

    def clear(self) -> None:
        """Forgets everything; all workers are free."""
        self._free_s = [0.0] * len(self._free_s)
        self._starts_s.clear()
        self._due.clear()

    def delay(self, since_s: float, until_s: float) -> None:
        """No work was done between the two times: unfinished items end later by that much."""
        lost_s = until_s - since_s
        self._free_s = [end_s + lost_s if end_s > since_s else end_s for end_s in self._free_s]
        self._starts_s = deque(start_s + lost_s for start_s in self._starts_s if start_s > since_s)
        self._due = [
            (end_s + lost_s, order, start_s + lost_s if start_s > since_s else start_s, item)
            if end_s > since_s
            else (end_s, order, start_s, item)
            for end_s, order, start_s, item in self._due
        ]
        heapify(self._free_s)
        heapify(self._due)

    def stretch(self, now_s: float, factor: float) -> None:
        """Multiplies the remaining work, in progress and waiting, by `factor`, after a change of speed."""
        jobs = sorted(self._due, key=lambda job: job[1])
        self._starts_s.clear()
        running = [
            (now_s + (finish - now_s) * factor if finish > now_s else finish, order, start, item)
            for finish, order, start, item in jobs
            if start <= now_s
        ]
        ends = [job[0] for job in running if job[0] > now_s]
        self._free_s = ends + [now_s] * (len(self._free_s) - len(ends))
        heapify(self._free_s)
        for finish_s, order, start_s, item in jobs:
            if start_s > now_s:
                begin_s = self._free_s[0]
                end_s = begin_s + (finish_s - start_s) * factor
                heapreplace(self._free_s, end_s)
                self._starts_s.append(begin_s)
                running.append((end_s, order, begin_s, item))
        heapify(running)
        self._due = running


class ServiceCounters:
    """Counts since the plan began.

    Attributes:
        answered: (request type, status) → responses.
        rejected: refused because of a full queue (503), also in `answered`.
        hung: requests during a hang.
        reset: connections that a crash reset.
        write_retries: attempts to write while another server was writing.
        store_errors: requests that failed in the database (500), also in `answered`.
        service_s: sum of the emulated service times, at the speed at arrival.
        late_s: sum of the delays from a finish time to its response.
    """

    def __init__(self) -> None:
        self.answered: Counter[tuple[str, int]] = Counter()
        self.rejected = self.hung = self.reset = self.write_retries = self.store_errors = 0
        self.service_s = self.late_s = 0.0
        self._start_s, self._cpu_start_s = time.monotonic(), time.process_time()

    def count(self, request_type: str, status: int) -> None:
        self.answered[request_type, status] += 1

    def to_json(self) -> dict[str, Any]:
        """`requests` is request type → status → responses; the rest as above, with age and CPU seconds."""
        requests: dict[str, dict[str, int]] = {}
        for (request_type, status), count in sorted(self.answered.items()):
            requests.setdefault(request_type, {})[str(int(status))] = count
        return {
            "requests": requests,
            "rejected": self.rejected,
            "hung": self.hung,
            "reset": self.reset,
            "write_retries": self.write_retries,
            "store_errors": self.store_errors,
            "service_s": self.service_s,
            "late_s": self.late_s,
            "age_s": time.monotonic() - self._start_s,
            "cpu_s": time.process_time() - self._cpu_start_s,
        }


_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_NORMAL = NormalDist()


class WorkDraws:
    """Draws of work with mean 1, by a hash of (seed, request name): equal on every server and in every paired run.

    Args:
        cv: coefficient of variation of the lognormal distribution.
    """

    def __init__(self, seed: int, distribution: ServiceDistribution, cv: float) -> None:
        self._seed, self._distribution = mix(seed & _MASK), distribution
        self._sigma = math.sqrt(math.log1p(cv * cv))

    def draw(self, sequence: str) -> tuple[float, float]:
        """(work of mean 1, a uniform of (0, 1) that decides on errors) of the request `sequence` (TYPE-N)."""
        work, fate = uniforms(self._seed, sequence)
        if self._distribution == "constant":
            return 1.0, fate
        if self._distribution == "exponential":
            return -math.log(work), fate
        return math.exp(self._sigma * (_NORMAL.inv_cdf(work) - self._sigma / 2)), fate


def uniforms(state: int, sequence: str) -> tuple[float, float]:
    """Two independent uniforms of the open interval (0, 1): outputs 2N and 2N + 1 of the splitmix64 of TYPE.

    A sequence that is not TYPE-N counts as a separate type.
    """
    name, _, number = sequence.rpartition("-")
    if number.isdecimal() and len(number) < 20:
        counter = int(number)
    else:
        name, counter = sequence, 0
    key = mix(state ^ _name_hash(name))
    first = mix((key + (2 * counter + 1) * _GOLDEN) & _MASK)
    second = mix((key + (2 * counter + 2) * _GOLDEN) & _MASK)
    return ((first >> 12) + 0.5) * 2.0**-52, ((second >> 12) + 0.5) * 2.0**-52


def mix(value: int) -> int:
    """Output function of splitmix64 (Steele, Lea, Flood 2014, doi:10.1145/2714064.2660195), a bijection of 64 bits."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


@lru_cache(maxsize=1024)
def _name_hash(name: str) -> int:
    """FNV-1a, 64 bits."""
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = ((value ^ byte) * 0x100000001B3) & _MASK
    return value
