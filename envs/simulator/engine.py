"""The event loop of one simulated testbed: arrivals, finishes, behaviour changes, failures and retries."""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.simulator import balancers as b
from envs.simulator.arrivals import NOWHERE, new_request, release_slot
from envs.simulator.compiling import compiled, inlined, leaf
from envs.simulator.counting import count_answer, count_attempt, count_failure
from envs.simulator.draws import uniform
from envs.simulator.queues import (
    accept,
    empty,
    finish_next,
    put_central,
    put_on_way,
    refresh_next,
    set_rate,
    take_central,
    take_from_way,
)

DONE, FULL, PAUSED = range(3)
"""How `advance` ends: everything is played, no slot is free for the next arrival, or a pause for signals is due."""

_EVENTS = 5_000_000
"""Events, a few seconds, after which `advance` returns to Python, where signals are obeyed."""

OK, ERROR, UNAVAILABLE, LOST, REJECTED, TIMED_OUT = 200, 500, 502, 502, 503, 504


@compiled
def advance(lane: Any, until_s: float) -> int:
    """Plays what happens before `until_s`; returns DONE, or FULL or PAUSED when it must be called again to go on."""
    events = 0
    state, streams, servers, behaviours = lane.state[0], lane.streams, lane.servers, lane.behaviours
    while True:
        group, server = earliest(streams), earliest(servers)
        arrival_s, finish_s = streams[group].next_s, servers[server].next_s
        change_s, come_s = behaviours[state.behaviour].at_s, state.next_come_s
        now_s = min(arrival_s, finish_s, change_s, come_s)
        if now_s >= until_s:
            break
        if events == _EVENTS:
            return PAUSED
        events += 1
        if arrival_s == now_s:
            if state.free == 0:
                return FULL
            queue_to_send(lane, new_request(lane, group, now_s))
        elif finish_s == now_s and not servers[server].hanging:
            finish(lane, server, now_s)
        elif finish_s == now_s:
            time_out(lane, np.int64(server), now_s)
        elif come_s == now_s:
            queue_to_send(lane, take_from_way(lane))
        else:
            behave(lane, behaviours[state.behaviour])
            state.behaviour += 1
        while state.resend > 0:
            state.resend -= 1
            send(lane, lane.resend[state.resend], now_s)
    state.now_s = until_s
    return DONE


@leaf
def earliest(records: Any) -> Any:
    """Index of the stream or server whose next event comes first; the lowest index among equals."""
    first, first_s = 0, records[0].next_s
    for index in range(1, len(records)):
        if records[index].next_s < first_s:
            first, first_s = index, records[index].next_s
    return first


@inlined
def queue_to_send(lane: Any, slot: Any) -> None:
    """The loop sends it next; a stack, because a crash hands back many at once."""
    state = lane.state[0]
    lane.resend[state.resend] = slot
    state.resend += 1


@inlined
def finish(lane: Any, s: Any, now_s: float) -> None:
    """A server answers."""
    slot = finish_next(lane, s, now_s)
    request, rules = lane.requests[slot], lane.rules[0]
    status = request.status
    failed = status >= 500 and rules.retry_500
    retry = failed and may_retry(lane, slot)
    end_attempt(lane, slot, status, now_s, failed)
    if retry:
        queue_to_send(lane, slot)
    else:
        conclude(lane, slot, status, now_s)
    if lane.state[0].central > 0:
        queue_to_send(lane, take_central(lane))


@inlined
def send(lane: Any, slot: Any, now_s: float) -> None:
    """Picks a server for the request and lets it reach it."""
    request = lane.requests[slot]
    there = request.server != NOWHERE
    if not there:
        s = pick(lane, slot, now_s)
        if s >= 0:
            begin_attempt(lane, request, s, now_s)
            there = lane.rules[0].overhead_s <= 0.0
            if not there:
                put_on_way(lane, slot, now_s)
        elif s != b.WAIT or not put_central(lane, slot):
            conclude(lane, slot, UNAVAILABLE, now_s)
    if there:
        reach(lane, slot, now_s)


@inlined
def reach(lane: Any, slot: Any, now_s: float) -> None:
    """The request has reached its server: it is refused, accepted or rejected."""
    s = lane.requests[slot].server
    if lane.servers[s].refused:
        end_attempt(lane, slot, UNAVAILABLE, now_s, True)
        queue_to_send(lane, slot)  # nothing was sent, so that NGINX tries the next one for any method
    elif not accept(lane, s, slot, now_s):
        end_attempt(lane, slot, REJECTED, now_s, False)
        conclude(lane, slot, REJECTED, now_s)


@inlined
def pick(lane: Any, slot: Any, now_s: float) -> Any:
    """The server that the balancing method chooses for the request, -1 when none is usable."""
    rules, state, request, tried = lane.rules[0], lane.state[0], lane.requests[slot], lane.tried[slot]
    peers = lane.peers[request.context]
    method, clock = rules.method, b.clock_s(now_s)
    if method == b.EXPECTED_DELAY and not rules.learned:
        method = b.LEAST_CONN  # nothing learned yet is worse than least_conn
    if method == b.ROUND_ROBIN:
        return b.pick_round_robin(peers[request.group], tried, clock, rules)
    if method == b.LEAST_CONN:
        return b.pick_least_conn(peers[request.group], tried, clock, rules)
    if method == b.RANDOM_TWO:
        return b.pick_random_two(peers[request.group], tried, clock, rules, state)
    if method == b.EXPECTED_DELAY:
        health = lane.health[request.context]
        return b.pick_expected_delay(
            peers, request.group, tried, now_s, rules, state, lane.tau_s, lane.believed_workers, health
        )
    return b.pick_oracle(method, lane.peers, request.group, rules, state, lane.service_s, lane.servers, tried)


@inlined
def begin_attempt(lane: Any, request: Any, s: Any, now_s: float) -> None:
    """Notes the choice, what was predicted of it, and how the server will answer."""
    rules, server = lane.rules[0], lane.servers[s]
    if rules.method == b.EXPECTED_DELAY:
        peers, workers = lane.peers[request.context], lane.believed_workers[s]
        request.wait_s = rules.learned * b.predicted_wait_s(peers, s, lane.tau_s, workers, rules.balancers)
        request.tau_s = rules.learned * lane.tau_s[request.group, s]
        in_flight = 0
        for group in range(len(peers)):
            in_flight += peers[group, s].conns
        request.idle = 1 if in_flight < workers else 0
        if rules.by_in_flight:
            request.in_flight = in_flight * rules.balancers
            request.ahead_s = b.mean_ahead_s(peers, s, lane.tau_s)
    request.server, request.attempt_s, request.status = s, now_s, OK
    request.generation = lane.state[0].generation
    if server.error_ratio > 0.0:
        coin = uniform(lane.streams[request.group].coin_key, 2 * request.number)
        if coin < server.error_ratio:
            request.status = ERROR
    lane.peers[request.context, request.group, s].conns += 1


@inlined
def end_attempt(lane: Any, slot: Any, status: Any, now_s: float, failed: Any) -> None:
    """Counts an attempt as NGINX's statistics do and gives its connection back to the balancer."""
    rules, request = lane.rules[0], lane.requests[slot]
    s, group = request.server, request.group
    count_attempt(lane, request, status, now_s)
    if request.generation == lane.state[0].generation:
        peer = lane.peers[request.context, group, s]
        b.note_result(peer, failed, b.clock_s(now_s), rules, lane.groups[group].servers == 1)
    if rules.method == b.EXPECTED_DELAY:
        b.note_health(lane.health[request.context, s], status >= 500, failed, now_s, rules)
    if failed:
        lane.tried[slot, s >> 6] |= np.int64(1) << (s & 63)
        request.server = NOWHERE


@inlined
def conclude(lane: Any, slot: Any, status: Any, now_s: float) -> None:
    """Answers the client and forgets the request."""
    request = lane.requests[slot]
    if status < 400:
        count_answer(lane.tally, request, now_s)
    else:
        count_failure(lane.tally, request)
    release_slot(lane, slot)


@compiled
def behave(lane: Any, change: Any) -> None:
    """A server's behaviour changes; a crash loses what is in progress there."""
    s, now_s = change.server, change.at_s
    server = lane.servers[s]
    crashed = change.refused and not server.refused
    server.speed, server.refused, server.hanging = change.speed, change.refused, change.hanging
    server.error_ratio, server.error_service_s = change.error_ratio, change.error_service_s
    set_rate(server, now_s, lane.rules[0].sharing)
    if crashed:
        for place in range(empty(lane, s)):
            fail(lane, lane.held[place], LOST, now_s)
    refresh_next(lane, s)
    for _ in range(min(lane.state[0].central, 0 if server.refused else server.workers)):
        queue_to_send(lane, take_central(lane))


@compiled
def time_out(lane: Any, s: Any, now_s: float) -> None:
    """A hanging server has kept its oldest request for NGINX's read timeout; everything as old is given up."""
    timeout_s = lane.rules[0].read_timeout_s
    for place in range(empty(lane, s)):
        slot = lane.held[place]
        if lane.requests[slot].attempt_s + timeout_s <= now_s:
            fail(lane, slot, TIMED_OUT, now_s)
        else:
            accept(lane, s, slot, now_s)
    refresh_next(lane, s)


@inlined
def fail(lane: Any, slot: Any, status: Any, now_s: float) -> None:
    """An attempt ended without an answer: NGINX tries the next server, unless the method forbids it."""
    retry = may_retry(lane, slot)
    end_attempt(lane, slot, status, now_s, True)
    if retry:
        queue_to_send(lane, slot)
    else:
        conclude(lane, slot, status, now_s)


@inlined
def may_retry(lane: Any, slot: Any) -> bool:
    """True when a request that was already sent may be tried on another server."""
    tries, request, tried = 0, lane.requests[slot], lane.tried[slot]
    for s in range(len(lane.servers)):
        if not lane.peers[request.context, request.group, s].down and not b.has_tried(tried, s):
            tries += 1
    return tries > 1 and (lane.rules[0].retry_post or not lane.groups[request.group].post)
