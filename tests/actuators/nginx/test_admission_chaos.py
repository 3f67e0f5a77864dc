"""Admission under an overload whose clients give up, while workers are killed, NGINX reloads and our process dies:
protection goes on, and nothing is counted as inside when traffic has ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from actuators.contract.admission import Admission
from actuators.contract.script import Clients, RateStep, Stream
from actuators.nginx.admission_endpoint import to_text
from actuators.nginx.config import NginxOptions
from actuators.processes.system import children
from actuators.social_network.capacity import ServerPlan
from actuators.statistics.reader import StatusReader
from actuators.statistics.vts import AdmissionStatus
from tests.support.live_parts import LiveParts, running_parts
from tests.support.paths import ROOT
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = [pytest.mark.nginx, pytest.mark.drill, pytest.mark.slow]

RATES_RPS = np.array([15.0, 90.0, 45.0])
"""Half as much again as three workers do whose services take 30 ms."""
WORKERS = 2
SERVICE_S, DEADLINE_S = 0.03, 0.15
CLIENTS = Clients(patience_s=2 * DEADLINE_S, retries=2, retry_failed=0.75, retry_refused=0.25, backoff_s=0.1)

SETTING = """
import sys
from actuators.nginx.admission_endpoint import AdmissionEndpoint, from_text
from actuators.contract.topology import social_network
url, token, *servers = sys.argv[1:]
topology, text = social_network(tuple(servers)), sys.stdin.read()
endpoint = AdmissionEndpoint(url, token, topology)
while True:
    endpoint.put(from_text(text, topology))
    print("set", flush=True)
"""
"""A process of ours that sets the rule again and again, so that it is killed in the middle of a change."""


@pytest.fixture(params=["memory", "reload"])
def parts(request: pytest.FixtureRequest, short_dir: Path) -> Iterator[LiveParts]:
    """Servers that are slow, two workers before them, and more requests than the servers can answer."""
    actuation: Literal["memory", "reload"] = request.param
    options = NginxOptions(admission=True, worker_processes=WORKERS, actuation=actuation, shutdown_timeout_s=1.0)
    with running_parts(short_dir, nginx_options=options) as parts:
        types = parts.topology.request_types
        for server in parts.servers:
            server.play_plan(ServerPlan(seed=1, workers=1, service_s=tuple((name, SERVICE_S) for name in types)))
        streams = [Stream(name, (RateStep(0.0, float(rate)),)) for name, rate in zip(types, RATES_RPS, strict=True)]
        parts.load.start(
            parts.nginx.address, parts.topology, streams, seed=1, duration_s=300.0, clients=[CLIENTS] * 3,
            deadlines_s=[DEADLINE_S] * 3,
        )  # fmt: skip
        yield parts


def status(parts: LiveParts) -> AdmissionStatus:
    """Over a new connection, so that a worker of the newest configuration answers."""
    with StatusReader(parts.nginx.status_url) as reader:
        balancer = reader.snapshot().balancer
    assert balancer is not None
    assert balancer.admission is not None
    return balancer.admission


def check_protected(parts: LiveParts) -> None:
    """From now on requests are refused, late ones are seen and the limits move both ways."""
    before, moves = status(parts), set[int]()
    multiples = [before.multiple]

    def protects() -> bool:
        now = status(parts)
        assert all(entry.in_flight >= 0 for entry in now.groups), now
        multiples.append(now.multiple)
        moves.add(int(np.sign(multiples[-1] - multiples[-2])))
        refused = sum(entry.refused for entry in now.groups) > sum(entry.refused for entry in before.groups)
        limited = all(entry.limit is not None for entry in now.groups)
        return refused and limited and moves >= {-1, 1}

    wait_until(protects)


def set_by_a_process_that_is_killed(parts: LiveParts) -> None:
    nginx, idle_s = parts.nginx, np.full(3, SERVICE_S)
    rule = Admission(parts.topology, "aimd_thresh", np.full(3, DEADLINE_S), np.ones(3), idle_s, RATES_RPS / 2)
    command = [sys.executable, "-c", SETTING, nginx.admission_url, nginx.token, *parts.topology.servers]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(to_text(rule))
        process.stdin.close()
        for _ in range(20):
            assert process.stdout.readline() == "set\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL


def kill_workers(parts: LiveParts, most: int = 64) -> None:
    for pid in children(parts.nginx.master_pid)[:most]:
        os.kill(pid, signal.SIGKILL)


def reload(parts: LiveParts) -> None:
    os.kill(parts.nginx.master_pid, signal.SIGHUP)


def reload_and_kill(parts: LiveParts) -> None:
    reload(parts)
    kill_workers(parts)


DISASTERS: tuple[tuple[Callable[[LiveParts], None], int], ...] = (
    (lambda parts: kill_workers(parts, 1), 1), (reload, WORKERS), (kill_workers, WORKERS), (reload_and_kill, WORKERS),
)  # fmt: skip
"""Each with how many new workers there will be at least."""


def test_protection_goes_on_and_nothing_is_left_inside(parts: LiveParts) -> None:
    set_by_a_process_that_is_killed(parts)
    check_protected(parts)
    for cause, count in DISASTERS:
        old = set(children(parts.nginx.master_pid))
        cause(parts)
        wait_until(lambda old=old, count=count: len(set(children(parts.nginx.master_pid)) - old) >= count)
        check_protected(parts)
    parts.load.stop()
    client = parts.load.finish(PATIENCE_S)
    assert client.repeated.sum() > 0
    assert client.errors["timeout"].sum() > 0, "clients gave up, too"
    wait_until(lambda: [entry.in_flight for entry in status(parts).groups] == [0, 0, 0], lambda: str(status(parts)))
    wait_until(lambda: len(children(parts.nginx.master_pid)) == WORKERS, "old workers have not ended")
    assert [entry.in_flight for entry in status(parts).groups] == [0, 0, 0]
