"""The event loop of one simulated testbed: arrivals, finishes, behaviour changes, failures, retries, clients."""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.simulator import balancers as b
from envs.simulator.arrivals import NOWHERE, new_request, next_number, next_of_user, release_slot
from envs.simulator.binding import (
    ahead_of,
    begin_look,
    best_server,
    first_in_line,
    has_room,
    hold,
    is_hopeless,
    oldest_hold_s,
    plan,
    take_out,
)
from envs.simulator.clients import ANEW, drop_first, next_client_s, repeats_later, thinks, wait_no_more
from envs.simulator.compiling import compiled, inlined, leaf
from envs.simulator.counting import count_answer, count_attempt, count_failure
from envs.simulator.draws import uniform
from envs.simulator.gate import GAVE_UP, come_in, go_out, refuses
from envs.simulator.queues import (
    accept,
    empty,
    finish_next,
    free_worker,
    hold_worker,
    put_central,
    put_on_way,
    refresh_next,
    set_rate,
    take_central,
    take_from_way,
)
from envs.simulator.rivals import home_of, is_rival, note_rival, pick_rival
from envs.simulator.stages import enter_stage, leave_stage, next_stage

DONE, FULL, PAUSED = range(3)
"""How `advance` ends: everything is played, no slot is free for the next arrival, or a pause for signals is due."""

_EVENTS = 5_000_000
"""Events, a few seconds, after which `advance` returns to Python, where signals are obeyed."""

NOBODY = -1
"""Instead of a slot or a group."""

OK, ERROR, UNAVAILABLE, LOST, REJECTED, TIMED_OUT = 200, 500, 502, 502, 503, 504


@compiled
def advance(lane: Any, until_s: float) -> int:
    """Plays what happens before `until_s`; returns DONE, or FULL or PAUSED when it must be called again to go on."""
    events = 0
    state = lane.state[0]
    while True:
        group, server = earliest(lane.streams), earliest(lane.servers)
        arrival_s, finish_s = lane.streams[group].next_s, lane.servers[server].next_s
        change_s, client_s = lane.behaviours[state.behaviour].at_s, state.next_client_s
        now_s = min(arrival_s, finish_s, change_s, state.next_come_s, client_s)
        if now_s >= until_s:
            break
        if events == _EVENTS:
            return PAUSED
        events += 1
        if min(arrival_s, client_s) == now_s:
            if is_full(lane):
                return FULL
            play_clients(lane, group, now_s)
        else:
            play_servers(lane, server, now_s)
        while state.resend > 0 or state.binding > 0:
            if state.resend > 0:
                state.resend -= 1
                send(lane, lane.resend[state.resend], now_s)
            else:
                state.binding = 0
                bind(lane, now_s)
    state.now_s = until_s
    return DONE


@inlined
def is_full(lane: Any) -> Any:
    """Whether there is no room for one more attempt, or for a repetition by every client that waits."""
    state = lane.state[0]
    crowded = lane.rules[0].clients and state.repeating + len(lane.free) - state.free + 2 > len(lane.repeats)
    return state.free == 0 or crowded


@inlined
def play_clients(lane: Any, group: Any, now_s: float) -> None:
    """A first attempt comes, a client repeats one, or a client gives up."""
    state = lane.state[0]
    coming: Any = NOBODY
    number, first_s = np.int64(0), now_s
    if lane.streams[group].next_s == now_s:
        coming, number = np.int64(group), next_number(lane, group)
    else:
        if state.repeating > 0 and lane.repeats[0].at_s == now_s:
            coming, number, first_s = lane.repeats[0].group, lane.repeats[0].number, lane.repeats[0].first_s
            drop_first(state, lane.repeats)
            if number == ANEW:
                number, first_s = next_of_user(lane, coming), now_s
        else:
            give_up(lane, now_s)
        if oldest_hold_s(lane) <= now_s:
            end_hold(lane, now_s)
        next_s = next_client_s(state, lane.gates, lane.requests, lane.repeats)
        state.next_client_s = min(next_s, oldest_hold_s(lane))
    if coming != NOBODY:
        arrive(lane, coming, number, first_s, now_s)


@compiled
def end_hold(lane: Any, now_s: float) -> None:
    """The request that has been held for too long is answered with 503."""
    slot = take_out(lane, 0)
    if lane.rules[0].trailing and lane.trails[slot].abandoned:
        release_slot(lane, slot)
    else:
        conclude(lane, slot, REJECTED, now_s)


@inlined
def play_servers(lane: Any, server: Any, now_s: float) -> None:
    """A server or a stage has done its work, a request reaches its server, or behaviour changes."""
    state = lane.state[0]
    slot, freed = NOBODY, False
    if lane.servers[server].next_s == now_s:
        slot, freed = finish(lane, server, now_s)
    elif state.next_come_s == now_s:
        queue_to_send(lane, take_from_way(lane))
    else:
        behave(lane, lane.behaviours[state.behaviour])
        state.behaviour += 1
    if slot != NOBODY and not goes_on(lane, slot, now_s):
        freed |= answer(lane, slot, now_s)
    if freed:
        feed(lane)


@inlined
def arrive(lane: Any, group: Any, number: Any, first_s: float, now_s: float) -> None:
    """An attempt comes to NGINX: it enters, or is refused."""
    state, gate, count = lane.state[0], lane.gates[group], lane.counts[group]
    count.offered += 1
    if state.inside >= gate.limit and refuses(gate, count, lane.streams[group], number, now_s):
        if not repeats_later(
            state, gate, lane.streams[group], lane.repeats, group, number, first_s, now_s, gate.retry_refused
        ):
            count.lost_refused += 1
            thinks(state, gate, lane.streams[group], lane.repeats, group, number, now_s)
    else:
        come_in(state, count)
        queue_to_send(lane, new_request(lane, group, number, first_s, now_s))


@inlined
def feed(lane: Any) -> None:
    """A worker is free: the request that has waited longest in the oracle's line is sent again."""
    if lane.state[0].central > 0:
        waited = take_central(lane)
        if waited != NOBODY:
            queue_to_send(lane, waited)


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
def finish(lane: Any, s: Any, now_s: float) -> Any:
    """Work for a request is done at a server or stage: its slot, -1 after a time-out, and whether a worker is free."""
    slot, freed = NOBODY, False
    server = lane.servers[s]
    if s >= lane.state[0].servers:
        slot = leave_stage(lane, s, now_s)
    elif server.hanging:
        time_out(lane, np.int64(s), now_s)
    elif server.blocking and lane.requests[lane.heap_request[s, 0]].status < ERROR:
        slot = hold_worker(lane, s, now_s)
        lane.trails[slot].holding = 1
    else:
        slot, freed = finish_next(lane, s, now_s), True
    return slot, freed


@inlined
def goes_on(lane: Any, slot: Any, now_s: float) -> Any:
    """Lets the request enter the next stage; False when it is ready to be answered."""
    if len(lane.stages) == 0 or lane.requests[slot].status >= ERROR:
        return False
    k = next_stage(lane, slot, now_s)
    if k >= 0:
        enter_stage(lane, k, slot, now_s)
    return k >= 0


@inlined
def answer(lane: Any, slot: Any, now_s: float) -> Any:
    """A server answers; whether a worker that was held is free."""
    request, rules = lane.requests[slot], lane.rules[0]
    status, freed, lost, abandoned = request.status, False, False, False
    if rules.trailing:
        trail, s = lane.trails[slot], request.server
        abandoned, lost = trail.abandoned != 0, trail.epoch != lane.servers[s].epoch
        freed = trail.holding != 0 and not lost
        if freed:
            free_worker(lane, s, now_s)
    if abandoned:
        release_slot(lane, slot)
    else:
        if lost:
            status = LOST
        failed = lost or (status >= 500 and rules.retry_500)
        retry = failed and may_retry(lane, slot)
        end_attempt(lane, slot, status, now_s, failed)
        if retry:
            queue_to_send(lane, slot)
        else:
            conclude(lane, slot, status, now_s)
    return freed


@inlined
def send(lane: Any, slot: Any, now_s: float) -> None:
    """Picks a server for the request and lets it reach it."""
    request = lane.requests[slot]
    there = request.server != NOWHERE
    if not there and holds(lane, slot):
        lane.state[0].binding = 1
        if turned_away(lane, slot, now_s) or not hold(lane, slot):
            conclude(lane, slot, REJECTED, now_s)
    elif not there:
        s = pick(lane, slot, now_s)
        if s >= 0:
            begin_attempt(lane, slot, s, now_s)
            there = lane.rules[0].overhead_s <= 0.0
            if not there:
                put_on_way(lane, slot, now_s)
        elif s != b.WAIT or not put_central(lane, slot):
            conclude(lane, slot, UNAVAILABLE, now_s)
    if there:
        reach(lane, slot, now_s)


@compiled
def turned_away(lane: Any, slot: Any, now_s: float) -> Any:
    """Whether a request that comes is expected to be too late for all that is in flight, held, and comes before it."""
    if lane.rules[0].refuse_factor == np.inf:
        return False
    begin_look(lane, lane.requests[slot].context)
    s = best_server(lane, slot, now_s)
    return s != NOBODY and is_hopeless(lane, slot, s, ahead_of(lane, slot, now_s), now_s)


@inlined
def holds(lane: Any, slot: Any) -> Any:
    """Whether the request waits for a free slot: a first attempt, once service times are known."""
    if lane.rules[0].method != b.LATE_BINDING or not lane.rules[0].learned:
        return False
    tried = np.int64(0)
    for word in range(lane.tried.shape[1]):
        tried |= lane.tried[slot, word]
    return tried == 0


@compiled
def bind(lane: Any, now_s: float) -> None:
    """Sends held requests while a server has a free slot and is the best one for the request that is due."""
    for context in range(len(lane.peers)):
        while begin_look(lane, context) and bind_one(lane, context, now_s):
            pass


@inlined
def bind_one(lane: Any, context: Any, now_s: float) -> bool:
    """Sends the first held request whose best server has a free slot; False for none.

    Requests before it keep waiting for a busy server, which those behind them reckon with.
    """
    for _ in range(lane.rules[0].look_ahead):
        place = first_in_line(lane, context, now_s)
        if place == NOBODY:
            return False
        slot = lane.line[place]
        if lane.rules[0].trailing and lane.trails[slot].abandoned:
            release_slot(lane, take_out(lane, place))
            return True
        s = best_server(lane, slot, now_s)
        if s == NOBODY:
            conclude(lane, take_out(lane, place), UNAVAILABLE, now_s)
            return True
        if is_hopeless(lane, slot, s, 0.0, now_s):
            conclude(lane, take_out(lane, place), REJECTED, now_s)
            return True
        if has_room(lane, context, s):
            queue_to_send(lane, take_out(lane, place))
            begin_attempt(lane, slot, s, now_s)
            if lane.rules[0].overhead_s > 0.0:
                lane.state[0].resend -= 1
                put_on_way(lane, slot, now_s)
            return True
        plan(lane, place, s)
    return False


@inlined
def reach(lane: Any, slot: Any, now_s: float) -> None:
    """The request has reached its server: it is refused, accepted or rejected."""
    s = lane.requests[slot].server
    if lane.rules[0].trailing and lane.trails[slot].abandoned:
        if lane.servers[s].refused or not accept(lane, s, slot, now_s):
            release_slot(lane, slot)
    elif lane.servers[s].refused:
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
    if b.by_service_times(method):
        # Nothing learned yet is worse than least_conn; a second attempt does not wait for a slot.
        method = b.EXPECTED_DELAY if rules.learned else b.LEAST_CONN
    if is_rival(method):
        return pick_rival(lane, slot, now_s)
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
def begin_attempt(lane: Any, slot: Any, s: Any, now_s: float) -> None:
    """Notes the choice, what was predicted of it, and how the server will answer."""
    rules, server, request = lane.rules[0], lane.servers[s], lane.requests[slot]
    if b.by_service_times(rules.method):
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
    if rules.trailing:
        trail = lane.trails[slot]
        trail.epoch, trail.stage, trail.missed, trail.holding = server.epoch, 0, 0, 0
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
        peers = lane.peers[request.context]
        if is_rival(rules.method):
            note_rival(lane, slot, status, failed, now_s)
        home = home_of(peers, rules.method, group, s)
        b.note_result(peers[home, s], failed, b.clock_s(now_s), rules, lane.groups[group].servers == 1)
        peers[group, s].conns -= 1
    if b.by_service_times(rules.method):
        lane.state[0].binding = rules.method == b.LATE_BINDING
        b.note_health(lane.health[request.context, s], status >= 500, failed, now_s, rules)
    if failed:
        lane.tried[slot, s >> 6] |= np.int64(1) << (s & 63)
        request.server = NOWHERE


@inlined
def conclude(lane: Any, slot: Any, status: Any, now_s: float) -> None:
    """Answers the client and forgets the request; the client may repeat what failed."""
    request = lane.requests[slot]
    if status < 400:
        count_answer(lane.tally, request, now_s)
    else:
        count_failure(lane.tally, request)
    leave(lane, slot, status, now_s)
    release_slot(lane, slot)


@inlined
def leave(lane: Any, slot: Any, status: Any, now_s: float) -> None:
    """An attempt that was inside has ended for NGINX and for its client, who may repeat it."""
    state, request = lane.state[0], lane.requests[slot]
    group, number, first_s = request.group, request.number, request.arrival_s
    gate, count = lane.gates[group], lane.counts[group]
    if lane.rules[0].trailing:
        first_s = lane.trails[slot].first_s
    go_out(state, gate, count, status, now_s - request.arrival_s, now_s - first_s)
    if lane.rules[0].clients:
        wait_no_more(gate, lane.trails, slot)
    stream = lane.streams[group]
    if status < 400 or not repeats_later(
        state, gate, stream, lane.repeats, group, number, first_s, now_s, gate.retry_failed
    ):
        if status == GAVE_UP:
            count.lost_gave_up += 1
        elif status >= 400:
            count.lost_failed += 1
        if lane.rules[0].clients:
            thinks(state, gate, stream, lane.repeats, group, number, now_s)


@compiled
def give_up(lane: Any, now_s: float) -> None:
    """The client that has waited longest of a group gives up: NGINX closes the connection, the server works on."""
    for group in range(len(lane.gates)):
        gate = lane.gates[group]
        if gate.head == NOBODY:
            continue
        slot = gate.head
        if lane.requests[slot].arrival_s + gate.patience_s <= now_s:
            if lane.requests[slot].server != NOWHERE:
                end_attempt(lane, slot, GAVE_UP, now_s, False)
            leave(lane, slot, GAVE_UP, now_s)
            lane.trails[slot].abandoned = 1
            break


@compiled
def behave(lane: Any, change: Any) -> None:
    """A server's or a stage's behaviour changes; a crash loses what is in progress there."""
    s, now_s = change.server, change.at_s
    server = lane.servers[s]
    lane.state[0].binding = lane.rules[0].method == b.LATE_BINDING
    if s >= lane.state[0].servers:
        server.speed = change.speed
        set_rate(server, now_s, False)
        refresh_next(lane, s)
        if change.flush:
            lane.stages[s - lane.state[0].servers].hit = 0.0
        return
    crashed = change.refused and not server.refused
    server.speed, server.refused, server.hanging = change.speed, change.refused, change.hanging
    server.error_ratio, server.error_service_s = change.error_ratio, change.error_service_s
    set_rate(server, now_s, lane.rules[0].sharing)
    if crashed:
        server.epoch += 1  # what is at the stages for this server is answered to nobody
        server.held = 0
        for place in range(empty(lane, s)):
            fail(lane, lane.held[place], LOST, now_s)
    refresh_next(lane, s)
    for _ in range(min(lane.state[0].central, 0 if server.refused else server.workers)):
        feed(lane)


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
    if lane.rules[0].trailing and lane.trails[slot].abandoned:
        release_slot(lane, slot)
        return
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
    for s in range(lane.state[0].servers):
        if not lane.peers[request.context, request.group, s].down and not b.has_tried(tried, s):
            tries += 1
    return tries > 1 and (lane.rules[0].retry_post or not lane.groups[request.group].post)
