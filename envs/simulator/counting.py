"""Counting: an attempt as nginx-module-vts counts it, an answer as the load engine counts it."""

from __future__ import annotations

from typing import Any

import numpy as np

from actuators.contract.histogram import SIZE, SUB_BUCKETS
from envs.simulator import lane as columns
from envs.simulator.balancers import by_service_times
from envs.simulator.compiling import inlined, leaf

_LAST_BUCKET = SIZE - 1
_TABLE_MS = 60_000
_MANTISSA_BITS, _EXPONENT_BIAS = 52, 1023  # of IEEE 754's binary64
_EXACT_BITS = (2 * SUB_BUCKETS).bit_length() - 2
"""Largest exponent of the values that are exact."""


@leaf
def whole_ms(time_s: float) -> Any:
    """NGINX's cached clock: a response time is the difference of two of these."""
    return int(time_s * 1000.0)


@leaf
def latency_bucket(latency_s: float) -> Any:
    """`actuators.contract.histogram.bucket_of` of a latency in seconds."""
    value = int(latency_s * 1e6)
    # The exponent of a float is the number of bits of a whole number, without a loop whose end nobody can predict.
    bits: Any = np.float64(value).view(np.int64)
    exponent: Any = (bits >> _MANTISSA_BITS) - _EXPONENT_BIAS
    shift = max(exponent - _EXACT_BITS, 0)
    return min(shift * SUB_BUCKETS + (value >> shift), _LAST_BUCKET)


@leaf
def bucket_of_ms(elapsed_ms: Any, table: Any, bounds_ms: Any) -> Any:
    """Histogram column of a response time; bounds are inclusive. The table covers the usual times."""
    if elapsed_ms < len(table):
        return table[elapsed_ms]
    column = len(bounds_ms)
    while column > 0 and elapsed_ms <= bounds_ms[column - 1]:
        column -= 1
    return column


@inlined
def count_attempt(lane: Any, request: Any, status: Any, now_s: float) -> None:
    """One finished attempt at one server."""
    tally, group, s = lane.tally, request.group, request.server
    elapsed_ms = whole_ms(now_s) - whole_ms(request.attempt_s)
    tally.requests[group, s] += 1
    tally.responses[group, s, status // 100 - 1] += 1
    tally.response_ms_sum[group, s] += elapsed_ms
    bucket = bucket_of_ms(elapsed_ms, lane.bucket_table, lane.bounds_ms)
    tally.latency_histogram[group, s, bucket] += 1
    if by_service_times(lane.rules[0].method) and status < 400:  # a failure says nothing of service times
        sums = tally.delay[group, s]
        sums[columns.WAIT_S] += request.wait_s
        sums[columns.TAU_S] += request.tau_s
        if request.idle:
            sums[columns.IDLE] += 1.0
            sums[columns.IDLE_S] += now_s - request.attempt_s
            if lane.rules[0].kinds and request.tau_s > 0.0:
                cost, costs = (now_s - request.attempt_s) / request.tau_s, tally.costs[group, request.kind]
                costs[0] += 1.0
                costs[1] += cost
                costs[2] += cost * cost
        if lane.rules[0].by_in_flight and request.tau_s > 0.0 and request.in_flight < columns.IN_FLIGHT_BINS:
            ahead, took = request.ahead_s / request.tau_s, (now_s - request.attempt_s) / request.tau_s
            row = tally.by_in_flight[s, request.in_flight]
            row[0] += 1.0
            row[1] += ahead
            row[2] += ahead * ahead
            row[3] += took
            row[4] += took * took
            row[5] += ahead * took


@inlined
def count_answer(tally: Any, request: Any, now_s: float) -> None:
    """A good answer, as the client sees it."""
    latency_s = now_s - request.arrival_s
    tally.answered[request.group] += 1
    tally.latency_counts[request.group, latency_bucket(latency_s)] += 1
    tally.latency_s_sum[request.group] += latency_s


@inlined
def count_failure(tally: Any, request: Any) -> None:
    """An answer with an error status, as the client sees it."""
    tally.answered[request.group] += 1
    tally.failed[request.group] += 1


def bucket_table(bounds_ms: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Histogram column of every number of ms to one above the last bound or to a minute; bounds are inclusive."""
    times_ms = np.arange(min(bounds_ms[-1] + 2, _TABLE_MS))
    return np.searchsorted(np.asarray(bounds_ms), times_ms, side="left").astype(np.int64)
