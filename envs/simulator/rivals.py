"""Balancing rules of other load balancers and of papers: which server gets a request, and what a rule remembers of it.

`least_time` is NGINX's own and has a pool per group, or one for all groups (`least_time_shared`). All other rules have
one pool of servers for all groups, as their programs do with one cluster: `shared_least_conn` is NGINX's least_conn
with one. Every rule passes over servers as NGINX does: one that is down, was tried by this request, or has failed and
is not yet forgiven; what the programs do about failures themselves (outlier detection, failure accrual) is not
simulated. All but NGINX's own ignore weights.

`peers` and `marks` are those of one context, ``[groups, servers]``.
"""

from __future__ import annotations

import math
from typing import Any

from envs.simulator.balancers import clock_s, has_tried
from envs.simulator.compiling import compiled, leaf
from envs.simulator.counting import whole_ms
from envs.simulator.draws import below
from envs.simulator.gate import GAVE_UP
from envs.simulator.prequal import note_latency, pick_prequal, present_at, probe

LEAST_TIME, LEAST_TIME_SHARED, PEAK_EWMA, LEAST_REQUEST, C3, JOIN_IDLE_QUEUE, PREQUAL, SHARED_LEAST_CONN = range(8, 16)
RANDOM_CHOOSE = 16
RIVAL_CODES = {
    "least_time": LEAST_TIME, "least_time_shared": LEAST_TIME_SHARED, "peak_ewma": PEAK_EWMA,
    "least_request": LEAST_REQUEST, "c3": C3, "join_idle_queue": JOIN_IDLE_QUEUE, "prequal": PREQUAL,
    "shared_least_conn": SHARED_LEAST_CONN, "random_choose": RANDOM_CHOOSE,
}  # fmt: skip
"""After the codes of `envs.simulator.balancers.METHOD_CODES`."""

_NEW, _OLD = 0.05, 0.95
_CLUSTER_MS, _LONGEST_MS = 20, 5000
_MOST_HALVINGS = 62
_DECAY_S = 10.0
_PENALTY = float((2**63 - 1) >> 16) / 1e9
_NEW_FEEDBACK = 0.9


@leaf
def is_rival(method: Any) -> Any:
    """Whether the method is one of this module."""
    return method >= LEAST_TIME


@leaf
def home_of(peers: Any, method: Any, group: Any, server: Any) -> Any:
    """The row in which a server's state is kept: its group's, or with one pool for all that of its first group."""
    if method <= LEAST_TIME:
        return group
    home = 0
    while peers[home, server].weight == 0 and home < group:
        home += 1
    return home


@leaf
def in_flight_of(peers: Any, method: Any, group: Any, server: Any) -> Any:
    """Requests in flight at a server as its pool counts them: this balancer's own."""
    if method <= LEAST_TIME:
        return peers[group, server].conns
    conns = 0
    for each in range(len(peers)):
        conns += peers[each, server].conns
    return conns


@leaf
def passes(peers: Any, method: Any, group: Any, server: Any, tried: Any, clock: Any, rules: Any) -> bool:
    """False for a server that is down, was tried, or has failed and is not yet forgiven."""
    if peers[group, server].down or has_tried(tried, server):
        return False
    peer = peers[home_of(peers, method, group, server), server]
    failed = rules.max_fails > 0 and peer.fails >= rules.max_fails
    return not (failed and clock - peer.checked <= rules.fail_timeout_s)


@leaf
def average_ms(old_ms: Any, new_ms: Any) -> Any:
    """ngx_http_upstream_response_time_avg: a moving average in rounded milliseconds; the first value as it is."""
    return int(0.5 + (new_ms * _NEW + old_ms * _OLD)) if old_ms != 0 else new_ms


@leaf
def least_time_eta(peer: Any, mark: Any, conns: Any, clock: Any, rules: Any) -> Any:
    """ngx_http_upstream_least_time_eta: milliseconds in steps of 20, times the connections it would have."""
    time_ms = mark.time_ms
    if clock - peer.checked > rules.fail_timeout_s:
        time_ms >>= min((clock - peer.checked) // (rules.fail_timeout_s + 1), _MOST_HALVINGS)
    if mark.inflight > 0:
        time_ms = max(time_ms, mark.inflight_ms)
    time_ms = _LONGEST_MS if time_ms > _LONGEST_MS else time_ms + _CLUSTER_MS - time_ms % _CLUSTER_MS
    return time_ms * (1 + conns)


@leaf
def _note_waiting(mark: Any, now_ms: Any) -> None:
    if mark.inflight > 0:
        age_ms = mark.inflight_sum_ms // mark.inflight + (now_ms - mark.changed_ms)
        mark.inflight_ms = average_ms(mark.inflight_ms, age_ms)


@leaf
def pick_least_time(
    peers: Any, marks: Any, method: Any, group: Any, tried: Any, clock: Any, now_ms: Any, rules: Any
) -> Any:
    """`least_time last_byte inflight`, ties by smooth weighted round robin; -1 for none. Notes what is then in flight.

    Source: ngx_http_upstream_least_time_module.c of NGINX 1.31.3 (the same in 1.31.5). `header` is the same here, since
    a simulated answer comes at once.
    """
    best, best_eta, many = -1, 0, False
    for server in range(peers.shape[1]):
        if not passes(peers, method, group, server, tried, clock, rules):
            continue
        home = home_of(peers, method, group, server)
        peer, mark = peers[home, server], marks[home, server]
        _note_waiting(mark, now_ms)
        eta = least_time_eta(peer, mark, in_flight_of(peers, method, group, server), clock, rules)
        if best < 0:
            best, best_eta = server, eta
            continue
        weight = peers[home_of(peers, method, group, best), best].weight
        if eta * weight < best_eta * peer.weight:
            best, best_eta, many = server, eta, False
        elif eta * weight == best_eta * peer.weight:
            many = True
    if many:
        best = _among_tied(peers, marks, method, group, best, best_eta, tried, clock, rules)
    if best >= 0:
        home = home_of(peers, method, group, best)
        note_chosen(peers[home, best], marks[home, best], clock, now_ms, rules)
    return best


@leaf
def note_chosen(peer: Any, mark: Any, clock: Any, now_ms: Any, rules: Any) -> None:
    """A request goes to the server: `least_time` counts for how long those in flight have been there."""
    mark.inflight_sum_ms += (now_ms - mark.changed_ms) * mark.inflight
    mark.changed_ms = now_ms
    mark.inflight += 1
    if clock - peer.checked > rules.fail_timeout_s:
        peer.checked = clock


@leaf
def _among_tied(
    peers: Any, marks: Any, method: Any, group: Any, first: Any, best_eta: Any, tried: Any, clock: Any, rules: Any
) -> Any:
    best, total = first, 0
    for server in range(first, peers.shape[1]):
        if not passes(peers, method, group, server, tried, clock, rules):
            continue
        home, best_home = home_of(peers, method, group, server), home_of(peers, method, group, best)
        peer = peers[home, server]
        eta = least_time_eta(peer, marks[home, server], in_flight_of(peers, method, group, server), clock, rules)
        if eta * peers[best_home, best].weight != best_eta * peer.weight:
            continue
        peer.current += peer.effective
        total += peer.effective
        if peer.effective < peer.weight:
            peer.effective += 1
        if peer.current > peers[best_home, best].current:
            best = server
    peers[home_of(peers, method, group, best), best].current -= total
    return best


@leaf
def note_least_time(mark: Any, attempt_ms: Any, now_ms: Any, measured: Any) -> None:
    """An attempt has ended; only an answer that NGINX does not hold for a failure counts into the average."""
    last_ms = now_ms - attempt_ms
    if mark.inflight == 1:
        mark.inflight_sum_ms = 0
    else:
        mark.inflight_sum_ms += (now_ms - mark.changed_ms) * mark.inflight - last_ms
        mark.changed_ms = now_ms
    mark.inflight -= 1
    if measured:
        mark.time_ms = average_ms(mark.time_ms, last_ms)


@leaf
def _open(peers: Any, room: Any, method: Any, group: Any, server: Any, tried: Any, clock: Any, rules: Any) -> bool:
    if not passes(peers, method, group, server, tried, clock, rules):
        return False
    return bool(in_flight_of(peers, method, group, server) < room[server])


@leaf
def pick_shared_least_conn(peers: Any, room: Any, method: Any, group: Any, tried: Any, clock: Any, rules: Any) -> Any:
    """NGINX's least_conn with one upstream for all groups, and `max_conns`; -1 when all are full, as NGINX's 502.

    Source: ngx_http_upstream_least_conn_module.c of NGINX 1.22, as `balancers.pick_least_conn`.

    Args:
        room: ``[servers]``, what `max_conns` allows each.
    """
    best, many = -1, False
    for server in range(peers.shape[1]):
        if not _open(peers, room, method, group, server, tried, clock, rules):
            continue
        if best < 0:
            best = server
            continue
        mine = in_flight_of(peers, method, group, server) * peers[home_of(peers, method, group, best), best].weight
        theirs = in_flight_of(peers, method, group, best) * peers[home_of(peers, method, group, server), server].weight
        if mine < theirs:
            best, many = server, False
        elif mine == theirs:
            many = True
    if best < 0:
        return best
    if many:
        best = _among_equal(peers, room, method, group, best, tried, clock, rules)
    peer = peers[home_of(peers, method, group, best), best]
    if clock - peer.checked > rules.fail_timeout_s:
        peer.checked = clock
    return best


@leaf
def _among_equal(peers: Any, room: Any, method: Any, group: Any, first: Any, tried: Any, clock: Any, rules: Any) -> Any:
    best, total = first, 0
    for server in range(first, peers.shape[1]):
        peer = peers[home_of(peers, method, group, server), server]
        so_far = peers[home_of(peers, method, group, best), best]
        mine = in_flight_of(peers, method, group, server) * so_far.weight
        if mine != in_flight_of(peers, method, group, best) * peer.weight:
            continue
        if not _open(peers, room, method, group, server, tried, clock, rules):
            continue
        peer.current += peer.effective
        total += peer.effective
        if peer.effective < peer.weight:
            peer.effective += 1
        if peer.current > so_far.current:
            best = server
    peers[home_of(peers, method, group, best), best].current -= total
    return best


@leaf
def nth_of(peers: Any, method: Any, group: Any, tried: Any, clock: Any, rules: Any, which: Any) -> Any:
    """The server at place `which` among those that may be chosen; their number instead when there are not as many."""
    count = 0
    for server in range(peers.shape[1]):
        if passes(peers, method, group, server, tried, clock, rules):
            if count == which:
                return server
            count += 1
    return count


@leaf
def count_of(peers: Any, method: Any, group: Any, tried: Any, clock: Any, rules: Any) -> Any:
    """How many servers may be chosen."""
    return nth_of(peers, method, group, tried, clock, rules, -1)


@leaf
def drawn(state: Any, limit: Any) -> Any:
    """The next random number in 0…limit-1 of this testbed's picks."""
    state.picks += 1
    return below(state.pick_key, state.picks, limit)


@leaf
def pick_peak_ewma(
    peers: Any, marks: Any, method: Any, group: Any, tried: Any, now_s: Any, rules: Any, state: Any
) -> Any:
    """Two different servers at random, the one with the lower `peak_ewma_load`, the second in a tie; -1 for none.

    Source: P2CPick.scala and PeakEwma.scala of Finagle (commits 1f1986d, 1e8497e), with its default decay time of
    10 s. Linkerd's proxy (tower's PeakEwma) assumes a first round-trip time where Finagle has a penalty.
    """
    clock = clock_s(now_s)
    count = count_of(peers, method, group, tried, clock, rules)
    if count == 0:
        return -1
    if count == 1:
        return nth_of(peers, method, group, tried, clock, rules, 0)
    one, other = drawn(state, count), drawn(state, count - 1)
    other += other >= one
    one = nth_of(peers, method, group, tried, clock, rules, one)
    other = nth_of(peers, method, group, tried, clock, rules, other)
    load = peak_ewma_load(marks[0, one], in_flight_of(peers, method, group, one), now_s)
    return one if load < peak_ewma_load(marks[0, other], in_flight_of(peers, method, group, other), now_s) else other


@leaf
def peak_ewma_load(mark: Any, pending: Any, now_s: Any) -> Any:
    """Decayed peak of round-trip times × (pending requests + 1); a penalty while the first answers are out."""
    observe_peak(mark, 0.0, now_s)
    if mark.cost_s == 0.0 and pending != 0:
        return _PENALTY + pending
    return mark.cost_s * (pending + 1)


@leaf
def observe_peak(mark: Any, took_s: Any, now_s: Any) -> None:
    """A longer round-trip time replaces the average at once, a shorter one moves it by the time that has passed."""
    keep = math.exp(-(now_s - mark.stamp_s) / _DECAY_S)
    mark.cost_s = took_s if took_s > mark.cost_s else mark.cost_s * keep + took_s * (1.0 - keep)
    mark.stamp_s = now_s


@leaf
def pick_least_request(peers: Any, method: Any, group: Any, tried: Any, clock: Any, rules: Any, state: Any) -> Any:
    """Two draws with replacement, the one with fewer requests in flight, the first in a tie; -1 for none.

    Source: least_request_lb.cc of Envoy (commit 0a31a54, as in 1.40), `N_CHOICES` with the default of 2 choices and
    equal weights. Its active request bias, which takes part with unequal weights only, is not simulated.
    """
    count = count_of(peers, method, group, tried, clock, rules)
    if count == 0:
        return -1
    one = nth_of(peers, method, group, tried, clock, rules, drawn(state, count))
    other = nth_of(peers, method, group, tried, clock, rules, drawn(state, count))
    fewer = in_flight_of(peers, method, group, other) < in_flight_of(peers, method, group, one)
    return other if fewer else one


@leaf
def pick_random_choose(peers: Any, method: Any, group: Any, tried: Any, clock: Any, rules: Any, state: Any) -> Any:
    """Two servers by a reservoir of two; of these the first that has no request in flight, or one of both by chance
    when the second has no more than the first, or else the first; -1 for none.

    Source: `leastRequests` of selectionpolicies.go of Caddy (2.7 to 2.11), which keeps a first choice with more
    requests beside a second one with fewer. Always two choices, as the picks of Caddy 2.11 show; older ones sometimes
    draw one.
    """
    one, other, count = -1, -1, 0
    for server in range(peers.shape[1]):
        if not passes(peers, method, group, server, tried, clock, rules):
            continue
        count += 1
        place = count - 1 if count <= 2 else drawn(state, count)
        if place == 0:
            one = server
        elif place == 1:
            other = server
    if other < 0:
        return one
    first, second = in_flight_of(peers, method, group, one), in_flight_of(peers, method, group, other)
    if first == 0 or second > first:
        return one
    if second == 0 or drawn(state, 2):
        return other
    return one


@leaf
def pick_c3(peers: Any, marks: Any, method: Any, group: Any, tried: Any, clock: Any, rules: Any, state: Any) -> Any:
    """The least `c3_score`; the first from a random one on in a tie; -1 for none.

    Source: client.py of absim, the simulator of its authors (commit 0aa4347; Suresh et al., "C3: Cutting Tail Latency
    in Cloud Data Stores via Adaptive Replica Selection", NSDI 2015), with cost exponent 3 and as concurrency weight the
    number of balancers. Its rate control is not simulated.
    """
    count = count_of(peers, method, group, tried, clock, rules)
    if count == 0:
        return -1
    start, best, lowest = drawn(state, count), -1, 0.0
    for step in range(count):
        server = nth_of(peers, method, group, tried, clock, rules, (start + step) % count)
        score = c3_score(marks[0, server], in_flight_of(peers, method, group, server), rules.contexts)
        if best < 0 or score < lowest:
            best, lowest = server, score
    return best


@leaf
def c3_score(mark: Any, outstanding: Any, clients: Any) -> Any:
    """Response time − service time + (estimated queue)³ × service time; 0 before the first answer."""
    if mark.known == 0:
        return 0.0
    queue = 1.0 + outstanding * clients + mark.queue
    return mark.network_s + queue * queue * queue * mark.service_s


@leaf
def note_c3(mark: Any, took_s: Any, service_s: Any, waiting: Any) -> None:
    """What an answer tells: its response time, its service time, and how many wait at the server; 0.9 of it counts."""
    new = _NEW_FEEDBACK if mark.known else 1.0
    mark.known = 1
    mark.network_s = new * (took_s - service_s) + (1.0 - new) * mark.network_s
    mark.service_s = new * service_s + (1.0 - new) * mark.service_s
    mark.queue = new * waiting + (1.0 - new) * mark.queue


@leaf
def queued_of(mark: Any, workers: Any, context: Any, contexts: Any) -> Any:
    """Workers of a server in a balancer's queue; at first all are idle, and spread over the balancers."""
    return (workers + contexts - 1 - context) // contexts + mark.known


@leaf
def pick_idle(
    peers: Any, marks: Any, servers: Any, context: Any, method: Any, group: Any, tried: Any, now_s: Any, rules: Any,
    state: Any,
) -> Any:  # fmt: skip
    """The server that has been longest in this balancer's queue of idle ones, else a random one; -1 for none.

    Source: Lu et al., "Join-Idle-Queue: A Novel Load Balancing Algorithm for Dynamically Scalable Web Services",
    Performance Evaluation 68 (2011): JIQ-Random. The paper's servers have one processor; here every free worker may
    stand in a queue, those of a server together, which goes to the end when it is taken.
    """
    best, clock = -1, clock_s(now_s)
    for server in range(peers.shape[1]):
        mark = marks[0, server]
        earlier = best < 0 or mark.stamp_s < marks[0, best].stamp_s
        queued = queued_of(mark, servers[server].workers, context, rules.contexts)
        if queued > 0 and earlier and passes(peers, method, group, server, tried, clock, rules):
            best = server
    if best >= 0:
        marks[0, best].known -= 1
        marks[0, best].stamp_s = now_s
        return best
    count = count_of(peers, method, group, tried, clock, rules)
    return -1 if count == 0 else nth_of(peers, method, group, tried, clock, rules, drawn(state, count))


@leaf
def join_idle(marks: Any, server: Any, at: Any, now_s: Any, state: Any) -> None:
    """A worker that has become free joins the queue of a random balancer, unless all free ones are in one.

    `marks` are those of all contexts, `at` is the server.
    """
    contexts, queued = len(marks), 0
    for context in range(contexts):
        queued += queued_of(marks[context, 0, server], at.workers, context, contexts)
    if queued < at.workers - at.busy - at.held:
        context = drawn(state, contexts)
        mark = marks[context, 0, server]
        if queued_of(mark, at.workers, context, contexts) == 0:
            mark.stamp_s = now_s
        mark.known += 1


@compiled
def pick_rival(lane: Any, slot: Any, now_s: float) -> Any:
    """The server that a rule of this module chooses, -1 for none; the rule knows of the request from now on."""
    rules, state, request, tried = lane.rules[0], lane.state[0], lane.requests[slot], lane.tried[slot]
    peers, marks = lane.peers[request.context], lane.marks[request.context]
    method, group, clock = rules.method, request.group, clock_s(now_s)
    request.noted = 1
    if method <= LEAST_TIME_SHARED:
        return pick_least_time(peers, marks, method, group, tried, clock, whole_ms(now_s), rules)
    if method == PEAK_EWMA:
        return pick_peak_ewma(peers, marks, method, group, tried, now_s, rules, state)
    if method == LEAST_REQUEST:
        return pick_least_request(peers, method, group, tried, clock, rules, state)
    if method == RANDOM_CHOOSE:
        return pick_random_choose(peers, method, group, tried, clock, rules, state)
    if method == C3:
        return pick_c3(peers, marks, method, group, tried, clock, rules, state)
    if method == JOIN_IDLE_QUEUE:
        context = request.context
        return pick_idle(peers, marks, lane.servers, context, method, group, tried, now_s, rules, state)
    if method == SHARED_LEAST_CONN:
        return pick_shared_least_conn(peers, lane.room, method, group, tried, clock, rules)
    probes, counts = lane.probes[request.context], lane.probe_counts[request.context]
    for server in range(peers.shape[1]):
        marks[0, server].usable = passes(peers, method, group, server, tried, clock, rules)
    chosen = pick_prequal(marks[0], probes, counts, now_s, state)
    if chosen >= 0:
        request.in_flight = present_at(lane.servers[chosen])
    probe(lane.servers, marks[0], probes, counts, lane.recent_s, lane.recents, now_s, rules, state)
    return chosen


@compiled
def note_rival(lane: Any, slot: Any, status: int, failed: Any, now_s: float) -> None:
    """An attempt has ended: what the rule learns from it, if it has chosen the server."""
    rules, state, request = lane.rules[0], lane.state[0], lane.requests[slot]
    if not request.noted:
        return
    method, s, took_s = rules.method, request.server, now_s - request.attempt_s
    home = home_of(lane.peers[request.context], method, request.group, s)
    mark, answered = lane.marks[request.context, home, s], not failed and status != GAVE_UP
    if method <= LEAST_TIME_SHARED:
        note_least_time(mark, whole_ms(request.attempt_s), whole_ms(now_s), answered)
    elif method == PEAK_EWMA:
        observe_peak(lane.marks[request.context, 0, s], took_s, now_s)
    elif method == C3 and answered:
        server = lane.servers[s]
        service_s = min(request.unit * lane.service_s[request.group, s] / max(server.speed, 1e-9), took_s)
        note_c3(lane.marks[request.context, 0, s], took_s, service_s, server.waiting)
    elif method == JOIN_IDLE_QUEUE and not failed:
        join_idle(lane.marks, s, lane.servers[s], now_s, state)
    elif method == PREQUAL and answered:
        note_latency(lane.recent_s[s], lane.recents[s], request.in_flight, took_s)
