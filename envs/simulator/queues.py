"""Servers as queues: c workers with a FIFO line, or processor sharing, on a virtual clock per server.

The virtual clock runs at the server's present speed, so that interference affects work in progress while the virtual
finish time of a request in service stays the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.simulator.arrivals import release_slot
from envs.simulator.compiling import inlined, leaf


@leaf
def virtual_s(server: Any, now_s: float) -> Any:
    """The server's virtual clock at `now_s`."""
    return server.clock_v + (now_s - server.clock_s) * server.rate


@leaf
def set_rate(server: Any, now_s: float, sharing: Any) -> None:
    """Fixes the virtual clock at `now_s` and lets it run on at the speed that the load and behaviour give."""
    server.clock_v = virtual_s(server, now_s)
    server.clock_s = now_s
    server.rate = 0.0 if server.hanging else server.speed
    if sharing and server.busy > server.workers:
        server.rate *= server.workers / server.busy


@inlined
def refresh_next(lane: Any, s: Any) -> None:
    """Recomputes the real time of the server's next event: a finish, or a timeout while it hangs."""
    server = lane.servers[s]
    if server.busy == 0:
        server.next_s = np.inf
    elif server.hanging:
        server.next_s = oldest_attempt_s(lane, s) + lane.rules[0].read_timeout_s
    else:
        left_v = lane.heap_v[s, 0] - server.clock_v
        # Most servers work at speed 1, where a division, a tenth of the time of a request, changes nothing.
        server.next_s = server.clock_s + (left_v if server.rate == 1.0 else left_v / server.rate)


@inlined
def oldest_attempt_s(lane: Any, s: Any) -> Any:
    """When the oldest request at the server was sent to it."""
    server = lane.servers[s]
    oldest = np.inf
    for place in range(server.busy):
        oldest = min(oldest, lane.requests[lane.heap_request[s, place]].attempt_s)
    if server.waiting > 0:
        oldest = min(oldest, lane.requests[lane.queue[s, server.head]].attempt_s)
    return oldest


@inlined
def work_s(lane: Any, s: Any, slot: Any) -> Any:
    """Virtual seconds of work that the request means for this server."""
    request, server = lane.requests[slot], lane.servers[s]
    if request.status >= 500:
        return server.error_service_s * server.speed
    return request.unit * lane.service_s[request.group, s]


@inlined
def accept(lane: Any, s: Any, slot: Any, now_s: float) -> bool:
    """Puts the request in service or in line; False when the line is full."""
    server, sharing = lane.servers[s], lane.rules[0].sharing
    if server.busy + server.held < server.workers + sharing * server.limit:
        push(lane, s, virtual_s(server, now_s) + work_s(lane, s, slot), slot)
        if sharing:
            set_rate(server, now_s, sharing)
        if not server.hanging or server.busy == 1:
            refresh_next(lane, s)
        return True
    if sharing or server.waiting >= server.limit:
        return False
    place = server.head + server.waiting
    lane.queue[s, place if place < server.limit else place - server.limit] = slot
    server.waiting += 1
    return True


@inlined
def finish_next(lane: Any, s: Any, now_s: float) -> Any:
    """Takes the request that finishes next out of service and starts the next in line; returns its slot."""
    server, sharing = lane.servers[s], lane.rules[0].sharing
    slot, finish_v = lane.heap_request[s, 0], lane.heap_v[s, 0]
    if server.waiting > 0:
        following = lane.queue[s, server.head]
        server.head = server.head + 1 if server.head + 1 < server.limit else 0
        server.waiting -= 1
        replace_top(lane, s, finish_v + work_s(lane, s, following), following)
    else:
        pop(lane, s)
    if sharing:
        set_rate(server, now_s, sharing)
    refresh_next(lane, s)
    return slot


@inlined
def hold_worker(lane: Any, s: Any, now_s: float) -> Any:
    """Takes the request that finishes next out of service; its worker is held until `free_worker`."""
    server = lane.servers[s]
    slot = lane.heap_request[s, 0]
    pop(lane, s)
    server.held += 1
    if lane.rules[0].sharing:
        set_rate(server, now_s, True)
    refresh_next(lane, s)
    return slot


@inlined
def free_worker(lane: Any, s: Any, now_s: float) -> None:
    """A held worker is free; the next in line begins."""
    server = lane.servers[s]
    server.held -= 1
    if server.waiting > 0:
        following = lane.queue[s, server.head]
        server.head = server.head + 1 if server.head + 1 < server.limit else 0
        server.waiting -= 1
        push(lane, s, virtual_s(server, now_s) + work_s(lane, s, following), following)
        if not server.hanging or server.busy == 1:
            refresh_next(lane, s)


@inlined
def push(lane: Any, s: Any, key: float, slot: Any) -> None:
    """Adds to the server's binary heap."""
    keys, slots = lane.heap_v, lane.heap_request
    place = lane.servers[s].busy
    lane.servers[s].busy += 1
    while place > 0:
        parent = (place - 1) >> 1
        if keys[s, parent] <= key:
            break
        keys[s, place], slots[s, place] = keys[s, parent], slots[s, parent]
        place = parent
    keys[s, place], slots[s, place] = key, slot


@inlined
def pop(lane: Any, s: Any) -> None:
    """Removes the top of the server's binary heap."""
    lane.servers[s].busy -= 1
    last = lane.servers[s].busy
    if last > 0:
        replace_top(lane, s, lane.heap_v[s, last], lane.heap_request[s, last])


@inlined
def replace_top(lane: Any, s: Any, key: float, slot: Any) -> None:
    """Puts another request in place of the top of the server's binary heap."""
    keys, slots, busy = lane.heap_v, lane.heap_request, lane.servers[s].busy
    place = 0
    while True:
        child = 2 * place + 1
        if child >= busy:
            break
        if child + 1 < busy and keys[s, child + 1] < keys[s, child]:
            child += 1
        if keys[s, child] >= key:
            break
        keys[s, place], slots[s, place] = keys[s, child], slots[s, child]
        place = child
    keys[s, place], slots[s, place] = key, slot


@inlined
def empty(lane: Any, s: Any) -> Any:
    """Takes everything out of the server, in service and waiting; fills `lane.held`, returns how many."""
    server = lane.servers[s]
    count = 0
    for place in range(server.busy):
        lane.held[count] = lane.heap_request[s, place]
        count += 1
    for waiting in range(server.waiting):
        lane.held[count] = lane.queue[s, (server.head + waiting) % server.limit]
        count += 1
    server.busy, server.waiting, server.head = 0, 0, 0
    server.next_s = np.inf
    return count


@inlined
def put_central(lane: Any, slot: Any) -> bool:
    """The oracle's one line for all servers; False when it is full."""
    state, room = lane.state[0], len(lane.central)
    busy = 0
    for s in range(state.servers):
        busy += lane.servers[s].workers
    if state.central + busy >= state.central_room:
        return False
    lane.central[(state.central_head + state.central) % room] = slot
    state.central += 1
    return True


@inlined
def take_central(lane: Any) -> Any:
    """The request that has waited longest in the oracle's line; -1 when the clients of all that wait gave up."""
    state = lane.state[0]
    found = -1
    while found < 0 and state.central > 0:
        slot = lane.central[state.central_head]
        state.central_head = (state.central_head + 1) % len(lane.central)
        state.central -= 1
        if lane.rules[0].trailing and lane.trails[slot].abandoned:
            release_slot(lane, slot)
        else:
            found = slot
    return found


@inlined
def put_on_way(lane: Any, slot: Any, now_s: float) -> None:
    """The request is on its way to its server; all ways are equally long, so that they end in order."""
    state = lane.state[0]
    lane.on_way[(state.way_head + state.on_way) % len(lane.on_way)] = slot
    if state.on_way == 0:
        state.next_come_s = now_s + lane.rules[0].overhead_s
    state.on_way += 1


@inlined
def take_from_way(lane: Any) -> Any:
    """The request that has reached its server."""
    state = lane.state[0]
    slot = lane.on_way[state.way_head]
    state.way_head = (state.way_head + 1) % len(lane.on_way)
    state.on_way -= 1
    state.next_come_s = np.inf
    if state.on_way > 0:
        state.next_come_s = lane.requests[lane.on_way[state.way_head]].attempt_s + lane.rules[0].overhead_s
    return slot
