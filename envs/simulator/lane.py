"""Memory of one simulated testbed: flat record arrays for the numba event loop (`envs.simulator.engine`).

Built from a Script; time passes in the engine.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actuators.contract.script import Script
from actuators.contract.topology import Topology
from actuators.errors import ConfigError, closest
from envs.simulator.draws import ARRIVAL_CODES, SERVICE_CODES, lognormal_sigma, lognormal_table, stream_keys

IN_FLIGHT_BINS, IN_FLIGHT_SUMS = 25, 6
"""Rows and columns of `Tally.by_in_flight`, see `actuators.contract.window.DelayWindow`."""

MAX_SERVERS = 62
"""Servers that a request has tried are kept as bits of one integer, as NGINX does for small groups."""

NON_IDEMPOTENT = ("POST", "LOCK", "PATCH")
"""Methods that NGINX does not repeat once they were sent (`proxy_next_upstream` without `non_idempotent`)."""

IDLE, IDLE_S, WAIT_S, TAU_S = range(4)
"""Columns of `Tally.delay`: arrivals that found an idle worker, their response seconds, and for all
answered requests the predicted wait and the service time in force when they were sent on."""


def _record(integers: str, floats: str = "", keys: str = "") -> np.dtype[np.void]:
    fields = [(name, "i8") for name in integers.split()]
    return np.dtype(fields + [(n, "f8") for n in floats.split()] + [(n, "u8") for n in keys.split()])


STREAM = _record("drawn step last_step", "next_s", "gap_key work_key coin_key")
STEP = _record("distribution", "start_s rate_rps")
SERVER = _record(
    "workers limit busy waiting head refused hanging", "speed rate clock_v clock_s next_s error_ratio error_service_s"
)
REQUEST = _record(
    "number group context server tried status generation idle in_flight",
    "arrival_s attempt_s unit wait_s tau_s ahead_s",
)
PEER = _record("weight effective current conns fails accessed checked down")
HEALTH = _record("out_until", "errors error_s")
BEHAVIOUR = _record("server refused hanging", "at_s speed error_ratio error_service_s")
GROUP = _record("servers post")
STATE = _record(
    "free behaviour generation picks resend central central_head on_way way_head",
    "now_s duration_s next_come_s",
    "pick_key",
)
RULES = _record(
    "method sharing contexts max_fails fail_timeout_s retry_500 retry_post learned work_kind balancers by_in_flight",
    "read_timeout_s overhead_s beta error_cost_s error_gain error_memory_s sigma",
)


class Tally(NamedTuple):
    """What one window counts; views into the batch's arrays (`envs.simulator.testbed.WindowBatch` explains them)."""

    requests: Any
    responses: Any
    response_ms_sum: Any
    latency_histogram: Any
    delay: Any
    by_in_flight: Any
    planned: Any
    answered: Any
    failed: Any
    latency_counts: Any
    latency_s_sum: Any


class Lane(NamedTuple):
    """Everything that the event loop of one environment reads and writes.

    Shapes: `peers` [contexts, groups, servers], `health` [contexts, servers], `service_s` (mean service
    time at behaviour speed 1) and `tau_s` [groups, servers]; per server a heap of requests in service
    (`heap_v`: virtual finish times, `heap_request`) and a ring of waiting ones (`queue`).
    """

    state: Any
    rules: Any
    groups: Any
    streams: Any
    steps: Any
    behaviours: Any
    servers: Any
    service_s: Any
    heap_v: Any
    heap_request: Any
    queue: Any
    resend: Any
    held: Any
    central: Any
    on_way: Any
    requests: Any
    free: Any
    peers: Any
    health: Any
    tau_s: Any
    believed_workers: Any
    work_table: Any
    bucket_of_ms: Any
    tally: Tally


def build_lane(
    topology: Topology, script: Script, tally: Tally, bucket_of_ms: NDArray[np.int64], rules: dict[str, Any]
) -> Lane:
    """A lane at time 0 with equal weights. Raises ConfigError when the script does not fit the topology."""
    _check(topology, script)
    groups, servers = topology.shape
    keys = stream_keys(script.seed, 3 * groups + 1)
    streams, steps = _streams(topology, script, keys)
    heap, queue = _sizes(script, bool(rules["sharing"]))
    slots = servers * (heap + queue) + 1
    state = np.zeros(1, STATE)
    state["free"], state["duration_s"], state["pick_key"] = slots, script.duration_s, keys[-1]
    state["next_come_s"] = np.inf
    table, rule = _rules(script, rules)
    contexts = int(rule["contexts"][0])
    return Lane(
        state=state, rules=rule, groups=_groups(topology), streams=streams, steps=steps,
        behaviours=_behaviours(script), servers=_servers(script),
        service_s=np.array([[m / p.speeds[g] for p in script.servers] for g, m in enumerate(script.mean_service_s)]),
        heap_v=np.zeros((servers, heap)), heap_request=np.zeros((servers, heap), np.int64),
        queue=np.zeros((servers, queue), np.int64), resend=np.zeros(slots, np.int64), held=np.zeros(slots, np.int64),
        central=np.zeros(slots, np.int64), on_way=np.zeros(slots, np.int64), requests=np.zeros(slots, REQUEST),
        free=np.arange(slots)[::-1].copy(),
        peers=equal_peers(topology, contexts), health=np.zeros((contexts, servers), HEALTH),
        tau_s=np.ones((groups, servers)), believed_workers=np.array([float(p.workers) for p in script.servers]),
        work_table=table, bucket_of_ms=bucket_of_ms, tally=tally,
    )  # fmt: skip


def equal_peers(topology: Topology, contexts: int) -> NDArray[np.void]:
    """NGINX's peers just after a start, all weights 1, ``[contexts, groups, servers]``."""
    peers = np.zeros((contexts, *topology.shape), PEER)
    peers["weight"] = peers["effective"] = topology.mask
    peers["down"] = ~topology.mask
    return peers


def _check(topology: Topology, script: Script) -> None:
    where = f"script '{script.name}'"
    groups, servers = topology.shape
    if servers > MAX_SERVERS:
        raise ConfigError(f"{servers} servers", where=where, remedy=f"the simulator takes at most {MAX_SERVERS}")
    if len(script.servers) != servers or any(len(p.speeds) != groups for p in script.servers):
        raise ConfigError("server profiles do not fit the topology", where=where, remedy=f"expected {topology.shape}")
    if len(script.mean_service_s) != groups:
        raise ConfigError(f"{len(script.mean_service_s)} mean service times", where=where, remedy=f"give {groups}")
    for stream in script.streams:
        if stream.request_type not in topology.request_types:
            remedy = closest(stream.request_type, topology.request_types)
            raise ConfigError(f"no group serves '{stream.request_type}'", where=where, remedy=remedy)
        if not stream.steps or stream.steps[0].start_s != 0:
            raise ConfigError("a stream does not begin at 0 s", where=where, remedy="add a first rate step at 0")
    speeds = [b.speed for b in script.behaviours] + [s for p in script.servers for s in p.speeds]
    if min(speeds, default=1.0) <= 0:
        raise ConfigError("a speed is not positive", where=where, remedy="use `hang` for a server that stands still")


def _sizes(script: Script, sharing: bool) -> tuple[int, int]:
    workers = max(p.workers for p in script.servers)
    limit = max([1, *(p.queue_limit for p in script.servers)])
    return (workers + limit, 1) if sharing else (workers, limit)


def _groups(topology: Topology) -> NDArray[np.void]:
    groups = np.zeros(len(topology.groups), GROUP)
    groups["servers"] = topology.mask.sum(axis=1)
    groups["post"] = [group.method.upper() in NON_IDEMPOTENT for group in topology.groups]
    return groups


def _streams(topology: Topology, script: Script, keys: NDArray[np.uint64]) -> tuple[NDArray[np.void], NDArray[np.void]]:
    streams = np.zeros(len(topology.groups), STREAM)
    rows: list[tuple[int, float, float]] = []
    by_type = {stream.request_type: stream.steps for stream in script.streams}
    for g, request_type in enumerate(topology.request_types):
        streams["step"][g] = len(rows)
        steps = by_type.get(request_type, ())
        rows += [(ARRIVAL_CODES[s.distribution], s.start_s, s.rate_rps) for s in steps] or [(0, 0.0, 0.0)]
        streams["last_step"][g] = len(rows) - 1
        for purpose, name in enumerate(("gap_key", "work_key", "coin_key")):
            streams[name][g] = keys[3 * g + purpose]
    return streams, np.array(rows, STEP)


def _servers(script: Script) -> NDArray[np.void]:
    servers = np.zeros(len(script.servers), SERVER)
    servers["speed"] = servers["rate"] = 1.0
    servers["next_s"] = np.inf
    servers["workers"] = [p.workers for p in script.servers]
    servers["limit"] = [p.queue_limit for p in script.servers]
    return servers


def _behaviours(script: Script) -> NDArray[np.void]:
    rows = [
        (b.server, b.refused, b.hang, b.at_s, b.speed, b.error_ratio, b.error_service_s)
        for b in sorted(script.behaviours, key=lambda b: b.at_s)
    ]
    return np.array([*rows, (0, 0, 0, np.inf, 1.0, 0.0, 0.0)], BEHAVIOUR)


def _rules(script: Script, rules: dict[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.void]]:
    record = np.zeros(1, RULES)
    for name, value in rules.items():
        record[name] = value
    record["overhead_s"] += script.overhead_s
    shared = rules["balancers"]  # workers of one NGINX that share their counters
    record["contexts"] = max(script.load_balancers // shared, 1)
    record["balancers"] = record["contexts"]
    record["work_kind"] = SERVICE_CODES[script.service_distribution]
    record["sigma"] = lognormal_sigma(script.service_cv)
    return lognormal_table(script.service_cv), record
