"""The gate at NGINX: which request may enter, what is inside, and how what was inside ended (docs/admission.md)."""

from __future__ import annotations

from typing import Any

from envs.simulator.compiling import leaf
from envs.simulator.draws import uniform

GAVE_UP = 499
"""NGINX's status of a request whose client has closed the connection."""

REPEAT, PAUSE, PERCENT, CLIENT_DRAWS = range(4)
"""Draws of one attempt: whether it is repeated, after which pause, and whether it may be refused."""


@leaf
def refuses(gate: Any, count: Any, stream: Any, number: Any, now_s: Any) -> bool:
    """Whether a request that is over its limit is refused; it has been counted as offered."""
    if gate.rate_rps > 0.0:
        gate.tokens = min(gate.burst, gate.tokens + gate.rate_rps * (now_s - gate.filled_s))
        gate.filled_s = now_s
        if gate.tokens >= 1.0:
            gate.tokens -= 1.0
            return False
        count.refused += 1
        return True
    offered = gate.offered + (count.offered - gate.offered_before)
    refused = gate.refused + (count.refused - gate.refused_before)
    if gate.percent < 100.0:
        drawn = uniform(stream.client_key, CLIENT_DRAWS * number + PERCENT)
        if drawn * 100.0 >= gate.percent:
            count.spared += 1
            return False
    if refused + 1.0 > gate.most_refused * offered:
        count.spared += 1
        return False
    count.refused += 1
    return True


@leaf
def come_in(state: Any, count: Any) -> None:
    """One more is inside."""
    count.inside += 1
    state.inside += 1
    state.peak = max(state.peak, state.inside)


@leaf
def go_out(state: Any, gate: Any, count: Any, status: Any, elapsed_s: Any, since_first_s: Any) -> None:
    """One that was inside has ended: what NGINX counts for its limits, and what the client got."""
    count.inside -= 1
    state.inside -= 1
    if status == GAVE_UP:
        count.gave_up += 1
    late = elapsed_s > gate.deadline_s
    if (status >= 500 and elapsed_s < gate.idle_s) or (status == GAVE_UP and not late):
        count.quick += 1
        return
    if status >= 500:
        count.failed += 1
    elif late:
        count.late += 1
    count.finished += 1
    count.response_s += elapsed_s
    if status < 400:
        if elapsed_s <= gate.due_s:
            count.good += 1
            if since_first_s <= gate.due_s:
                count.good_first += 1
        else:
            count.slow += 1
