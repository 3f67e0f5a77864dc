"""NGINX's balancing methods, exactly, and `expected_delay`: which server gets a request.

Sources: ngx_http_upstream_round_robin.c, ngx_http_upstream_least_conn_module.c and ngx_http_upstream_random_module.c of
NGINX 1.22. `peers` is one group of one context, ``[servers]``.
"""

from __future__ import annotations

import math
from typing import Any

from envs.simulator.compiling import leaf
from envs.simulator.draws import below

ROUND_ROBIN, LEAST_CONN, RANDOM_TWO, EXPECTED_DELAY, SHORTEST_DELAY, JOIN_SHORTEST, CENTRAL_QUEUE, LATE_BINDING = range(
    8
)
METHOD_CODES = {
    "round_robin": ROUND_ROBIN, "least_conn": LEAST_CONN, "random_two": RANDOM_TWO, "expected_delay": EXPECTED_DELAY,
    "shortest_delay": SHORTEST_DELAY, "join_shortest": JOIN_SHORTEST, "central_queue": CENTRAL_QUEUE,
    "late_binding": LATE_BINDING,
}  # fmt: skip

WAIT = -2
"""What the central queue picks while every worker is busy."""

EPOCH_S = 1_000_000
"""NGINX's clock at simulated time 0; only its being large matters (passive failure memory begins at 0)."""

_RANDOM_TRIES = 20
_FORGOTTEN = 1e-6


@leaf
def by_service_times(method: Any) -> Any:
    """Whether a method goes by learned service times, and windows tell what they are learned from."""
    return method in (EXPECTED_DELAY, LATE_BINDING)


@leaf
def clock_s(now_s: float) -> Any:
    """NGINX's cached time in whole seconds."""
    return int(now_s) + EPOCH_S


@leaf
def has_tried(tried: Any, server: Any) -> Any:
    """Whether the request has tried the server; `tried` holds a bit per server in words of 64."""
    return (tried[server >> 6] >> (server & 63)) & 1 != 0


@leaf
def usable(peer: Any, server: Any, tried: Any, clock: Any, rules: Any) -> bool:
    """False when NGINX passes over the peer: down, tried by this request, or failed and not yet forgiven."""
    if peer.down or has_tried(tried, server):
        return False
    failed = rules.max_fails > 0 and peer.fails >= rules.max_fails
    return not (failed and clock - peer.checked <= rules.fail_timeout_s)


@leaf
def _recover(peer: Any) -> None:
    if peer.effective < peer.weight:
        peer.effective += 1


@leaf
def _check_again(peer: Any, clock: Any, rules: Any) -> None:
    if clock - peer.checked > rules.fail_timeout_s:
        peer.checked = clock


@leaf
def pick_round_robin(peers: Any, tried: Any, clock: Any, rules: Any) -> Any:
    """Smooth weighted round robin; -1 when no peer is usable."""
    best, total, highest = -1, 0, 0
    for server in range(len(peers)):
        peer = peers[server]
        if not usable(peer, server, tried, clock, rules):
            continue
        peer.current += peer.effective
        total += peer.effective
        _recover(peer)
        if best < 0 or peer.current > highest:
            best, highest = server, peer.current
    if best >= 0:
        peers[best].current -= total
        _check_again(peers[best], clock, rules)
    return best


@leaf
def pick_least_conn(peers: Any, tried: Any, clock: Any, rules: Any) -> Any:
    """Fewest connections per weight, ties by smooth weighted round robin among the tied; -1 for none."""
    best, many = -1, False
    for server in range(len(peers)):
        peer = peers[server]
        if not usable(peer, server, tried, clock, rules):
            continue
        if best < 0:
            best = server
            continue
        mine, theirs = peer.conns * peers[best].weight, peers[best].conns * peer.weight
        if mine < theirs:
            best, many = server, False
        elif mine == theirs:
            many = True
    if best >= 0:
        if many:
            best = _among_tied(peers, best, tried, clock, rules)
        _check_again(peers[best], clock, rules)
    return best


@leaf
def _among_tied(peers: Any, first: Any, tried: Any, clock: Any, rules: Any) -> Any:
    # As NGINX: every candidate is compared with the best so far, which is as good as the first.
    best, total = first, 0
    for server in range(first, len(peers)):
        peer = peers[server]
        if peer.conns * peers[best].weight != peers[best].conns * peer.weight:
            continue
        if not usable(peer, server, tried, clock, rules):
            continue
        peer.current += peer.effective
        total += peer.effective
        _recover(peer)
        if peer.current > peers[best].current:
            best = server
    peers[best].current -= total
    return best


@leaf
def pick_random_two(peers: Any, tried: Any, clock: Any, rules: Any, state: Any) -> Any:
    """Two different peers drawn by weight, the one with fewer connections per weight; round robin after 20 tries."""
    total = 0
    for server in range(len(peers)):
        total += peers[server].weight
    previous = -1
    for _ in range(_RANDOM_TRIES + 1):
        left = below(state.pick_key, state.picks, total)
        state.picks += 1
        server = 0
        while left >= peers[server].weight:
            left -= peers[server].weight
            server += 1
        peer = peers[server]
        if server == previous or not usable(peer, server, tried, clock, rules):
            continue
        if previous < 0:
            previous = server
            continue
        if peer.conns * peers[previous].weight > peers[previous].conns * peer.weight:
            server = previous
        _check_again(peers[server], clock, rules)
        return server
    return pick_round_robin(peers, tried, clock, rules)


@leaf
def predicted_wait_s(peers: Any, server: Any, tau_s: Any, workers: Any, balancers: Any) -> Any:
    """Rule B's wait at a server from the work in flight of all groups of one context, scaled to all contexts.

    `peers` is `[groups, servers]`; nothing waits while fewer requests than workers are in flight.
    """
    in_flight, work_s = 0.0, 0.0
    for group in range(len(peers)):
        conns = peers[group, server].conns
        in_flight += conns
        work_s += conns * tau_s[group, server]
    in_flight *= balancers
    if in_flight < workers:
        return 0.0
    return work_s * balancers / in_flight * (in_flight - workers + 1.0) / workers


@leaf
def mean_ahead_s(peers: Any, server: Any, tau_s: Any) -> Any:
    """Mean service time of what is in flight at a server over all groups of one context; 0 when nothing is."""
    in_flight, work_s = 0, 0.0
    for group in range(len(peers)):
        conns = peers[group, server].conns
        in_flight += conns
        work_s += conns * tau_s[group, server]
    return work_s / in_flight if in_flight > 0 else 0.0


@leaf
def pick_expected_delay(
    peers: Any, group: Any, tried: Any, now_s: Any, rules: Any, state: Any, tau_s: Any, workers: Any, health: Any
) -> Any:
    """Least predicted wait + beta x service time + cost of errors; exact ties at random; -1 for none."""
    best, lowest, ties = -1, 0.0, 1
    for server in range(len(health)):
        if peers[group, server].down or has_tried(tried, server) or health[server].out_until > clock_s(now_s):
            continue
        score = predicted_wait_s(peers, server, tau_s, workers[server], rules.balancers)
        score += rules.beta * tau_s[group, server]
        if health[server].errors > 0.0:
            age_s = now_s - health[server].error_s
            score += rules.error_cost_s * health[server].errors * math.exp(-age_s / rules.error_memory_s)
        if best < 0 or score < lowest:
            best, lowest, ties = server, score, 1
        elif score == lowest:
            ties += 1
            state.picks += 1
            if below(state.pick_key, state.picks, ties) == 0:
                best = server
    return best


@leaf
def pick_oracle(
    method: Any, peers: Any, group: Any, rules: Any, state: Any, service_s: Any, servers: Any, tried: Any
) -> Any:
    """Reference rules that see what no balancer sees: all contexts' requests and the present true speeds.

    `peers` is `[contexts, groups, servers]`. Shortest delay is rule B (beta 1) with true service times
    and error ratios;
    the central queue gives a request to the fastest server with a free worker, or lets it wait.
    """
    best, lowest, ties, alive = -1, 0.0, 1, False
    for server in range(peers.shape[2]):
        if peers[0, group, server].down or has_tried(tried, server) or servers[server].refused:
            continue
        alive = True
        workers = servers[server].workers
        if method == CENTRAL_QUEUE and (
            servers[server].busy + servers[server].held >= workers or servers[server].hanging
        ):
            continue
        score = _oracle_score(method, peers, group, server, service_s, workers)
        if method != JOIN_SHORTEST:
            score /= servers[server].speed
        if method == SHORTEST_DELAY:
            score += rules.error_cost_s * servers[server].error_ratio
        if best < 0 or score < lowest:
            best, lowest, ties = server, score, 1
        elif score == lowest:
            ties += 1
            state.picks += 1
            if below(state.pick_key, state.picks, ties) == 0:
                best = server
    return WAIT if best < 0 and alive and method == CENTRAL_QUEUE else best


@leaf
def _oracle_score(method: Any, peers: Any, group: Any, server: Any, service_s: Any, workers: Any) -> Any:
    score = service_s[group, server]
    if method == CENTRAL_QUEUE:
        return score
    in_flight, work_s = 0.0, 0.0
    for context in range(len(peers)):
        for kind in range(peers.shape[1]):
            conns = peers[context, kind, server].conns
            in_flight += conns
            work_s += conns * service_s[kind, server]
    if method == JOIN_SHORTEST:
        return in_flight
    if in_flight >= workers:
        score += work_s / in_flight * (in_flight - workers + 1.0) / workers
    return score


@leaf
def note_result(peer: Any, failed: Any, clock: Any, rules: Any, alone: Any) -> None:
    """What NGINX remembers of how an attempt ended (free_round_robin_peer)."""
    if not alone:
        if failed:
            peer.fails += 1
            peer.accessed = clock
            peer.checked = clock
            if rules.max_fails > 0:
                peer.effective = max(peer.effective - peer.weight // rules.max_fails, 0)
        elif peer.accessed < peer.checked:
            peer.fails = 0


@leaf
def note_health(health: Any, error: Any, failed: Any, now_s: Any, rules: Any) -> None:
    """`expected_delay`'s error score of a server after an answer, and its pause after a failed connection."""
    decayed = health.errors * math.exp(-(now_s - health.error_s) / rules.error_memory_s) if health.errors > 0.0 else 0.0
    if error or decayed > 0.0:
        score = decayed + rules.error_gain * ((1.0 if error else 0.0) - decayed)
        health.errors = score if score > _FORGOTTEN else 0.0
        health.error_s = now_s
    if failed and rules.max_fails > 0:
        health.out_until = clock_s(now_s) + rules.fail_timeout_s


@leaf
def reset_round_robin(peers: Any) -> None:
    """Forgets the position of smooth weighted round robin in one group."""
    for server in range(len(peers)):
        peers[server].current = 0
        peers[server].effective = peers[server].weight


@leaf
def forget_all(peers: Any) -> None:
    """A reload: new workers count connections from 0 and know of no failure."""
    reset_round_robin(peers)
    for server in range(len(peers)):
        peers[server].conns = 0
        peers[server].fails = 0
        peers[server].accessed = 0
        peers[server].checked = 0
