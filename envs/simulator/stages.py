"""The stages behind the servers: connections with one line in order of arrival, contention, a cache that fills.

In a lane the stages are further rows of `servers`, so that their clocks and heaps are those of the servers.
"""

from __future__ import annotations

import math
from typing import Any

from actuators.contract.script import MAX_CONTENTION
from envs.simulator.clients import NO_SLOT
from envs.simulator.compiling import inlined, leaf
from envs.simulator.draws import uniform, unit_work
from envs.simulator.queues import pop, push, refresh_next, replace_top, virtual_s

VISIT, HIT, WORK, STAGE_DRAWS = range(4)
"""Draws of one attempt at one stage: whether it goes there, whether it hits the cache, and its work."""
STAGES = 4
"""The most stages: an attempt has this many times its draws."""


@leaf
def counter_of(number: Any, k: Any, draw: Any) -> Any:
    """The counter of a draw of an attempt at stage `k`."""
    return (number * STAGES + k) * (STAGE_DRAWS + 1) + draw


@leaf
def hit_share(stage: Any, now_s: Any) -> Any:
    """The cache's share of hits now; it has faded since it was last seen."""
    stage.hit *= math.exp(-(now_s - stage.seen_s) / stage.decay_s)
    stage.seen_s = now_s
    return stage.hit


@inlined
def next_stage(lane: Any, slot: Any, now_s: float) -> Any:
    """The next stage that the request visits, -1 when there is none; a hit of a cache passes a stage by."""
    request, trail = lane.requests[slot], lane.trails[slot]
    group, key = request.group, lane.streams[request.group].stage_key
    found = -1
    for k in range(trail.stage, len(lane.stages)):
        share = lane.visits[group, k]
        if share < 1.0 and uniform(key, counter_of(request.number, k, VISIT)) >= share:
            continue
        trail.missed = 0
        if lane.cached[group, k]:
            if uniform(key, counter_of(request.number, k, HIT)) < hit_share(lane.stages[k], now_s):
                continue
            trail.missed = 1
        found = k
        break
    return found


@inlined
def stage_work_s(lane: Any, k: Any, slot: Any) -> Any:
    """Virtual seconds of work at a stage, drawn when it begins."""
    request, rules, s = lane.requests[slot], lane.rules[0], lane.state[0].servers + k
    key, counter = lane.streams[request.group].stage_key, counter_of(request.number, k, WORK)
    unit = unit_work(rules.work_kind, lane.work_table, rules.sigma, key, counter)
    waiting = lane.servers[s].waiting / lane.servers[s].workers
    return unit * lane.service_s[request.group, s] * min(1.0 + lane.stages[k].contention * waiting, MAX_CONTENTION)


@inlined
def enter_stage(lane: Any, k: Any, slot: Any, now_s: float) -> None:
    """Takes a connection, or the last place in line."""
    s, stage = lane.state[0].servers + k, lane.stages[k]
    server = lane.servers[s]
    lane.trails[slot].stage = k + 1
    if server.busy < server.workers:
        push(lane, s, virtual_s(server, now_s) + stage_work_s(lane, k, slot), slot)
        refresh_next(lane, s)
        return
    lane.trails[slot].behind = NO_SLOT
    if server.waiting == 0:
        stage.head = slot
    else:
        lane.trails[stage.tail].behind = slot
    stage.tail = slot
    server.waiting += 1


@inlined
def leave_stage(lane: Any, s: Any, now_s: float) -> Any:
    """Takes the request whose connection is free next out of a stage, and lets the next in line begin; its slot."""
    k = s - lane.state[0].servers
    server, stage = lane.servers[s], lane.stages[k]
    slot, finish_v = lane.heap_request[s, 0], lane.heap_v[s, 0]
    if server.waiting > 0:
        following = stage.head
        stage.head = lane.trails[following].behind
        server.waiting -= 1
        replace_top(lane, s, finish_v + stage_work_s(lane, k, following), following)
    else:
        pop(lane, s)
    refresh_next(lane, s)
    trail = lane.trails[slot]
    if trail.missed and not trail.abandoned:
        stage.hit = hit_share(stage, now_s) + (stage.most - stage.hit) / stage.fill
    return slot
