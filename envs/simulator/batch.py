"""A batch of simulated testbeds that step together, in one or several threads, and emit what vts would show."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from actuators.contract.admission import NEVER, Admission
from actuators.contract.arrays import FloatArray, IntArray
from actuators.contract.control import MAX_WEIGHT, BalancingMethod
from actuators.contract.late_binding import UNLIMITED, LateBinding
from actuators.contract.request_cost import RequestKind
from actuators.contract.script import RateStep, Script, ServerProfile, Stream
from actuators.contract.topology import Topology
from actuators.contract.window import DEFAULT_BOUNDS_MS
from actuators.errors import ConfigError, TestbedError, closest
from actuators.options import Options
from envs.simulator import arrivals, engine
from envs.simulator.balancers import METHOD_CODES, forget_all, reset_round_robin
from envs.simulator.binding import ORDER_CODES
from envs.simulator.compiling import compiled
from envs.simulator.counting import bucket_table
from envs.simulator.lane import COST_SUMS, COUNT, GATE, STATE, Lane, Tally, build_lane, forget_marks, grown, new_tally
from envs.simulator.limits import GateTicks, counts_since
from envs.simulator.rivals import RIVAL_CODES
from envs.simulator.window_batch import AttemptCounts, WindowBatch

RivalMethod = Literal[
    "least_time",
    "least_time_shared",
    "peak_ewma",
    "least_request",
    "c3",
    "join_idle_queue",
    "prequal",
    "shared_least_conn",
    "random_choose",
]
"""Rules of other load balancers and of papers (`envs.simulator.rivals`), simulated only."""
OracleMethod = Literal["shortest_delay", "join_shortest", "central_queue"]
"""Reference rules that no NGINX can have: they see every context's requests and the true speeds."""


_DRAIN_STEP_S = 0.01


class SimulationOptions(Options):
    """How a simulated NGINX and its servers differ from the defaults."""

    discipline: Literal["fifo", "processor_sharing"] = "fifo"
    """How a server's workers serve: one request each and a line, or all requests at once."""
    max_fails: int = Field(default=1, ge=0)
    """Failed attempts after which NGINX passes over a server; 0 for never."""
    fail_timeout_s: int = Field(default=10, ge=0)
    """Seconds for which it is passed over."""
    read_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds that NGINX waits for a server that hangs."""
    overhead_ms: float = Field(default=0.0, ge=0)
    """Milliseconds that every request takes on its way to a worker: network, proxy, the server's own code. A script's
    own (`overhead_s`, of a calibrated scenario) comes on top."""
    retry_http_500: bool = False
    """`proxy_next_upstream http_500`: a 500 is a failed attempt, and another server is tried."""
    retry_post: bool = False
    """`non_idempotent`: also POSTs that were already sent are tried elsewhere."""
    workers_sharing_memory: int = Field(default=1, ge=1)
    """How many of the script's contexts (`load_balancers`) share their counters: the workers of one
    NGINX do with `zone` and with `expected_delay`."""
    actuation: Literal["memory", "reload"] = "memory"
    """How weights are changed: a reload also forgets connections, failures and positions."""
    actuation_delay_s: float = Field(default=0.0, ge=0)
    """Seconds from `set_weights` until the weights are in force; a reload takes about 0.11."""
    beta: float = 0.7
    """`expected_delay`: weight of the request's own service time beside the predicted wait."""
    error_cost_s: float = 1.0
    """`expected_delay`: seconds that a certain error costs."""
    error_gain: float = 0.1
    """`expected_delay`: share of the error score that one answer replaces."""
    error_memory_s: float = Field(default=5.0, gt=0)
    """`expected_delay`: time constant after which the error score is forgotten."""
    probe_ms: float = Field(default=0.5, ge=0)
    """`prequal`: milliseconds from a probe's sending to its answer."""
    count_by_in_flight: bool = False
    """`expected_delay`: windows also tell response times by requests in flight, from which workers are learned."""


class SimulatedBatch:
    """`size` independent simulated testbeds of one topology.

    Args:
        method: balancing method of all environments, or an oracle for reference.
        bounds_ms: histogram bounds of the windows, ascending.
        threads: threads that advance environments; the results do not depend on it.

    Raises:
        ConfigError: unknown method or bad bounds.
    """

    def __init__(
        self,
        topology: Topology,
        size: int,
        method: BalancingMethod | OracleMethod | RivalMethod = "least_conn",
        bounds_ms: tuple[int, ...] = DEFAULT_BOUNDS_MS,
        options: SimulationOptions | None = None,
        threads: int = 1,
    ) -> None:
        if size < 1 or list(bounds_ms) != sorted(set(bounds_ms)) or not bounds_ms or bounds_ms[0] < 0:
            raise ConfigError(
                f"size {size}, bounds {bounds_ms}", where="simulated batch", remedy="size >= 1, bounds ascend"
            )
        self.topology, self.size, self.bounds_ms = topology, size, tuple(bounds_ms)
        self.options, self._threads = options or SimulationOptions(), threads
        self._method = _method_code(method)
        self._bucket_table = bucket_table(self.bounds_ms)
        self._tally = new_tally(topology, size, len(bounds_ms))
        self._lanes: list[Lane | None] = [None] * size
        self._kinds: list[tuple[tuple[RequestKind, ...], ...]] = [()] * size
        self._start_s = np.zeros(size)
        self._pending: list[tuple[float, IntArray, NDArray[np.bool_]]] = []
        self._weight = np.broadcast_to(topology.mask.astype(np.int64), (size, *topology.shape)).copy()
        self._down = np.zeros((size, *topology.shape), bool)
        self._states = np.zeros(size, STATE)
        self._gates, self._counts = (np.zeros((size, len(topology.groups)), kind) for kind in (GATE, COUNT))
        self._counted = self._counts.copy()
        self._ticks: GateTicks | None = None

    def reset(self, index: int, script: Script, admission: Admission | None = None) -> None:
        """One environment starts this script at time 0 with equal weights; all randomness is `script.seed`'s.

        Args:
            admission: this environment's from now on, of the rule that `admit` has set for all; as before when None.

        Raises ConfigError when the script does not fit the topology, or the admission the others'.
        """
        if admission is not None:
            if self._ticks is None:
                raise ConfigError("no admission is in force", where="simulated batch", remedy="call admit first")
            self._ticks.set(index, admission)
        self._make_room(max(map(len, script.kinds), default=1))
        self._kinds[index] = script.kinds
        tally = Tally(*(array[index] for array in self._tally))
        lane = build_lane(
            self.topology, script, tally, self.bounds_ms, self._bucket_table, self._rules(),
            self._states[index : index + 1], self._gates[index], self._counts[index],
        )  # fmt: skip
        for array in lane.tally:
            array[...] = 0
        arrivals.start(lane)
        self._lanes[index] = lane
        for _, weight, down in ((0.0, self._weight, self._down), *self._pending):
            weight[index], down[index] = self.topology.mask, False
        self._start_s[index] = 0.0
        self._counted[index] = self._counts[index]
        if self._ticks is not None:
            self._ticks.begin(np.arange(self.size) == index, self._start_s)

    def _make_room(self, kinds: int) -> None:
        """For counts of so many kinds of requests."""
        if self._tally.costs.shape[2] < kinds:
            self._tally = self._tally._replace(costs=np.zeros((self.size, len(self.topology.groups), kinds, COST_SUMS)))
            for index, lane in enumerate(self._lanes):
                if lane is not None:
                    counts = lane.tally._replace(costs=self._tally.costs[index])
                    self._lanes[index] = lane._replace(tally=counts)

    def admit(self, admission: Admission | Sequence[Admission] | None) -> None:
        """From now on requests enter by this admission, or by one for each environment; None lets all in.

        Limits are updated at whole multiples of the tick since an environment's reset, whatever the windows. All
        contexts of a script share them. Raises ConfigError when it does not fit the topology, or the others.
        """
        self._ticks = None
        self._gates["rate_rps"] = 0.0
        if admission is not None:
            several = [admission] * self.size if isinstance(admission, Admission) else list(admission)
            if len(several) != self.size:
                what = f"{len(several)} admissions for {self.size} environments"
                raise ConfigError(what, where="simulated batch", remedy="give one for each")
            self._ticks = GateTicks(several, self.topology, self._gates, self._counts, self._states)
            self._ticks.begin(np.ones(self.size, bool), self._start_s)
        else:
            self._gates["limit"], self._gates["idle_s"], self._gates["deadline_s"] = np.inf, 0.0, self._gates["due_s"]

    def set_factors(self, factors: FloatArray) -> None:
        """Factors ``[size, groups]`` on the limits of the admission in force, at once and until it is set again.

        Raises ConfigError without an admission, or for a factor that is not positive.
        """
        if self._ticks is None:
            raise ConfigError("no admission is in force", where="simulated batch", remedy="call admit first")
        self._ticks.set_factors(self._positive(factors, "factors"))

    def set_rates(self, rates_rps: FloatArray, burst_s: float) -> None:
        """Requests enter by token buckets from now on, until an environment's reset: an experiment beside admission.

        Args:
            rates_rps: ``[size, groups]``, tokens per second.
            burst_s: seconds of tokens that a bucket holds; at least one token.

        Raises ConfigError while an admission is in force, or for a rate that is not positive.
        """
        if self._ticks is not None:
            raise ConfigError("an admission is in force", where="simulated batch", remedy="call admit(None) first")
        self._gates["rate_rps"] = self._positive(rates_rps, "rates")
        self._gates["burst"] = np.maximum(rates_rps * burst_s, 1.0)
        self._gates["limit"] = 0.0

    def _positive(self, values: FloatArray, what: str) -> FloatArray:
        wanted = self._gates.shape
        if values.shape != wanted or not (np.isfinite(values) & (values > 0)).all():
            raise ConfigError(f"{what} do not fit", where="simulated batch", remedy=f"positive, {wanted}")
        return values

    def set_weights(self, weights: IntArray, down: NDArray[np.bool_] | None = None) -> None:
        """Integer weights 1…100 ``[size, groups, servers]`` from now on; `down` takes servers out of rotation.

        Connections in flight keep counting; round robin restarts in groups whose weights changed.
        `expected_delay` forgets its service times: it balances by least_conn until new ones are set.
        """
        mask = self.topology.mask
        wanted = np.where(mask, weights, 0).astype(np.int64)
        out = np.zeros_like(wanted, bool) if down is None else np.broadcast_to(down & mask, wanted.shape)
        if wanted.shape != self._weight.shape or (wanted[:, mask] < 1).any() or (wanted > MAX_WEIGHT).any():
            raise ConfigError("weights do not fit", where="simulated batch", remedy=f"1…100, {self._weight.shape}")
        if self.options.actuation_delay_s <= 0:
            self._enforce(wanted, np.array(out))
        else:
            self._pending.append((self.options.actuation_delay_s, wanted, np.array(out)))

    def set_service_times(self, tau_s: FloatArray, workers: FloatArray, down: NDArray[np.bool_] | None = None) -> None:
        """`expected_delay`'s control: tau in s ``[size, groups, servers]``, workers ``[size, servers]``, and which
        servers are out of rotation ``[size, groups, servers]``; as before when None.
        """
        known = tau_s[:, self.topology.mask]
        if not (np.isfinite(known).all() and (known > 0).all() and np.isfinite(workers).all() and workers.min() > 0.2):
            what, remedy = "a service time is not above 0 s or a worker count is not above 0.2", "give larger ones"
            raise ConfigError(what, where="simulated batch", remedy=remedy)
        if down is not None and not np.array_equal(down & self.topology.mask, self._down):
            self._enforce(self._weight, down & self.topology.mask)
        for index, lane in enumerate(self._lanes):
            if lane is None:
                continue
            lane.tau_s[...] = np.where(self.topology.mask, tau_s[index], 1.0)
            lane.believed_workers[...] = workers[index]
            lane.mean_tau_s[...] = np.nanmean(np.where(self.topology.mask, tau_s[index], np.nan), axis=1)
            lane.rules["learned"] = 1

    def hold(self, bindings: Sequence[LateBinding]) -> None:
        """`late_binding`'s slots, order and deadlines from now on, of each environment, until its next reset.

        Raises ConfigError when there is not one for each, or one is of another topology.
        """
        if len(bindings) != self.size or any(each.topology != self.topology for each in bindings):
            raise ConfigError("late bindings do not fit", where="simulated batch", remedy="give one for each")
        for index, binding in enumerate(bindings):
            lane, numbers = self._lane(index), binding.numbers
            lane.room[...], lane.due_s[...] = binding.slots, binding.deadlines_s
            lane.rules["order"] = ORDER_CODES[numbers.order]
            lane.worth[...], lane.never[...] = binding.weights(), binding.importance == NEVER
            for name in ("theta", "look_ahead", "longest_hold_s", "most_held", "waiting_weight", "late_weight"):
                lane.rules[name] = getattr(numbers, name)
            for g, kinds in enumerate(self._kinds[index]):
                costs = [binding.costs.of(self.topology.groups[g].name, kind.seen) for kind in kinds]
                lane.kind_cost[g, : len(costs)] = costs
            lane.rules["refuse_factor"] = np.inf if numbers.refuse_factor is None else numbers.refuse_factor

    def in_line(self) -> tuple[IntArray, FloatArray]:
        """Requests that are held now, and the age of the oldest of them in s, 0 without any; ``[size, groups]``."""
        groups = len(self.topology.groups)
        held, oldest_s = np.zeros((self.size, groups), np.int64), np.zeros((self.size, groups))
        for index in range(self.size):
            lane = self._lane(index)
            waiting = lane.requests[lane.line[: lane.state["held"][0]]]
            held[index] = np.bincount(waiting["group"], minlength=groups)
            np.maximum.at(oldest_s[index], waiting["group"], self._start_s[index] - waiting["arrival_s"])
        return held, oldest_s

    def limit_connections(self, most: IntArray) -> None:
        """`max_conns` of `shared_least_conn`, ``[size, servers]``, >= 1, of every balancer, until the next reset.

        Raises ConfigError for a wrong shape or value.
        """
        if most.shape != (self.size, self.topology.shape[1]) or (most < 1).any():
            raise ConfigError("max_conns do not fit", where="simulated batch", remedy="give 1 or more per server")
        for index in range(self.size):
            self._lane(index).room[...] = most[index]

    def believed_workers(self) -> FloatArray:
        """``[size, servers]``, as `set_service_times` has set them; the true ones before."""
        return np.stack([self._lane(index).believed_workers for index in range(self.size)])

    def service_times(self) -> FloatArray:
        """``[size, groups, servers]`` in s, as `set_service_times` has set them."""
        return np.stack([self._lane(index).tau_s for index in range(self.size)])

    def contexts_of(self, script: Script) -> int:
        """Load balancers of a script that share no counts here."""
        return max(script.load_balancers // self.options.workers_sharing_memory, 1)

    def set_method(self, method: BalancingMethod | OracleMethod | RivalMethod) -> None:
        """All environments balance by `method` from now on, with equal weights and nothing learned."""
        self._method = _method_code(method)
        for lane in self._lanes:
            if lane is not None:
                lane.rules["method"], lane.rules["learned"] = self._method, 0
                forget_marks(lane)
        self.set_weights(np.broadcast_to(self.topology.mask.astype(np.int64), self._weight.shape))

    def advance(self, interval_s: float) -> WindowBatch:
        """Lets `interval_s` simulated seconds pass in every environment.

        Raises TestbedError before every environment has been reset.
        """
        if not interval_s > 0:
            raise ConfigError(f"interval of {interval_s} s", where="simulated batch", remedy="it must be positive")
        start_s = self._start_s.copy()
        while self._pending and self._pending[0][0] < interval_s:
            delay_s, weight, down = self._pending.pop(0)
            self._play(start_s + delay_s)
            self._enforce(weight, down)
        self._pending = [(delay_s - interval_s, weight, down) for delay_s, weight, down in self._pending]
        self._play(start_s + interval_s)
        return self._window(start_s)

    def drain(self, timeout_s: float) -> WindowBatch:
        """Ends all arrivals and advances until nothing is in flight, at most `timeout_s` simulated seconds."""
        start_s = self._start_s.copy()
        for index in range(self.size):
            lane = self._lane(index)
            arrivals.stop(lane)
            while lane.state["free"][0] < len(lane.free) and self._start_s[index] < start_s[index] + timeout_s:
                self._start_s[index] += _DRAIN_STEP_S
                self._advance(index, self._start_s[index])
        return self._window(start_s)

    def _play(self, until_s: FloatArray) -> None:
        ticks, reached_s = self._ticks, until_s
        while True:
            if ticks is not None:
                reached_s = np.minimum(ticks.next_s, until_s)
            self._play_all(reached_s)
            if ticks is not None:
                ticks.tick(reached_s >= ticks.next_s)
            if (reached_s >= until_s).all():
                break
        self._start_s = until_s

    def _play_all(self, until_s: FloatArray) -> None:
        parallel_for(lambda index: self._advance(index, until_s[index]), self.size, self._threads)

    def _advance(self, index: int, until_s: float) -> None:
        lane = self._lane(index)
        while (ended := engine.advance(lane, until_s)) != engine.DONE:
            if ended == engine.FULL:
                lane = self._lanes[index] = grown(lane)

    def _enforce(self, weight: IntArray, down: NDArray[np.bool_]) -> None:
        changed = ((weight != self._weight) | (down != self._down)).any(axis=(1, 2))
        for index, lane in enumerate(self._lanes):
            if lane is not None and changed[index]:
                _set_peers(lane.peers, weight[index], down[index] | ~self.topology.mask)
                if self.options.actuation == "reload":
                    _reload(lane.peers)
                    forget_marks(lane)
                    lane.state["generation"] += 1
            if lane is not None and self._by_service_times:
                lane.rules["learned"] = 0
        self._weight, self._down = weight, down

    def _window(self, start_s: FloatArray) -> WindowBatch:
        counts = Tally(*(array.copy() for array in self._tally))
        for array in self._tally:
            array[...] = 0
        attempts = counts_since(self._counts, self._counted)
        self._counted[...] = self._counts
        active = np.stack([self._lane(index).peers["conns"].sum(axis=0) for index in range(self.size)])
        duration_s = np.array([self._lane(index).state["duration_s"][0] for index in range(self.size)])
        return WindowBatch(
            topology=self.topology, bounds_ms=self.bounds_ms, start_s=start_s, end_s=self._start_s.copy(),
            weight=self._weight.copy(), down=self._down.copy(), active=active,
            ended=self._start_s > duration_s + 1e-9, tau_s=self._tau_in_force(),
            balances_by_delay=self._by_service_times,
            attempts=AttemptCounts(
                **attempts, limits=self._gates["limit"].copy(), peak=self._peaks(), limited=self._ticks is not None,
                timed=np.isfinite(self._gates["due_s"]).all(axis=1),
            ),
            **counts._asdict(),
        )  # fmt: skip

    @property
    def _by_service_times(self) -> bool:
        return self._method in (METHOD_CODES["expected_delay"], METHOD_CODES["late_binding"])

    def _peaks(self) -> IntArray:
        if self._ticks is not None:
            return self._ticks.take_peaks()
        found = self._states["peak"].copy()
        self._states["peak"] = self._states["inside"]
        return found

    def _tau_in_force(self) -> FloatArray:
        lanes = [self._lane(index) for index in range(self.size)]
        return np.stack([lane.tau_s * lane.rules["learned"][0] for lane in lanes])

    def _lane(self, index: int) -> Lane:
        lane = self._lanes[index]
        if lane is None:
            raise TestbedError(f"environment {index} has no script", where="simulated batch", remedy="call reset first")
        return lane

    def _rules(self) -> dict[str, Any]:
        o = self.options
        return {
            "method": self._method, "sharing": o.discipline == "processor_sharing", "max_fails": o.max_fails,
            "fail_timeout_s": o.fail_timeout_s, "read_timeout_s": o.read_timeout_s,
            "overhead_s": o.overhead_ms / 1e3, "retry_500": o.retry_http_500,
            "retry_post": o.retry_post, "balancers": o.workers_sharing_memory, "beta": o.beta,
            "error_cost_s": o.error_cost_s, "error_gain": o.error_gain, "error_memory_s": o.error_memory_s,
            "by_in_flight": o.count_by_in_flight, "look_ahead": 1, "theta": 1.0, "longest_hold_s": np.inf,
            "refuse_factor": np.inf, "most_held": UNLIMITED, "probe_s": o.probe_ms / 1e3,
            "waiting_weight": 0.0, "late_weight": 1.0,
        }  # fmt: skip


def warm_up(topology: Topology) -> None:
    """Compiles the simulator, or loads it from numba's cache, so that many processes need not do it at once."""
    types = topology.request_types
    mean_s = (1e-3,) * len(types)
    streams = tuple(Stream(request_type, (RateStep(0.0, 100.0),)) for request_type in types)
    profiles = (ServerProfile((1.0,) * len(types)),) * len(topology.servers)
    batch = SimulatedBatch(topology, 1, "least_conn", options=SimulationOptions(actuation="reload"))
    batch.reset(0, Script("warm-up", 0, 1.0, streams, profiles, mean_s))
    batch.set_weights(np.full((1, *topology.shape), 2))
    batch.advance(0.1)
    batch.drain(0.1)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "parallel-for")


def parallel_for(play: Callable[[int], None], count: int, threads: int) -> None:
    """Calls `play` once with each of 0 … `count` - 1, in the calling thread and `threads` - 1 others.

    Pays off when `play` releases the interpreter's lock, as the compiled simulator does. Raises what `play` raises.
    """
    waiting = iter(range(count))

    def work() -> None:
        # A free thread takes the next one: some environments have much more traffic than others.
        for index in waiting:
            play(index)

    helpers = [_pool().submit(work) for _ in range(min(threads, count) - 1)]
    work()
    for helper in helpers:
        helper.result()


def _method_code(method: str) -> int:
    codes = METHOD_CODES | RIVAL_CODES
    if method not in codes:
        raise ConfigError(f"unknown balancing method '{method}'", remedy=closest(method, codes))
    return codes[method]


@compiled
def _set_peers(peers: Any, weights: Any, down: Any) -> None:
    contexts, groups, servers = peers.shape
    for context in range(contexts):
        for group in range(groups):
            changed = False
            for server in range(servers):
                peer = peers[context, group, server]
                changed |= peer.weight != weights[group, server] or (peer.down != 0) != down[group, server]
                peer.weight, peer.down = weights[group, server], down[group, server]
            if changed:
                reset_round_robin(peers[context, group])


@compiled
def _reload(peers: Any) -> None:
    for context in range(len(peers)):
        for group in range(peers.shape[1]):
            forget_all(peers[context, group])
