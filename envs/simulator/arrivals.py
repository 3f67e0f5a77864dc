"""Arrivals of one request type: piecewise constant rates, one gap draw per request at any rate."""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.simulator.clients import first_thought, wait_for
from envs.simulator.compiling import compiled, inlined, leaf
from envs.simulator.draws import below, uniform, unit_gap, unit_work

NOWHERE = -1
"""`REQUEST.server` before a server is chosen."""


@leaf
def schedule_next(stream: Any, steps: Any, duration_s: float) -> None:
    """Moves `stream.next_s` to the next arrival, infinity when none comes before `duration_s`.

    The drawn gap is used up at the rate of each step that it spans, so that a step into a faster or
    slower rate neither loses nor repeats a draw.
    """
    gap = unit_gap(steps[stream.step], stream.gap_key, stream.drawn)
    time_s = stream.next_s
    while True:
        rate_rps, last = steps[stream.step].rate_rps, stream.step == stream.last_step
        end_s = duration_s if last else steps[stream.step + 1].start_s
        room = rate_rps * (end_s - time_s)
        if gap < room:
            stream.next_s = time_s + gap / rate_rps
            return
        if last:
            stream.next_s = np.inf
            return
        gap, time_s = gap - room, end_s
        stream.step += 1


@compiled
def start(lane: Any) -> None:
    """Draws every stream's first arrival, and the first thought of every user of a closed loop."""
    for group in range(len(lane.streams)):
        schedule_next(lane.streams[group], lane.steps, lane.state[0].duration_s)
        for user in range(lane.gates[group].users):
            first_thought(lane.state[0], lane.gates[group], lane.streams[group], lane.repeats, group, user)


@compiled
def stop(lane: Any) -> None:
    """Ends all arrivals; clients repeat nothing any more."""
    for group in range(len(lane.streams)):
        lane.streams[group].next_s = np.inf
        lane.gates[group].retries = lane.gates[group].users = 0
    lane.state[0].repeating = 0


@inlined
def next_number(lane: Any, group: Any) -> Any:
    """The number of the arrival that is due; schedules the one after it."""
    stream = lane.streams[group]
    number = stream.drawn
    lane.tally.planned[group] += 1
    stream.drawn += 1
    schedule_next(stream, lane.steps, lane.state[0].duration_s)
    return number


@inlined
def next_of_user(lane: Any, group: Any) -> Any:
    """The number of the request that a user of a closed loop sends now."""
    stream = lane.streams[group]
    number = stream.drawn
    lane.tally.planned[group] += 1
    stream.drawn += 1
    return number


@leaf
def kind_of(reached: Any, u: Any) -> Any:
    """The first kind whose cumulated share is above u."""
    low, high = 0, len(reached) - 1
    while low < high:
        middle = (low + high) // 2
        if reached[middle] > u:
            high = middle
        else:
            low = middle + 1
    return low


@inlined
def new_request(lane: Any, group: Any, number: Any, first_s: float, now_s: float) -> Any:
    """Takes a free slot for an attempt that comes in and draws its work and context."""
    state, stream, rules = lane.state[0], lane.streams[group], lane.rules[0]
    state.free -= 1
    slot = lane.free[state.free]
    request = lane.requests[slot]
    request.number, request.group, request.server, request.noted = number, group, NOWHERE, 0
    for word in range(lane.tried.shape[1]):
        lane.tried[slot, word] = 0
    request.arrival_s = now_s
    request.unit = unit_work(rules.work_kind, lane.work_table, rules.sigma, stream.work_key, number)
    request.kind, request.cost = 0, 1.0
    if rules.kinds:
        request.kind = kind_of(lane.kind_reached[group], uniform(stream.kind_key, number))
        request.unit = request.unit * lane.kind_work[group, request.kind]
        request.cost = lane.kind_cost[group, request.kind]
    request.context = 0
    if rules.contexts > 1:
        request.context = below(stream.coin_key, 2 * number + 1, rules.contexts)
    if rules.trailing:
        trail = lane.trails[slot]
        trail.first_s, trail.abandoned, trail.stage, trail.missed, trail.holding = first_s, 0, 0, 0, 0
        if rules.clients:
            wait_for(state, lane.gates[group], lane.trails, slot, now_s)
    return slot


@inlined
def release_slot(lane: Any, slot: Any) -> None:
    """Gives a request's slot back."""
    state = lane.state[0]
    lane.free[state.free] = slot
    state.free += 1
