"""Late binding in the event loop: the line of held requests, their order, and the server that one would best go to
(docs/studies.md#dispatch-step).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from envs.simulator import balancers as b
from envs.simulator.compiling import inlined, leaf
from envs.simulator.draws import below

RESPONSE_RATIO, EARLIEST_DEADLINE, FIFO, SHORTEST = range(4)
ORDER_CODES = {
    "response_ratio": RESPONSE_RATIO, "earliest_deadline": EARLIEST_DEADLINE, "fifo": FIFO, "shortest": SHORTEST,
}  # fmt: skip
NOBODY = -1
LATE = -1e6
"""Added to the priority of requests that will be late, so that all others come before them."""


@inlined
def hold(lane: Any, slot: Any) -> bool:
    """Puts the request at the end of the line; False when that is full."""
    state, rules = lane.state[0], lane.rules[0]
    if state.held >= rules.most_held:
        return False
    lane.line[state.held] = slot
    lane.considered[state.held] = 0
    state.held += 1
    state.next_client_s = min(state.next_client_s, lane.requests[slot].arrival_s + rules.longest_hold_s)
    return True


@inlined
def take_out(lane: Any, place: Any) -> Any:
    """Removes the request at a place of the line, whose order of arrival stays; its slot."""
    state = lane.state[0]
    slot = lane.line[place]
    state.held -= 1
    for behind in range(place, state.held):
        lane.line[behind] = lane.line[behind + 1]
        lane.considered[behind] = lane.considered[behind + 1]
    return slot


@leaf
def priority(rules: Any, age_s: Any, service_s: Any, deadline_s: Any, worth: Any) -> Any:
    """The larger, the earlier the request is considered; `worth` is the importance of its group."""
    order = rules.order
    if order == FIFO:
        return age_s
    late = age_s + service_s > deadline_s
    if order == SHORTEST:
        factor = rules.late_weight if late else 1.0 - rules.waiting_weight * age_s / deadline_s
        return -service_s / worth * factor
    if late:
        return LATE - service_s / worth
    return age_s / service_s * worth if order == RESPONSE_RATIO else (age_s - deadline_s) / worth


@inlined
def first_in_line(lane: Any, context: Any, now_s: float) -> Any:
    """The place of the request of a context to consider next, -1 when all have been; the first come among equals."""
    best, highest = NOBODY, 0.0
    for place in range(lane.state[0].held):
        request = lane.requests[lane.line[place]]
        if lane.considered[place] or request.context != context:
            continue
        group = request.group
        age_s, worth = now_s - request.arrival_s, lane.worth[group]
        rank = priority(lane.rules[0], age_s, lane.mean_tau_s[group] * request.cost, lane.due_s[group], worth)
        if best == NOBODY or rank > highest:
            best, highest = place, rank
    return best


@inlined
def begin_look(lane: Any, context: Any) -> bool:
    """Copies what is in flight at every server to `planned`; whether any has a free slot."""
    peers, found = lane.peers[context], False
    for s in range(peers.shape[1]):
        in_flight, work_s = 0.0, 0.0
        for group in range(len(peers)):
            conns = peers[group, s].conns
            in_flight += conns
            work_s += conns * lane.tau_s[group, s]
        lane.planned[s, 0], lane.planned[s, 1] = in_flight, work_s
        found |= in_flight < lane.room[s]
    for place in range(lane.state[0].held):
        lane.considered[place] = 0
    return found


@inlined
def best_server(lane: Any, slot: Any, now_s: float) -> Any:
    """The server with the least expected delay among free ones and busy ones, whose wait counts θ times; -1 for none.

    As `pick_expected_delay`, with what earlier requests of this look are planned to wait for.
    """
    state, rules, request, tried = lane.state[0], lane.rules[0], lane.requests[slot], lane.tried[slot]
    peers, health = lane.peers[request.context], lane.health[request.context]
    best, lowest, ties = NOBODY, 0.0, 1
    for s in range(len(health)):
        if peers[request.group, s].down or b.has_tried(tried, s) or health[s].out_until > b.clock_s(now_s):
            continue
        workers = lane.believed_workers[s]
        in_flight, work_s = lane.planned[s, 0] * rules.balancers, lane.planned[s, 1] * rules.balancers
        wait_s = 0.0
        if in_flight >= workers:
            wait_s = work_s / in_flight * (in_flight - workers + 1.0) / workers
        if not has_room(lane, request.context, s):
            wait_s = rules.theta * max(wait_s, work_s / max(in_flight * workers, 1e-9))
        score = wait_s + rules.beta * lane.tau_s[request.group, s] * request.cost
        if health[s].errors > 0.0:
            age_s = now_s - health[s].error_s
            score += rules.error_cost_s * health[s].errors * math.exp(-age_s / rules.error_memory_s)
        if best < 0 or score < lowest:
            best, lowest, ties = s, score, 1
        elif score == lowest:
            ties += 1
            state.picks += 1
            if below(state.pick_key, state.picks, ties) == 0:
                best = s
    return best


@inlined
def is_hopeless(lane: Any, slot: Any, s: Any, ahead_s: Any, now_s: float) -> Any:
    """Whether a request of which it is known where it would best go is expected to be answered too late to be worth it.

    ahead_s: what else it waits for. The wait at the server is that with what is planned there.
    """
    rules, request = lane.rules[0], lane.requests[slot]
    group = request.group
    if rules.refuse_factor == np.inf or lane.never[group]:
        return False
    workers = lane.believed_workers[s]
    in_flight, work_s = lane.planned[s, 0] * rules.balancers, lane.planned[s, 1] * rules.balancers
    wait_s = 0.0
    if in_flight >= workers:
        wait_s = work_s / in_flight * (in_flight - workers + 1.0) / workers
    answered_s = now_s - request.arrival_s + ahead_s + wait_s + rules.beta * lane.tau_s[group, s] * request.cost
    return answered_s > rules.refuse_factor * lane.due_s[group]


@inlined
def ahead_of(lane: Any, slot: Any, now_s: float) -> Any:
    """Seconds that all servers together need for the held requests which come before one that arrives now."""
    request, rules = lane.requests[slot], lane.rules[0]
    group = request.group
    service_s = lane.mean_tau_s[group] * request.cost
    own = priority(rules, now_s - request.arrival_s, service_s, lane.due_s[group], lane.worth[group])
    work_s, workers = 0.0, 0.0
    for place in range(lane.state[0].held):
        other = lane.requests[lane.line[place]]
        if other.context == request.context:
            g = other.group
            age_s, worth, service_s = now_s - other.arrival_s, lane.worth[g], lane.mean_tau_s[g] * other.cost
            if priority(rules, age_s, service_s, lane.due_s[g], worth) >= own:
                work_s += service_s
    for s in range(len(lane.believed_workers)):
        workers += lane.believed_workers[s]
    return work_s / workers


@inlined
def has_room(lane: Any, context: Any, s: Any) -> Any:
    """Whether the balancer has fewer requests at the server than it may have."""
    peers, in_flight = lane.peers[context], 0
    for group in range(len(peers)):
        in_flight += peers[group, s].conns
    return in_flight < lane.room[s]


@inlined
def plan(lane: Any, place: Any, s: Any) -> None:
    """The request at this place waits for the server; those behind it reckon with that."""
    lane.considered[place] = 1
    lane.planned[s, 0] += 1.0
    request = lane.requests[lane.line[place]]
    lane.planned[s, 1] += lane.tau_s[request.group, s] * request.cost


@inlined
def oldest_hold_s(lane: Any) -> Any:
    """When the request that was held first has been held for too long."""
    if lane.state[0].held == 0:
        return np.inf
    return lane.requests[lane.line[0]].arrival_s + lane.rules[0].longest_hold_s
