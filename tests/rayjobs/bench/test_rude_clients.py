"""Clients that leave and slow ones, before a real NGINX, a server that never answers, and none."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest

from actuators.contract.topology import social_network
from actuators.nginx.config import NginxOptions
from rayjobs.bench.parts.rude_clients import rude_clients
from rayjobs.bench.parts.site import constant_servers, free_address, front
from tests.support.waiting import wait_until


@pytest.mark.nginx
def test_slow_clients_are_answered_and_an_answer_may_come_before_its_client_leaves(short_dir: Path) -> None:
    with (
        constant_servers(short_dir / "servers") as topology,
        front(topology, NginxOptions(method="late_binding"), short_dir / "front") as nginx,
        rude_clients(nginx.address, topology, 50.0, 50.0, patience_s=1.0, seed=1) as told,
    ):
        wait_until(lambda: min(told.get("answered", 0), told.get("early", 0)) > 10, lambda: str(told))
    assert set(told) <= {"answered", "early", "aborted"}


def test_clients_leave_a_server_that_does_not_answer_and_nobody_is_served_where_nobody_listens() -> None:
    topology = social_network()
    with contextlib.closing(socket.create_server(("127.0.0.1", 0), backlog=256)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with rude_clients(address, topology, 50.0, 0.0, patience_s=0.02, seed=1) as told:
            wait_until(lambda: told.get("aborted", 0) > 10, lambda: str(told))
        assert set(told) == {"aborted"}
    with rude_clients(free_address(), topology, 50.0, 50.0, patience_s=0.02, seed=1) as told:
        wait_until(lambda: told.get("refused", 0) > 10, lambda: str(told))
    assert set(told) == {"refused"}
