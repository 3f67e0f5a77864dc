"""Prequal: probes in flight, a pool of probes that came back, and the hot-cold lexicographic choice among them.

Source: Wydrowski, Kleinberg, Rumble and Archer, "Load is not what you should balance: Introducing Prequal", NSDI 2024,
sections 4 and 5, with the parameters of its testbed. Where the paper leaves a choice, it is named here. `marks` are
those of one context's one pool, ``[servers]``; `rif` is requests in flight at a server from everywhere.
"""

from __future__ import annotations

from typing import Any

from envs.simulator.compiling import leaf
from envs.simulator.draws import below, uniform

PROBES_PER_QUERY, POOL, LONGEST_AGE_S = 3, 16, 1.0
REMOVED_PER_QUERY = 1
QUANTILE = 2.0**-0.25
"""A server is hot when its requests in flight are above this quantile of recent probes."""
DELTA = 1.0
RING, SEEN = 1024, 64
"""Probes that a context remembers, and those among them that the quantile is of (our choice)."""
BINS, RECENT = 64, 16
"""Of a server: numbers of requests in flight told apart, and latencies kept for each (our choice)."""

SENT, RECEIVED, TURN, COUNTS = range(4)


@leaf
def present_at(server: Any) -> Any:
    """Requests at a server, in service and in line."""
    return server.busy + server.held + server.waiting


@leaf
def note_latency(recent_s: Any, recents: Any, rif: Any, took_s: Any) -> None:
    """An answer of a server to a request that found `rif` requests there; the oldest latency of that number goes."""
    row = min(rif, BINS - 1)
    recent_s[row, recents[row] % RECENT] = took_s
    recents[row] += 1


@leaf
def estimate_s(recent_s: Any, recents: Any, rif: Any) -> Any:
    """Median of the recent latencies at this number of requests in flight, or at the nearest with any; 0 for none."""
    row = min(rif, BINS - 1)
    for distance in range(BINS):
        if row - distance >= 0 and recents[row - distance] > 0:
            return _median(recent_s[row - distance], min(recents[row - distance], RECENT))
        if row + distance < BINS and recents[row + distance] > 0:
            return _median(recent_s[row + distance], min(recents[row + distance], RECENT))
    return 0.0


@leaf
def _median(values: Any, count: Any) -> Any:
    for i in range(count):
        below_it, equal = 0, 0
        for j in range(count):
            below_it += values[j] < values[i]
            equal += values[j] == values[i]
        if below_it <= (count - 1) // 2 < below_it + equal:
            return values[i]
    return values[0]


@leaf
def probe(
    servers: Any, marks: Any, probes: Any, counts: Any, recent_s: Any, recents: Any, now_s: Any, rules: Any, state: Any
) -> None:
    """Sends probes to different servers at random; each reads the server now and comes back `probe_s` later.

    A server that refuses connections or hangs does not answer.
    """
    total = len(marks)
    wanted, asked = min(PROBES_PER_QUERY, total), 0
    for server in range(total):
        # Each is chosen with the probability that leaves `wanted` different ones in the end.
        state.picks += 1
        if below(state.pick_key, state.picks, total - server) >= wanted - asked:
            continue
        asked += 1
        at = servers[server]
        room = counts[SENT] - counts[RECEIVED] < RING - SEEN
        if at.refused or at.hanging or not marks[server].usable or not room:
            continue
        sent = probes[counts[SENT] % RING]
        sent.server, sent.rif, sent.due_s = server, present_at(at), now_s + rules.probe_s
        sent.latency_s = estimate_s(recent_s[server], recents[server], sent.rif)
        counts[SENT] += 1


@leaf
def receive(marks: Any, probes: Any, counts: Any, now_s: Any, state: Any) -> None:
    """Puts what has come back into the pool, in place of an older probe of the server, and drops what is too old."""
    while counts[RECEIVED] < counts[SENT] and probes[counts[RECEIVED] % RING].due_s <= now_s:
        back = probes[counts[RECEIVED] % RING]
        mark = marks[back.server]
        mark.known, mark.rif, mark.latency_s, mark.stamp_s = 1, back.rif, back.latency_s, back.due_s
        mark.uses = uses_of(len(marks), state)
        counts[RECEIVED] += 1
    pooled = 0
    for server in range(len(marks)):
        if marks[server].known and now_s - marks[server].stamp_s > LONGEST_AGE_S:
            marks[server].known = 0
        pooled += marks[server].known
    while pooled > POOL:
        marks[oldest(marks)].known = 0
        pooled -= 1


@leaf
def uses_of(total: Any, state: Any) -> Any:
    """How often a probe is used at most: the paper's reuse budget, rounded at random; a million where it has no end."""
    spare = (1.0 - min(POOL, total) / total) * PROBES_PER_QUERY - REMOVED_PER_QUERY
    if spare <= 0.0:
        return 1_000_000
    budget = max(1.0, (1.0 + DELTA) / spare)
    state.picks += 1
    return int(budget) + (uniform(state.pick_key, state.picks) < budget - int(budget))


@leaf
def oldest(marks: Any) -> Any:
    """The server whose probe is the oldest of the pool; -1 when that is empty."""
    found = -1
    for server in range(len(marks)):
        if marks[server].known and (found < 0 or marks[server].stamp_s < marks[found].stamp_s):
            found = server
    return found


@leaf
def is_hot(rif: Any, probes: Any, counts: Any) -> Any:
    """Whether so many requests in flight are above the quantile of what the latest probes found."""
    seen = min(counts[RECEIVED], SEEN)
    fewer = 0
    for back in range(1, seen + 1):
        fewer += probes[(counts[RECEIVED] - back) % RING].rif < rif
    return seen > 0 and fewer >= QUANTILE * seen


@leaf
def ranks_before(one: Any, one_hot: Any, other: Any, other_hot: Any) -> Any:
    """Cold before hot; among cold ones by latency, among hot ones by requests in flight."""
    if one_hot != other_hot:
        return other_hot
    return one.rif < other.rif if one_hot else one.latency_s < other.latency_s


@leaf
def extreme(marks: Any, probes: Any, counts: Any, worst: Any) -> Any:
    """The best usable server of the pool, or the worst of all; -1 for none."""
    found, found_hot = -1, False
    for server in range(len(marks)):
        mark = marks[server]
        if not mark.known or not (worst or mark.usable):
            continue
        hot = is_hot(mark.rif, probes, counts)
        first, second = (found, server) if worst else (server, found)
        first_hot, second_hot = (found_hot, hot) if worst else (hot, found_hot)
        if found < 0 or ranks_before(marks[first], first_hot, marks[second], second_hot):
            found, found_hot = server, hot
    return found


@leaf
def pick_prequal(marks: Any, probes: Any, counts: Any, now_s: Any, state: Any) -> Any:
    """The best server of the pool, a random one while fewer than two are in it; -1 for none.

    The chosen probe counts one request more, and goes when it has been used often enough; then the worst and the oldest
    probe go by turns, one per query.
    """
    receive(marks, probes, counts, now_s, state)
    pooled, usable = 0, 0
    for server in range(len(marks)):
        pooled += marks[server].known * marks[server].usable
        usable += marks[server].usable
    if usable == 0:
        return -1
    if pooled < 2:
        state.picks += 1
        return _nth_usable(marks, below(state.pick_key, state.picks, usable))
    chosen = extreme(marks, probes, counts, False)
    mark = marks[chosen]
    mark.rif += 1
    mark.uses -= 1
    if mark.uses <= 0:
        mark.known = 0
    counts[TURN] += 1
    out = oldest(marks) if counts[TURN] % 2 == 0 else extreme(marks, probes, counts, True)
    if out >= 0:
        marks[out].known = 0
    return chosen


@leaf
def _nth_usable(marks: Any, which: Any) -> Any:
    for server in range(len(marks)):
        if marks[server].usable:
            if which == 0:
                return server
            which -= 1
    return -1
