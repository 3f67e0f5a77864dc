"""Learns how many requests each server serves at once, with an interval, from what every NGINX of ours counts: answers,
their response times and the service times that were learned (docs/late-binding.md#slots-that-are-learned).

Unlike `WorkersLearner` it needs no counts by requests in flight, which only the simulator has.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from actuators.contract.arrays import BoolArray, FloatArray, IntArray
from actuators.contract.late_binding import ENOUGH, LateBinding, slots_for
from actuators.contract.topology import Topology
from envs.estimators.base import ServiceSamples

BLOCK_S, BLOCK_REQUESTS = 2.0, 50
"""Windows are joined until they are so long and have so many answers of a server."""
REMEMBERED, LEAST = 30, 5
"""Blocks in which requests waited at a server: those that count, and how many make an interval."""
WAITED = 1.15
"""Requests in flight over busy workers from which on requests waited."""
FULL = 0.85
"""Requests in flight over slots from which on a server is taken to have work for all its workers."""
NARROW = 1.6
"""Upper over lower end of an interval that is narrow."""
FORGOTTEN_S = 3600.0
"""Half-life of what a server has shown that it can do."""
_DEVIATIONS = 2.0
_MOST = 4096.0


@dataclass(frozen=True, eq=False)
class Capacity:
    """Workers of each server, ``[servers]``.

    Attributes:
        low, high: ends of the interval; `high` is ∞ as long as requests have hardly waited at the server.
        best: the middle of the interval; ∞ where `high` is.
        shown: workers that were busy at a time, at least.
    """

    low: FloatArray
    high: FloatArray
    best: FloatArray
    shown: FloatArray

    @property
    def narrow(self) -> BoolArray:
        """Whether the interval tells enough to limit what a server gets."""
        known: BoolArray = self.high <= NARROW * self.low
        return known


class CapacityLearner:
    """Gets every usable window with the service times learned from it.

    In a block of time, D = Σ answers × τ / time workers of a server were busy, and n = Σ response time / time requests
    were in flight there (Little's law). A server has at least as many workers as were busy in any two blocks one after
    the other, less two standard errors. In a block in which requests waited, the workers are those with which an M/M/c
    queue has n requests in flight at D; where slots end that queue, all workers were busy, and D is their number.
    """

    def __init__(self, topology: Topology) -> None:
        servers = topology.shape[1]
        self._work_s, self._noise_s2, self._flight_s, self._length_s, self._answers = np.zeros((5, servers))
        self._shown, self._before = np.zeros(servers), np.zeros(servers)
        self._found: list[deque[float]] = [deque(maxlen=REMEMBERED) for _ in range(servers)]

    def update(self, samples: ServiceSamples, tau_s: FloatArray, slots: IntArray | None = None) -> Capacity:
        """What is known after a window.

        `tau_s`: ``[groups, servers]``, service times; `slots`: ``[servers]`` of all balancers, in force
        meanwhile; None when nothing was held.
        """
        each_s = np.where(samples.mask, samples.requests * tau_s, 0.0)
        self._work_s += each_s.sum(axis=0)
        # Lognormal service times with a coefficient of variation of 1: the count and the times vary alike.
        self._noise_s2 += 2.0 * np.where(samples.mask, each_s * tau_s, 0.0).sum(axis=0)
        self._flight_s += samples.response_s.sum(axis=0)
        self._answers += samples.requests.sum(axis=0)
        self._length_s += samples.duration_s
        self._shown *= 0.5 ** (samples.duration_s / FORGOTTEN_S)
        for s in np.flatnonzero((self._length_s >= BLOCK_S) & (self._answers >= BLOCK_REQUESTS)):
            self._close(int(s), np.inf if slots is None else float(slots[s]))
        return self._capacity()

    def _close(self, s: int, slots: float) -> None:
        length_s = self._length_s[s]
        busy, in_flight = self._work_s[s] / length_s, self._flight_s[s] / length_s
        error = np.sqrt(self._noise_s2[s]) / length_s
        # The most of many blocks is largely chance; of two together it is less of it.
        lasting, self._before[s] = min(self._before[s], busy), busy
        self._shown[s] = max(self._shown[s], lasting - _DEVIATIONS * error)
        if in_flight > WAITED * (busy + error):
            self._found[s].append(busy if in_flight >= FULL * slots else workers_with(busy, in_flight))
        for sums in (self._work_s, self._noise_s2, self._flight_s, self._length_s, self._answers):
            sums[s] = 0.0

    def _capacity(self) -> Capacity:
        low, high, best = self._shown.copy(), np.full(len(self._shown), np.inf), np.full(len(self._shown), np.inf)
        for s, found in enumerate(self._found):
            if len(found) >= LEAST:
                first, middle, last = np.quantile(np.array(found), (0.1, 0.5, 0.9))
                low[s] = max(first, low[s])
                best[s], high[s] = max(middle, low[s]), max(last, low[s])
        return Capacity(low, high, best, self._shown.copy())


def workers_with(busy: float, in_flight: float) -> float:
    """Workers c ≥ `busy` with which an M/M/c queue whose workers are busy `busy` at a time has so many in flight; the
    Erlang C formula between whole numbers by interpolation of the wait.
    """
    low = max(busy * (1.0 + 1e-6), 0.05)
    high = max(2.0 * low, 1.0)
    while high < _MOST and _in_flight(busy, high) > in_flight:
        low, high = high, 2.0 * high
    for _ in range(40):
        middle = 0.5 * (low + high)
        if _in_flight(busy, middle) > in_flight:
            low = middle
        else:
            high = middle
    return high


def _in_flight(busy: float, workers: float) -> float:
    """Mean requests in flight of an M/M/c queue, with Sakasegawa's approximation of its wait, which takes any c."""
    load = busy / workers
    waiting = load ** np.sqrt(2.0 * (workers + 1.0)) / (1.0 - load)
    return float(busy + waiting)


def unlimited_at_first(holding: LateBinding | None) -> LateBinding | None:
    """The same with slots that never lack, as long as nothing is known of the servers."""
    return None if holding is None else replace(holding, slots=np.full_like(holding.slots, ENOUGH))


def with_slots(holding: LateBinding, capacity: Capacity, balancers: int = 1) -> LateBinding:
    """The same with slots for the lower end of the workers that were learned.

    Two slots per worker are enough for twice as many workers, and in overload more of them cost goodput. They never
    lack where the interval is not narrow, and are never fewer than what the server has shown that it can do, and one.
    """
    workers = np.where(capacity.narrow, capacity.low, np.inf)
    slots = slots_for(workers, holding.numbers.slots_per_worker, balancers)
    shown = np.ceil(capacity.shown / balancers).astype(np.int64) + 1
    return replace(holding, slots=np.maximum(slots, shown))
