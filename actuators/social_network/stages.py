"""What all stand-in servers share and no balancer sees: a database with few connections, and a cache in front of it.

Emulated in time; knows no sockets.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from heapq import heapify, heappop, heappush
from typing import Any

from actuators.contract.script import MAX_CONTENTION, Cache, Script, ServiceDistribution, Stage, StageBehaviour
from actuators.contract.topology import Topology
from actuators.errors import ConfigError, closest
from actuators.social_network.capacity import PATHS, WorkDraws, endpoint_of, mix, uniforms
from actuators.social_network.timer import PreciseTimer

_VISIT, _HIT, _WORK, _PURPOSES = range(4)
_LONGEST_LINE = 4096


@dataclass(frozen=True)
class StagesPlan:
    """The part of a Script that the stages play; what it has per group is per endpoint, in the order of `endpoints`."""

    seed: int = 0
    endpoints: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()
    behaviours: tuple[StageBehaviour, ...] = ()
    distribution: ServiceDistribution = "constant"
    cv: float = 1.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> StagesPlan:
        """Inverse of `to_json`; raises TypeError or KeyError for a dict of another shape."""
        stages = []
        for entry in data["stages"]:
            cache = (
                None
                if entry["cache"] is None
                else Cache(**{**entry["cache"], "cached": tuple(entry["cache"]["cached"])})
            )
            lists = {name: tuple(entry[name]) for name in ("work_s", "visits")}
            stages.append(Stage(**{**entry, **lists, "cache": cache}))
        behaviours = tuple(StageBehaviour(**entry) for entry in data["behaviours"])
        return cls(**{**data, "endpoints": tuple(data["endpoints"]), "stages": tuple(stages), "behaviours": behaviours})


def stages_plan(script: Script, topology: Topology) -> StagesPlan:
    """The stages of a script. Raises ConfigError for a path without an endpoint."""
    endpoints = [endpoint_of(group.path) for group in topology.groups]
    for group, endpoint in zip(topology.groups, endpoints, strict=True):
        if endpoint is None:
            remedy = closest(group.path, PATHS)
            raise ConfigError(f"no endpoint {group.path}", where=f"group {group.name}", remedy=remedy)
    return StagesPlan(
        script.seed, tuple(map(str, endpoints)), script.stages, script.stage_behaviours, script.service_distribution,
        script.service_cv,
    )  # fmt: skip


@dataclass(eq=False)
class Visitor:
    """A request on its way through the stages; `leave` is called once, when it has passed them."""

    endpoint: str
    sequence: str
    leave: Callable[[], None]
    gone: bool = False
    stage: int = 0
    missed: bool = False


class StageQueue:
    """One stage: connections with one line in order of arrival. All times are seconds of one monotonic clock."""

    def __init__(self, stage: Stage, now_s: float) -> None:
        self.stage, self.speed = stage, 1.0
        self._line: deque[tuple[Visitor, float]] = deque()
        self._busy: list[tuple[float, int, Visitor]] = []
        self._order = 0
        self._hit = stage.cache.hit if stage.cache else 0.0
        self._seen_s = now_s

    @property
    def next_finish_s(self) -> float:
        """When the next visit ends; infinite without visits."""
        return self._busy[0][0] if self._busy else math.inf

    @property
    def waiting(self) -> int:
        return len(self._line)

    def hit_share(self, now_s: float) -> float:
        """Share of the cached requests that the cache answers now; it fades with time."""
        if self.stage.cache is not None:
            self._hit *= math.exp(-(now_s - self._seen_s) / self.stage.cache.decay_s)
            self._seen_s = now_s
        return self._hit

    def enter(self, visitor: Visitor, work_s: float, now_s: float) -> None:
        """Takes a connection, or the last place in line."""
        if len(self._busy) < self.stage.connections:
            self._begin(visitor, work_s, now_s)
        else:
            self._line.append((visitor, work_s))

    def pop_finished(self, now_s: float) -> Visitor | None:
        """The visitor whose visit ended first, until `now_s`; the next in line takes its connection."""
        if self.next_finish_s > now_s:
            return None
        finish_s, _, visitor = heappop(self._busy)
        if self._line:
            following, work_s = self._line.popleft()
            self._begin(following, work_s, finish_s)
        cache = self.stage.cache
        if visitor.missed and not visitor.gone and cache is not None:
            self._hit = self.hit_share(finish_s) + (cache.most - self._hit) / cache.fill
        return visitor

    def behave(self, behaviour: StageBehaviour, now_s: float) -> None:
        """A new speed holds for visits in progress too."""
        factor, self.speed = self.speed / behaviour.speed, behaviour.speed
        self._busy = [(now_s + max(end_s - now_s, 0.0) * factor, order, each) for end_s, order, each in self._busy]
        heapify(self._busy)
        if behaviour.flush:
            self.hit_share(now_s)
            self._hit = 0.0

    def visitors(self) -> list[Visitor]:
        """All that are here, those in line last."""
        return [visitor for _, _, visitor in sorted(self._busy)] + [visitor for visitor, _ in self._line]

    def _begin(self, visitor: Visitor, work_s: float, now_s: float) -> None:
        crowd = min(1.0 + self.stage.contention * len(self._line) / self.stage.connections, MAX_CONTENTION)
        self._order += 1
        heappush(self._busy, (now_s + work_s * crowd / self.speed, self._order, visitor))


class Stages:
    """All stages of a plan on one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = PreciseTimer(loop, self._move)
        self._queues: list[StageQueue] = []
        self.play(StagesPlan())

    def play(self, plan: StagesPlan) -> None:
        """Begins a plan with empty stages; visitors of an earlier one leave at once."""
        left = [visitor for queue in self._queues for visitor in queue.visitors()]
        now_s = time.monotonic()
        self.plan, self.passed = plan, 0
        self._queues = [StageQueue(stage, now_s) for stage in plan.stages]
        self._index = {endpoint: g for g, endpoint in enumerate(plan.endpoints)}
        self._seeds = [mix(plan.seed * 64 + n) for n in range(_PURPOSES * max(len(plan.stages), 1))]
        self._work = [
            WorkDraws(self._seeds[_PURPOSES * k + _WORK], plan.distribution, plan.cv) for k in range(len(plan.stages))
        ]
        self._timer.set(None)
        for visitor in left:
            visitor.leave()

    def behave(self, behaviour: StageBehaviour) -> None:
        self._queues[behaviour.stage].behave(behaviour, time.monotonic())
        self._move()

    def enter(self, visitor: Visitor) -> None:
        """A request of an endpoint without stages leaves at once."""
        self._go_on(visitor, time.monotonic())
        self._arm()

    def status(self) -> dict[str, object]:
        """Visitors that have passed, those inside, those in line per stage, and shares of hits now."""
        now_s = time.monotonic()
        waiting, hits = [q.waiting for q in self._queues], [q.hit_share(now_s) for q in self._queues]
        inside = sum(len(queue.visitors()) for queue in self._queues)
        return {"passed": self.passed, "inside": inside, "waiting": waiting, "hits": hits}

    def close(self) -> None:
        self._timer.close()

    def _go_on(self, visitor: Visitor, now_s: float) -> None:
        """To the next stage that it visits and whose cache it misses, or away."""
        g = self._index.get(visitor.endpoint)
        while g is not None and visitor.stage < len(self._queues):
            k = visitor.stage
            visitor.stage += 1
            stage, queue = self.plan.stages[k], self._queues[k]
            if uniforms(self._seeds[_PURPOSES * k + _VISIT], visitor.sequence)[0] >= stage.visits[g]:
                continue
            visitor.missed = stage.cache is not None and stage.cache.cached[g]
            if visitor.missed and uniforms(self._seeds[_PURPOSES * k + _HIT], visitor.sequence)[0] < queue.hit_share(
                now_s
            ):
                continue
            queue.enter(visitor, stage.work_s[g] * self._work[k].draw(visitor.sequence)[0], now_s)
            return
        self.passed += 1
        visitor.leave()

    def _move(self) -> None:
        now_s = time.monotonic()
        for queue in self._queues:
            while (visitor := queue.pop_finished(now_s)) is not None:
                self._go_on(visitor, now_s)
        self._arm()

    def _arm(self) -> None:
        next_s = min((queue.next_finish_s for queue in self._queues), default=math.inf)
        self._timer.set(next_s if next_s < math.inf else None)
