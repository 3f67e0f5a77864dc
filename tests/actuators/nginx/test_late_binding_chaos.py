"""Late binding in an overload whose clients give up, while workers and a server are killed and NGINX reloads.

Requests go on being held and sent, and when traffic has ended nothing is held and no slot is in use.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.control import ServiceTimes
from actuators.contract.late_binding import LateBinding, LateBindingNumbers
from actuators.contract.script import Clients, RateStep, Stream
from actuators.nginx.config import NginxOptions
from actuators.processes.system import children
from actuators.social_network.capacity import ServerPlan
from actuators.statistics.reader import StatusReader
from actuators.statistics.vts import Balancer
from tests.support.live_parts import LiveParts, running_parts
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = [pytest.mark.nginx, pytest.mark.drill, pytest.mark.slow]

RATES_RPS = np.array([11.0, 66.0, 33.0])
"""A tenth more than three workers do whose services take 30 ms."""
WORKERS = 2
SERVICE_S, DEADLINE_S, LONGEST_S = 0.03, 0.15, 5
CLIENTS = Clients(patience_s=4 * DEADLINE_S, retries=1, retry_failed=0.75, retry_refused=0.25, backoff_s=0.1)


def plan(parts: LiveParts) -> ServerPlan:
    return ServerPlan(seed=1, workers=1, service_s=tuple((name, SERVICE_S) for name in parts.topology.request_types))


@pytest.fixture
def parts(short_dir: Path) -> Iterator[LiveParts]:
    """Servers that are slow, two workers before them, and more requests than the servers can answer."""
    options = NginxOptions(method="late_binding", worker_processes=WORKERS, shutdown_timeout_s=1.0)
    with running_parts(short_dir, nginx_options=options) as parts:
        types = parts.topology.request_types
        for server in parts.servers:
            server.play_plan(plan(parts))
        numbers = LateBindingNumbers(longest_hold_s=LONGEST_S, valid_s=3600)
        holding = LateBinding(parts.topology, np.full(3, DEADLINE_S), np.full(3, 2), numbers)
        tau_s = np.full((3, 3), SERVICE_S) * np.array([1.0, 1.01, 1.02])
        parts.nginx.apply(ServiceTimes(parts.topology, tau_s, np.ones(3), holding))
        streams = [Stream(name, (RateStep(0.0, float(rate)),)) for name, rate in zip(types, RATES_RPS, strict=True)]
        parts.load.start(
            parts.nginx.address, parts.topology, streams, seed=1, duration_s=600.0, clients=[CLIENTS] * 3,
            deadlines_s=[DEADLINE_S] * 3,
        )  # fmt: skip
        yield parts


def balancer(parts: LiveParts) -> Balancer:
    """Over a new connection, so that a worker of the newest configuration answers."""
    with StatusReader(parts.nginx.status_url) as reader:
        found = reader.snapshot().balancer
    assert found is not None
    assert found.holding is not None
    assert all(entry.in_line >= 0 for entry in found.holding.groups), found
    assert all(entry.in_flight >= 0 for entry in found.servers), found
    return found


def sums(parts: LiveParts) -> tuple[int, int, int]:
    """Requests that were held, answers, and clients that left while they were held, so far."""
    holding = balancer(parts).holding
    assert holding is not None
    assert holding.state == "holding"
    groups = holding.groups
    return sum(each.held for each in groups), sum(each.answered for each in groups), sum(each.gone for each in groups)


def check_holds(parts: LiveParts) -> None:
    """From now on requests are held and sent, and clients go away meanwhile."""
    before = sums(parts)
    wait_until(lambda: all(now > then + 20 for now, then in zip(sums(parts)[:2], before, strict=False)))
    wait_until(lambda: sums(parts)[2] > before[2])


def kill_workers(parts: LiveParts, most: int = 64) -> None:
    for pid in children(parts.nginx.master_pid)[:most]:
        os.kill(pid, signal.SIGKILL)


def reload(parts: LiveParts) -> None:
    os.kill(parts.nginx.master_pid, signal.SIGHUP)


def reload_and_kill(parts: LiveParts) -> None:
    reload(parts)
    kill_workers(parts)


def revive_server(parts: LiveParts) -> None:
    parts.servers[0].start()
    parts.servers[0].play_plan(plan(parts))


DISASTERS: tuple[tuple[Callable[[LiveParts], None], int], ...] = (
    (lambda parts: kill_workers(parts, 1), 1), (reload, WORKERS), (lambda parts: parts.servers[0].kill(), 0),
    (kill_workers, WORKERS), (revive_server, 0), (reload_and_kill, WORKERS),
)  # fmt: skip
"""Each with how many new workers there will be at least."""


def test_requests_are_held_and_sent_all_the_time_and_nothing_is_left(parts: LiveParts) -> None:
    check_holds(parts)
    for cause, count in DISASTERS:
        old = set(children(parts.nginx.master_pid))
        cause(parts)
        wait_until(lambda old=old, count=count: len(set(children(parts.nginx.master_pid)) - old) >= count)
        check_holds(parts)
    parts.load.stop()
    parts.load.finish(PATIENCE_S)

    def is_empty() -> bool:
        now = balancer(parts)
        assert now.holding is not None
        return not any(each.in_line for each in now.holding.groups) and not any(each.in_flight for each in now.servers)

    wait_until(is_empty, lambda: str(balancer(parts)))
    wait_until(lambda: len(children(parts.nginx.master_pid)) == WORKERS, "old workers have not ended")
    assert is_empty()
    for entry in balancer(parts).holding.groups:  # type: ignore[union-attr]
        longest_ms = next(
            (bound for bound, count in zip(entry.held_buckets.msecs, entry.held_buckets.counters, strict=True)
             if count == entry.held), None,
        )  # fmt: skip
        assert longest_ms is not None
        assert longest_ms <= 2000 * LONGEST_S
