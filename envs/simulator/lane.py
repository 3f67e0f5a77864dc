"""Memory of one simulated testbed: flat record arrays for the numba event loop (`envs.simulator.engine`).

Built from a Script; time passes in the engine.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actuators.contract import histogram
from actuators.contract.late_binding import UNLIMITED
from actuators.contract.request_cost import kind_tables
from actuators.contract.script import Script
from actuators.contract.script_check import check_script
from actuators.contract.topology import Topology
from actuators.errors import ConfigError, TestbedError
from envs.simulator import prequal
from envs.simulator.clients import NO_SLOT
from envs.simulator.draws import ARRIVAL_CODES, SERVICE_CODES, gap_shape, lognormal_sigma, lognormal_table, stream_keys

COST_SUMS = 3
"""Columns of `Tally.costs`: requests that found an idle worker, the sum of their response times over the service time
believed, and of the squares of these."""
IN_FLIGHT_BINS, IN_FLIGHT_SUMS = 25, 6
"""Rows and columns of `Tally.by_in_flight`, see `actuators.contract.window.DelayWindow`."""

MAX_CELLS = 1_000_000
"""Contexts × groups × servers, and servers × places in line, that one testbed may have: about a gigabyte."""
LEAST_AT_FIRST, MOST_AT_FIRST, MAX_SLOTS = 64, 4096, 1 << 22
"""Requests in flight for which there is memory at first, at least and at most, and after all growth."""

NON_IDEMPOTENT = ("POST", "LOCK", "PATCH")
"""Methods that NGINX does not repeat once they were sent (`proxy_next_upstream` without `non_idempotent`)."""

IDLE, IDLE_S, WAIT_S, TAU_S = range(4)
"""Columns of `Tally.delay`: arrivals that found an idle worker, their response seconds, and for all
answered requests the predicted wait and the service time in force when they were sent on."""


def _record(integers: str, floats: str = "", keys: str = "") -> np.dtype[np.void]:
    fields = [(name, "i8") for name in integers.split()]
    return np.dtype(fields + [(n, "f8") for n in floats.split()] + [(n, "u8") for n in keys.split()])


STREAM = _record("drawn step last_step", "next_s", "gap_key work_key coin_key stage_key client_key kind_key")
STEP = _record("distribution", "start_s rate_rps shape scale")
SERVER = _record(
    "workers limit busy held waiting head refused hanging blocking epoch",
    "speed rate clock_v clock_s next_s error_ratio error_service_s",
)
REQUEST = _record(
    "number group context server status generation idle in_flight noted kind",
    "arrival_s attempt_s unit wait_s tau_s ahead_s cost",
)
TRAIL = _record("stage missed holding epoch behind before after abandoned", "first_s")
"""Of a request in a lane with stages or clients: its next stage and whether it holds a worker; who is behind it in a
stage's line; its neighbours among the attempts of its group that clients wait for; when its first attempt came."""
STAGE = _record("head tail", "contention hit most fill decay_s seen_s")
GATE = _record(
    "head tail retries users offered_before refused_before",
    "limit percent most_refused offered refused deadline_s idle_s due_s patience_s retry_failed retry_refused "
    "backoff_s think_s rate_rps burst tokens filled_s",
)
"""Of a group: what is in force at the gate, and how its clients wait and repeat. With a rate every request is over its
limit, which is 0, and enters when there is a token."""
COUNTS = (
    "offered", "refused", "spared", "finished", "late", "failed", "quick", "gave_up", "inside", "good",
    "good_first", "slow", "lost_refused", "lost_gave_up", "lost_failed",
)  # fmt: skip
"""What is counted of a group since the reset, first attempts and others alike; `WindowBatch` explains them."""
COUNT = _record(" ".join(COUNTS), "response_s")
REPEAT = _record("group number", "at_s first_s")
PEER = _record("weight effective current conns fails accessed checked down")
HEALTH = _record("out_until", "errors error_s")
MARK = _record(
    "time_ms inflight inflight_ms inflight_sum_ms changed_ms known usable rif uses",
    "cost_s stamp_s network_s service_s queue latency_s",
)
"""What a rule of `envs.simulator.rivals` remembers of a server: of `least_time` the first five, in milliseconds."""
PROBE = _record("server rif", "due_s latency_s")
BEHAVIOUR = _record("server refused hanging flush", "at_s speed error_ratio error_service_s")
GROUP = _record("servers post")
STATE = _record(
    "free behaviour generation picks resend central central_head central_room on_way way_head servers inside peak "
    "repeating held binding",
    "now_s duration_s next_come_s next_client_s",
    "pick_key",
)
RULES = _record(
    "method sharing contexts max_fails fail_timeout_s retry_500 retry_post learned work_kind balancers by_in_flight "
    "trailing clients order look_ahead most_held kinds",
    "theta longest_hold_s refuse_factor read_timeout_s overhead_s beta error_cost_s error_gain error_memory_s sigma"
    " probe_s waiting_weight late_weight",
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
    costs: Any


class Lane(NamedTuple):
    """Everything that the event loop of one environment reads and writes.

    `requests`, `tried` [slots, words of 64 servers], `free`, `resend`, `held`, `central` and `on_way` have room for as
    many requests in flight as there are slots; `grown` makes more, and of `trails` and `repeats` where they are used.
    `servers` and what belongs to it has the stages after the servers; so has `service_s`.
    `line` has the slots of held requests in the order of their arrival, with a mark each that one was `considered`;
    `planned` [servers, 2] is what is in flight there, and its seconds of work, with what held requests wait for.
    Shapes: `visits`, `cached` [groups, stages], `gates`, `counts`, `due_s`, `mean_tau_s`, `worth` (importance) and
    `never` (1 for a group of which nothing is refused for being late) [groups], `room` [servers],
    `kind_reached` and `kind_work` [groups, kinds] cumulated shares and work, `kind_cost` [groups, kinds] what the
    balancer believes of them,
    `peers`, `marks` [contexts, groups, servers], `health` [contexts, servers], `service_s` (mean service time at
    behaviour speed 1) and `tau_s` [groups, servers];
    per server a heap of requests in service
    (`heap_v`: virtual finish times, `heap_request`) and a ring of waiting ones (`queue`).
    Of Prequal: `probes` [contexts, RING], `probe_counts` [contexts, COUNTS], and latencies of each server by requests
    in flight, `recent_s` [servers, BINS, RECENT] with how many there were, `recents` [servers, BINS].
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
    tried: Any
    free: Any
    peers: Any
    health: Any
    marks: Any
    probes: Any
    probe_counts: Any
    recent_s: Any
    recents: Any
    tau_s: Any
    believed_workers: Any
    work_table: Any
    bucket_table: Any
    bounds_ms: Any
    stages: Any
    visits: Any
    cached: Any
    trails: Any
    gates: Any
    counts: Any
    repeats: Any
    line: Any
    considered: Any
    planned: Any
    room: Any
    due_s: Any
    mean_tau_s: Any
    worth: Any
    never: Any
    kind_reached: Any
    kind_work: Any
    kind_cost: Any
    tally: Tally


def new_tally(topology: Topology, size: int, bounds: int, kinds: int = 1) -> Tally:
    """Empty counters of a batch of `size` environments with `bounds` histogram bounds and `kinds` of requests."""
    groups, servers = topology.shape
    cells, totals = (size, groups, servers), (size, groups)
    return Tally(
        requests=np.zeros(cells, np.int64),
        responses=np.zeros((*cells, 5), np.int64),
        response_ms_sum=np.zeros(cells, np.int64),
        latency_histogram=np.zeros((*cells, bounds + 1), np.int64),
        delay=np.zeros((*cells, 4)),
        by_in_flight=np.zeros((size, servers, IN_FLIGHT_BINS, IN_FLIGHT_SUMS)),
        planned=np.zeros(totals, np.int64),
        answered=np.zeros(totals, np.int64),
        failed=np.zeros(totals, np.int64),
        latency_counts=np.zeros((*totals, histogram.SIZE), np.int64),
        latency_s_sum=np.zeros(totals),
        costs=np.zeros((*totals, kinds, COST_SUMS)),
    )


def build_lane(
    topology: Topology,
    script: Script,
    tally: Tally,
    bounds_ms: tuple[int, ...],
    bucket_table: NDArray[np.int64],
    rules: dict[str, Any],
    state: NDArray[np.void],
    gates: NDArray[np.void],
    counts: NDArray[np.void],
) -> Lane:
    """A lane at time 0 with equal weights and no limit; it lives in `state` ``[1]``, `gates` and `counts` ``[groups]``.

    Raises ConfigError when the script does not fit the topology (`actuators.contract.script_check`), or is too large.
    """
    check_script(script, topology)
    groups, servers = topology.shape
    keys = stream_keys(script.seed, 6 * groups + 1)
    streams, steps = _streams(topology, script, keys)
    heap, queue = _sizes(script, bool(rules["sharing"]))
    table, rule = _rules(script, rules)
    contexts = int(rule["contexts"][0])
    _check_size(topology, script, contexts, heap + queue)
    slots = _first_slots(script, float(rule["overhead_s"][0]))
    state[...], counts[...], gates[...] = 0, 0, _gates(script, groups)
    state["free"], state["duration_s"], state["pick_key"] = slots, script.duration_s, keys[3 * groups]
    state["next_come_s"] = state["next_client_s"] = np.inf
    state["servers"], state["central_room"] = servers, servers * (heap + queue) + 1
    rows = servers + len(script.stages)
    kind_reached, kind_work = kind_tables(script.kinds or ((),) * groups)
    return Lane(
        state=state, rules=rule, groups=_groups(topology), streams=streams, steps=steps,
        behaviours=_behaviours(script), servers=_servers(script), service_s=_service_s(script),
        heap_v=np.zeros((rows, heap)), heap_request=np.zeros((rows, heap), np.int64),
        queue=np.zeros((servers, queue), np.int64), resend=np.zeros(slots, np.int64), held=np.zeros(slots, np.int64),
        central=np.zeros(slots, np.int64), on_way=np.zeros(slots, np.int64), requests=np.zeros(slots, REQUEST),
        tried=np.zeros((slots, (servers + 63) // 64), np.int64), free=np.arange(slots)[::-1].copy(),
        peers=equal_peers(topology, contexts), health=np.zeros((contexts, servers), HEALTH),
        **_memory(contexts, groups, servers),
        tau_s=np.ones((groups, servers)), believed_workers=np.array([float(p.workers) for p in script.servers]),
        work_table=table, bucket_table=bucket_table, bounds_ms=np.array(bounds_ms, np.int64),
        stages=_stages(script), visits=np.array([stage.visits for stage in script.stages]).reshape(-1, groups).T.copy(),
        cached=_cached(script, groups), trails=np.zeros(slots if rule["trailing"][0] else 0, TRAIL),
        line=np.zeros(slots, np.int64), considered=np.zeros(slots, np.int64), planned=np.zeros((servers, 2)),
        room=np.full(servers, UNLIMITED), due_s=np.full(groups, np.inf), mean_tau_s=np.ones(groups),
        worth=np.ones(groups), never=np.zeros(groups, np.int64),
        kind_reached=kind_reached, kind_work=kind_work, kind_cost=np.ones_like(kind_work),
        gates=gates, counts=counts, repeats=np.zeros(slots if script.clients else 0, REPEAT),
        tally=tally,
    )  # fmt: skip


def equal_peers(topology: Topology, contexts: int) -> NDArray[np.void]:
    """NGINX's peers just after a start, all weights 1, ``[contexts, groups, servers]``."""
    peers = np.zeros((contexts, *topology.shape), PEER)
    peers["weight"] = peers["effective"] = topology.mask
    peers["down"] = ~topology.mask
    return peers


def _memory(contexts: int, groups: int, servers: int) -> dict[str, NDArray[Any]]:
    """What the rules of `envs.simulator.rivals` remember: nothing yet."""
    return {
        "marks": np.zeros((contexts, groups, servers), MARK),
        "probes": np.zeros((contexts, prequal.RING), PROBE),
        "probe_counts": np.zeros((contexts, prequal.COUNTS), np.int64),
        "recent_s": np.zeros((servers, prequal.BINS, prequal.RECENT)),
        "recents": np.zeros((servers, prequal.BINS), np.int64),
    }


def forget_marks(lane: Lane) -> None:
    """A rule of `envs.simulator.rivals` begins anew; it knows nothing of what is in flight."""
    lane.requests["noted"] = 0
    for array in (lane.marks, lane.probes, lane.probe_counts, lane.recent_s, lane.recents):
        array[...] = np.zeros((), array.dtype)


def _check_size(topology: Topology, script: Script, contexts: int, places: int) -> None:
    groups, servers = topology.shape
    if max(contexts * groups * servers, servers * places) > MAX_CELLS:
        what = f"{groups} groups × {servers} servers with {contexts} balancers and {places} places at a server"
        remedy = "choose fewer groups (--groups), balancers, workers or places in line"
        raise ConfigError(f"{what} are too many to simulate", where=f"script '{script.name}'", remedy=remedy)


def _first_slots(script: Script, overhead_s: float) -> int:
    """Little's law with room, for the highest rates and a server that is three times as slow."""
    rate_rps = sum(max(step.rate_rps for step in stream.steps) for stream in script.streams)
    expected = 2 * rate_rps * (overhead_s + 3 * max(script.mean_service_s))
    users = sum(habits.users for habits in script.clients)
    return int(max(min(max(expected, LEAST_AT_FIRST), MOST_AT_FIRST), users + 2))


def grown(lane: Lane) -> Lane:
    """The same lane with memory for twice as many requests in flight. Raises TestbedError beyond `MAX_SLOTS`."""
    old = len(lane.free)
    slots = min(2 * old, MAX_SLOTS)
    if slots <= old:
        what, remedy = f"more than {old} requests are in flight", "lower the rate or the overhead"
        raise TestbedError(what, where="simulated testbed", remedy=remedy)
    state = lane.state[0]
    free = np.zeros(slots, np.int64)
    free[: state["free"]] = lane.free[: state["free"]]
    free[state["free"] : state["free"] + slots - old] = np.arange(old, slots)
    lane = lane._replace(
        free=free,
        central=_unrolled(lane.central, state["central_head"], state["central"], slots),
        on_way=_unrolled(lane.on_way, state["way_head"], state["on_way"], slots),
        held=np.zeros(slots, np.int64),
        **{name: _longer(getattr(lane, name), slots) for name in ("resend", "requests", "tried", "line", "considered")},
        **{name: _longer(getattr(lane, name), slots) for name in ("trails", "repeats") if len(getattr(lane, name))},
    )
    state["free"] += slots - old
    state["central_head"] = state["way_head"] = 0
    return lane


def _unrolled(ring: Any, head: int, count: int, slots: int) -> Any:
    longer = np.zeros(slots, ring.dtype)
    longer[:count] = ring[(head + np.arange(count)) % len(ring)]
    return longer


def _longer(array: Any, slots: int) -> Any:
    longer = np.zeros((slots, *array.shape[1:]), array.dtype)
    longer[: len(array)] = array
    return longer


def _sizes(script: Script, sharing: bool) -> tuple[int, int]:
    workers = max([*(p.workers for p in script.servers), *(stage.connections for stage in script.stages)])
    limit = max([1, *(p.queue_limit for p in script.servers)])
    return (workers + limit, 1) if sharing else (workers, limit)


def _groups(topology: Topology) -> NDArray[np.void]:
    groups = np.zeros(len(topology.groups), GROUP)
    groups["servers"] = topology.mask.sum(axis=1)
    groups["post"] = [group.method.upper() in NON_IDEMPOTENT for group in topology.groups]
    return groups


def _streams(topology: Topology, script: Script, keys: NDArray[np.uint64]) -> tuple[NDArray[np.void], NDArray[np.void]]:
    streams = np.zeros(len(topology.groups), STREAM)
    rows: list[tuple[int, float, float, float, float]] = []
    by_type = {stream.request_type: stream.steps for stream in script.streams}
    for g, request_type in enumerate(topology.request_types):
        streams["step"][g] = len(rows)
        steps = by_type.get(request_type, ())
        rows += [
            (ARRIVAL_CODES[s.distribution], s.start_s, s.rate_rps, *gap_shape(s.distribution, s.cv)) for s in steps
        ] or [(0, 0.0, 0.0, 1.0, 1.0)]
        streams["last_step"][g] = len(rows) - 1
        for purpose, name in enumerate(("gap_key", "work_key", "coin_key")):
            streams[name][g] = keys[3 * g + purpose]
        # After the keys that every lane has had, so that these stay what they were.
        streams["stage_key"][g], streams["client_key"][g] = keys[3 * len(streams) + 1 + 2 * g :][:2]
        streams["kind_key"][g] = keys[5 * len(streams) + 1 + g]
    return streams, np.array(rows, STEP)


def _servers(script: Script) -> NDArray[np.void]:
    servers = np.zeros(len(script.servers) + len(script.stages), SERVER)
    servers["speed"] = servers["rate"] = 1.0
    servers["next_s"] = np.inf
    servers["workers"] = [p.workers for p in script.servers] + [stage.connections for stage in script.stages]
    servers["limit"] = [p.queue_limit for p in script.servers] + [0] * len(script.stages)
    servers["blocking"] = [p.blocking and bool(script.stages) for p in script.servers] + [False] * len(script.stages)
    return servers


def _service_s(script: Script) -> NDArray[np.float64]:
    at_servers = [[mean_s / p.speeds[g] for p in script.servers] for g, mean_s in enumerate(script.mean_service_s)]
    return np.array([[*row, *(stage.work_s[g] for stage in script.stages)] for g, row in enumerate(at_servers)])


def _stages(script: Script) -> NDArray[np.void]:
    stages = np.zeros(len(script.stages), STAGE)
    stages["contention"] = [stage.contention for stage in script.stages]
    stages["fill"] = stages["decay_s"] = 1.0
    for k, stage in enumerate(script.stages):
        if stage.cache is not None:
            for name in ("hit", "most", "fill", "decay_s"):
                stages[name][k] = getattr(stage.cache, name)
    return stages


def _cached(script: Script, groups: int) -> NDArray[np.int64]:
    """``[groups, stages]``: whether the group's requests are looked up in the stage's cache."""
    columns = [stage.cache.cached if stage.cache else (False,) * groups for stage in script.stages]
    return np.array(columns, np.int64).reshape(-1, groups).T.copy()


def _gates(script: Script, groups: int) -> NDArray[np.void]:
    gates = np.zeros(groups, GATE)
    gates["head"] = gates["tail"] = NO_SLOT
    gates["limit"] = gates["deadline_s"] = gates["due_s"] = gates["patience_s"] = np.inf
    if script.deadlines_s:
        gates["deadline_s"] = gates["due_s"] = script.deadlines_s
    for g, habits in enumerate(script.clients):
        for name in ("retries", "patience_s", "retry_failed", "retry_refused", "backoff_s", "users", "think_s"):
            gates[name][g] = getattr(habits, name)
    return gates


def _behaviours(script: Script) -> NDArray[np.void]:
    rows: list[tuple[float, ...]] = [
        (b.server, b.refused, b.hang, 0, b.at_s, b.speed, b.error_ratio, b.error_service_s) for b in script.behaviours
    ]
    rows += [(len(script.servers) + b.stage, 0, 0, b.flush, b.at_s, b.speed, 0.0, 0.0) for b in script.stage_behaviours]
    rows.sort(key=lambda row: row[4])
    return np.array([*rows, (0, 0, 0, 0, np.inf, 1.0, 0.0, 0.0)], BEHAVIOUR)


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
    record["kinds"] = bool(script.kinds)
    record["clients"], record["trailing"] = bool(script.clients), bool(script.clients or script.stages)
    return lognormal_table(script.service_cv), record
