"""Clients that give up after a time and repeat attempts: a list of open attempts per group, a heap of repetitions.

The patience of a group is constant, so that its attempts are given up in the order in which they came. Users of a
closed loop are in the same heap while they think.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from envs.simulator.compiling import leaf
from envs.simulator.draws import uniform
from envs.simulator.gate import CLIENT_DRAWS, PAUSE, REPEAT

ATTEMPT_BITS = 40
"""An attempt's number is the request's, and above these bits which attempt of it it is, from 0: every attempt has draws
of its own."""
NO_SLOT = -1
ANEW = -1
"""In place of an attempt's number in the heap: a user of a closed loop sends its next request."""
LONGEST_THOUGHT = 10.0
"""A think time in means, at most: as TPC-W cuts its exponential ones."""


@leaf
def wait_for(state: Any, gate: Any, trails: Any, slot: Any, now_s: Any) -> None:
    """The client begins to wait for an attempt."""
    trail = trails[slot]
    trail.before, trail.after = gate.tail, NO_SLOT
    if gate.tail == NO_SLOT:
        gate.head = slot
    else:
        trails[gate.tail].after = slot
    gate.tail = slot
    state.next_client_s = min(state.next_client_s, now_s + gate.patience_s)


@leaf
def wait_no_more(gate: Any, trails: Any, slot: Any) -> None:
    """The attempt has ended, or was given up."""
    trail = trails[slot]
    if trail.before == NO_SLOT:
        gate.head = trail.after
    else:
        trails[trail.before].after = trail.after
    if trail.after == NO_SLOT:
        gate.tail = trail.before
    else:
        trails[trail.after].before = trail.before


@leaf
def next_client_s(state: Any, gates: Any, requests: Any, repeats: Any) -> Any:
    """When a client gives up or repeats next."""
    next_s = np.inf
    if state.repeating > 0:
        next_s = repeats[0].at_s
    for group in range(len(gates)):
        if gates[group].head != NO_SLOT:
            next_s = min(next_s, requests[gates[group].head].arrival_s + gates[group].patience_s)
    return next_s


@leaf
def repeats_later(
    state: Any, gate: Any, stream: Any, repeats: Any, group: Any, number: Any, first_s: Any, now_s: Any, chance: Any
) -> bool:
    """Whether the client makes another attempt; then it is scheduled."""
    if number >> ATTEMPT_BITS >= gate.retries or uniform(stream.client_key, CLIENT_DRAWS * number + REPEAT) >= chance:
        return False
    pause_s = gate.backoff_s * (0.5 + uniform(stream.client_key, CLIENT_DRAWS * number + PAUSE))
    comes_at(state, repeats, now_s + pause_s, first_s, group, number + (1 << ATTEMPT_BITS))
    return True


@leaf
def thinks(state: Any, gate: Any, stream: Any, repeats: Any, group: Any, number: Any, now_s: Any) -> None:
    """A user of a closed loop thinks after request `number`, or before its first one; nobody does without users.

    The gaps of the group draw nothing, so that their key is free: the first draws are of the users' first thoughts.
    """
    if gate.users > 0:
        request = number & ((1 << ATTEMPT_BITS) - 1)
        thought = min(-math.log(uniform(stream.gap_key, gate.users + request)), LONGEST_THOUGHT)
        comes_at(state, repeats, now_s + gate.think_s * thought, 0.0, group, ANEW)


@leaf
def first_thought(state: Any, gate: Any, stream: Any, repeats: Any, group: Any, user: Any) -> None:
    """A user's time until its first request."""
    thought = min(-math.log(uniform(stream.gap_key, user)), LONGEST_THOUGHT)
    comes_at(state, repeats, gate.think_s * thought, 0.0, group, ANEW)


@leaf
def comes_at(state: Any, repeats: Any, at_s: Any, first_s: Any, group: Any, number: Any) -> None:
    """Puts an attempt that will come into the heap, which has room for it."""
    place = state.repeating
    state.repeating += 1
    while place > 0:
        parent = (place - 1) >> 1
        if repeats[parent].at_s <= at_s:
            break
        copy_repeat(repeats, place, parent)
        place = parent
    repeat = repeats[place]
    repeat.at_s, repeat.first_s, repeat.group, repeat.number = at_s, first_s, group, number
    state.next_client_s = min(state.next_client_s, at_s)


@leaf
def copy_repeat(repeats: Any, to: Any, origin: Any) -> None:
    """Copies one place of the heap."""
    one, other = repeats[to], repeats[origin]
    one.at_s, one.first_s, one.group, one.number = other.at_s, other.first_s, other.group, other.number


@leaf
def drop_first(state: Any, repeats: Any) -> None:
    """Takes the repetition that is due from the heap."""
    state.repeating -= 1
    last, place = state.repeating, 0
    key = repeats[last].at_s
    while True:
        child = 2 * place + 1
        if child >= last:
            break
        if child + 1 < last and repeats[child + 1].at_s < repeats[child].at_s:
            child += 1
        if repeats[child].at_s >= key:
            break
        copy_repeat(repeats, place, child)
        place = child
    copy_repeat(repeats, place, last)
