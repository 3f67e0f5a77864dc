"""A small queue model that obeys the Testbed protocol, for tests of what stands above a testbed."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from actuators.contract import histogram
from actuators.contract.admission import Admission
from actuators.contract.control import BalancingMethod, Control, Weights
from actuators.contract.script import Behaviour, RateStep, Scenario, Script, ServerProfile, Stream
from actuators.contract.testbed import Applied
from actuators.contract.topology import Topology, social_network
from actuators.contract.window import DEFAULT_BOUNDS_MS, Fault, LoadWindow, Window
from actuators.errors import ActuationError

SERVICE_S = (0.018, 0.0044, 0.0033)


@dataclass(frozen=True)
class SteadyScenario:
    """Poisson arrivals of three types on three servers of given speeds."""

    name: str = "steady"
    rate_rps: float = 300.0
    speeds: tuple[float, ...] = (1.6, 1.0, 0.4)
    behaviours: tuple[Behaviour, ...] = ()
    duration_s: float = 8.0

    def script(self, topology: Topology, seed: int) -> Script:
        shares = (0.1, 0.6, 0.3)
        streams = tuple(
            Stream(name, (RateStep(0.0, self.rate_rps * share),))
            for name, share in zip(topology.request_types, shares, strict=True)
        )
        servers = tuple(ServerProfile((speed,) * 3, workers=2) for speed in self.speeds)
        return Script(self.name, seed, self.duration_s, streams, servers, SERVICE_S, behaviours=self.behaviours)


@dataclass
class _Server:
    free_s: list[float]
    finishing_s: list[float] = field(default_factory=list)

    def active(self, now_s: float) -> int:
        while self.finishing_s and self.finishing_s[0] <= now_s:
            heapq.heappop(self.finishing_s)
        return len(self.finishing_s)

    def serve(self, now_s: float, service_s: float) -> float:
        finish = max(heapq.heappop(self.free_s), now_s) + service_s
        heapq.heappush(self.free_s, finish)
        heapq.heappush(self.finishing_s, finish)
        return finish


class QueueTestbed:
    """FIFO worker pools behind weighted random or least-connections routing.

    Args:
        slower: factor on all service times per method, for planted differences.
        faults: fault of the first window after the n-th reset (from 0).
        lost: per reset, how many requests NGINX does not count.
        refused: numbers of the `apply` calls (from 0) that raise ActuationError.
    """

    def __init__(
        self,
        *,
        slower: dict[str, float] | None = None,
        faults: dict[int, Fault] | None = None,
        lost: dict[int, int] | None = None,
        failing_type: int | None = None,
        refused: Iterable[int] = (),
    ) -> None:
        self.topology = social_network()
        self.calls: list[str] = []
        self._slower, self._faults, self._lost = slower or {}, faults or {}, lost or {}
        self._failing_type, self._refused = failing_type, set(refused)
        self._method: BalancingMethod = "round_robin"
        self._resets = self._applies = 0

    def set_method(self, method: BalancingMethod) -> None:
        self.calls.append(f"method {method}")
        self._method = method

    def reset(self, scenario: Scenario, seed: int) -> None:
        self.calls.append(f"reset {seed}")
        self._script = scenario.script(self.topology, seed)
        rng = np.random.default_rng(seed)
        arrivals = []
        for group, stream in enumerate(self._script.streams):
            count = rng.poisson(stream.steps[0].rate_rps * self._script.duration_s)
            times, sizes = rng.uniform(0, self._script.duration_s, count), rng.exponential(size=count)
            end_s = next((step.start_s for step in stream.steps if step.rate_rps == 0), np.inf)
            arrivals += [(float(t), group, float(z)) for t, z in zip(times, sizes, strict=True) if t < end_s]
        self._arrivals, self._next = sorted(arrivals), 0
        self._routing = random.Random(f"{seed} {self._resets}")  # ties fall anew each time
        self._servers = [_Server([0.0] * profile.workers) for profile in self._script.servers]
        self._pending: list[tuple[float, int, int, float]] = []
        self._weights = Weights.equal(self.topology)
        self._now_s, self._first = 0.0, True
        self._resets += 1

    def apply(self, control: Control) -> Applied:
        assert isinstance(control, Weights)
        self._applies += 1
        if self._applies - 1 in self._refused:
            raise ActuationError("nginx -t said no")
        self.calls.append(f"apply {control.values[0].tolist()}")
        changed, self._weights = control != self._weights, control
        return Applied(changed, 0.0)

    def admit(self, admission: Admission | None) -> None:
        self.calls.append("admit")

    def advance(self, interval_s: float) -> Window:
        return self._window(self._now_s + interval_s, arriving=True)

    def drain(self, timeout_s: float = 10.0) -> Window:
        self.calls.append("drain")
        last = max((finish for finish, *_ in self._pending), default=self._now_s)
        return self._window(max(last, self._now_s) + 1e-3, arriving=False)

    def close(self) -> None:
        """Nothing to free."""

    def __enter__(self) -> QueueTestbed:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _window(self, end_s: float, *, arriving: bool) -> Window:
        sent = np.zeros(3, dtype=np.int64)
        while arriving and self._next < len(self._arrivals) and self._arrivals[self._next][0] < end_s:
            at_s, group, size = self._arrivals[self._next]
            server = self._route(group, at_s)
            speed = self._script.servers[server].speeds[group]
            service_s = SERVICE_S[group] * size / speed * self._slower.get(self._method, 1.0)
            heapq.heappush(self._pending, (self._servers[server].serve(at_s, service_s), group, server, at_s))
            sent[group] += 1
            self._next += 1
        done = []
        while self._pending and self._pending[0][0] <= end_s:
            done.append(heapq.heappop(self._pending))
        start_s, self._now_s = self._now_s, end_s
        return self._counted(start_s, end_s, sent, done)

    def _route(self, group: int, at_s: float) -> int:
        weights = self._weights.values[group].tolist()
        best: Sequence[int] = range(len(weights))
        if self._method == "least_conn":
            load = [server.active(at_s) / weight for server, weight in zip(self._servers, weights, strict=True)]
            best = [server for server in best if load[server] <= min(load) + 1e-9]
        if len(best) == 1:
            return best[0]
        return self._routing.choices(best, [weights[server] for server in best])[0]

    def _counted(self, start_s: float, end_s: float, sent: np.ndarray, done: list[tuple]) -> Window:
        shape = self.topology.shape
        requests, response_ms = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        responses = np.zeros((*shape, 5), dtype=np.int64)
        latency, latency_sum = np.zeros((3, histogram.SIZE), dtype=np.int64), np.zeros(3)
        failed = np.zeros(3, dtype=np.int64)
        for finish, group, server, at_s in done:
            requests[group, server] += 1
            response_ms[group, server] += round((finish - at_s) * 1e3)
            if group == self._failing_type:
                failed[group] += 1
                responses[group, server, 4] += 1
                continue
            responses[group, server, 1] += 1
            latency[group, histogram.bucket_of(round((finish - at_s) * 1e6))] += 1
            latency_sum[group] += finish - at_s
        answered = requests.sum(axis=1)
        if self._first:
            row = int(np.argmax(requests.sum(axis=1)))
            requests[row, int(np.argmax(requests[row]))] -= self._lost.get(self._resets - 1, 0)
        fault = self._faults.get(self._resets - 1) if self._first else None
        self._first = False
        client = LoadWindow(
            start_s, end_s, sent, sent, answered, {"status_5xx": failed}, np.zeros(3, dtype=np.int64),
            np.zeros(3, dtype=np.int64), latency, latency_sum,
        )  # fmt: skip
        empty = np.zeros(shape, dtype=np.int64)
        return Window(
            self.topology, start_s, end_s, requests, empty, empty, responses, response_ms, DEFAULT_BOUNDS_MS,
            np.zeros((*shape, len(DEFAULT_BOUNDS_MS) + 1), dtype=np.int64), self._weights.values, self._weights.down,
            faults=(fault,) if fault else (), client=client,
        )  # fmt: skip


@dataclass
class InverseLatency:
    """Weights by 1/mean response time of the last window: adaptive, keeps what it last had."""

    name: str = "inverse_latency"
    method: BalancingMethod = "least_conn"
    control: Weights | None = None

    def begin(self, topology: Topology) -> Control:
        return self.control or Weights.equal(topology)

    def decide(self, window: Window) -> Control | None:
        mean_s = np.nan_to_num(window.mean_response_s(), nan=0.005)
        self.control = Weights.from_shares(window.topology, 1 / np.maximum(mean_s, 1e-3))
        return self.control


@dataclass
class Fixed:
    """The same weights for ever, in every group; equal by default."""

    name: str
    method: BalancingMethod
    weights: tuple[int, ...] = (1, 1, 1)
    stateless: bool = True

    def begin(self, topology: Topology) -> Control:
        return Weights(topology, np.tile(self.weights, (topology.shape[0], 1)))

    def decide(self, window: Window) -> Control | None:
        return None
