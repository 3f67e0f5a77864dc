"""Emulated capacity of one server: a FIFO queue before c workers, computed in virtual time.

Finish times follow from arrival times alone (start = max(now, earliest free worker)), so a lagging
event loop delays answers a little but never occupies a worker. Knows neither sockets nor storage.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any, Generic, TypeVar

from actuators.errors import ConfigError, closest
from actuators.script import Behaviour, Script, ServiceDistribution
from actuators.topology import Topology

PATHS = {
    "/wrk2-api/post/compose": "compose",
    "/wrk2-api/home-timeline/read": "home_read",
    "/wrk2-api/user-timeline/read": "user_read",
}
"""URL path of each endpoint → its request type."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class ServerPlan:
    """What one server plays: its own part of a Script.

    Attributes:
        service_s: request type → mean service time of this server in seconds, interference apart; 0 is none.
        behaviours: ascending in `at_s`, of this server only.
    """

    seed: int = 0
    workers: int = 4
    queue_limit: int = 512
    service_s: tuple[tuple[str, float], ...] = ()
    distribution: ServiceDistribution = "constant"
    cv: float = 1.0
    behaviours: tuple[Behaviour, ...] = ()

    def __post_init__(self) -> None:
        if self.workers < 1 or self.queue_limit < 0:
            raise ConfigError(f"{self.workers} workers, queue of {self.queue_limit}", remedy="give at least 1 and 0")
        if any(not 0 <= mean < float("inf") for _, mean in self.service_s) or self.cv < 0:
            raise ConfigError("a service time or its cv is negative", where="server plan")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ServerPlan:
        """Inverse of `to_json`; raises TypeError or KeyError for a dict of another shape."""
        behaviours = tuple(Behaviour(**entry) for entry in data["behaviours"])
        service_s = tuple((str(name), float(mean)) for name, mean in data["service_s"])
        return cls(**{**data, "behaviours": behaviours, "service_s": service_s})


def plan_of(script: Script, topology: Topology, index: int) -> ServerPlan:
    """The part of a script that server `index` of the topology plays.

    An endpoint that no group uses has no emulated service time. Raises ConfigError for a path that
    is none of ours, or a script of another shape.
    """
    if not index < len(script.servers) or len(script.mean_service_s) != len(topology.groups):
        raise ConfigError(f"script {script.name!r} does not fit server {index}", remedy="make it for this topology")
    profile = script.servers[index]
    service_s = []
    for group, mean_s, speed in zip(topology.groups, script.mean_service_s, profile.speeds, strict=True):
        if group.path not in PATHS:
            raise ConfigError(
                f"no endpoint {group.path}", where=f"group {group.name}", remedy=closest(group.path, PATHS)
            )
        service_s.append((PATHS[group.path], mean_s / speed))
    return ServerPlan(
        seed=script.seed,
        workers=profile.workers,
        queue_limit=profile.queue_limit,
        service_s=tuple(service_s),
        distribution=script.service_distribution,
        cv=script.service_cv,
        behaviours=tuple(entry for entry in script.behaviours if entry.server == index),
    )


class VirtualQueue(Generic[Item]):
    """FIFO queue with a bound before `workers` workers. All times are seconds of one monotonic clock."""

    def __init__(self, workers: int, queue_limit: int) -> None:
        self._queue_limit = queue_limit
        self._free_s = [0.0] * workers
        self._starts_s: deque[float] = deque()
        self._due: list[tuple[float, int, float, Item]] = []
        self._order = 0

    def offer(self, now_s: float, service_s: float, item: Item) -> float | None:
        """Time at which the item will be finished; None when the queue is full (it is not taken)."""
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
        """When the next item will be finished; None when there is none."""
        return self._due[0][0] if self._due else None

    def pop_finished(self, now_s: float) -> tuple[float, Item] | None:
        """The earliest finished item with its finish time, or None. Each item comes once."""
        if not self._due or self._due[0][0] > now_s:
            return None
        finish_s, _, _, item = heappop(self._due)
        return finish_s, item

    def waiting(self, now_s: float) -> int:
        """Items that wait for a worker."""
        starts = self._starts_s
        while starts and starts[0] <= now_s:
            starts.popleft()
        return len(starts)

    def busy(self, now_s: float) -> int:
        """Workers at work."""
        return sum(free_s > now_s for free_s in self._free_s)

    def clear(self) -> None:
        """Forgets everything; all workers are free."""
        self._free_s = [0.0] * len(self._free_s)
        self._starts_s.clear()
        self._due.clear()

    def delay(self, since_s: float, until_s: float) -> None:
        """Nothing progressed between the two: what was unfinished then ends so much later."""
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
        """Multiplies the work that is left, in progress and waiting, by `factor`: the speed has changed."""
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
