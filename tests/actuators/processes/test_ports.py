"""Free ports are not those that the system gives to the next connection."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

import pytest

from actuators.errors import ProcessError
from actuators.processes.system import free_port


def test_a_free_port_can_be_had_and_is_none_that_a_connection_may_get() -> None:
    first_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = {free_port() for _ in range(50)}
    assert len(ports) > 40
    assert all(20_000 <= port < first_given for port in ports)
    with socket.create_server(("127.0.0.1", ports.pop())):
        pass


def test_an_address_of_another_machine_is_one_line() -> None:
    with pytest.raises(ProcessError, match=r"cannot listen on 192\.0\.2\.1"):
        free_port("192.0.2.1")


def test_a_port_that_is_not_in_use_yet_is_not_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn again, the second of an NGINX's two ports would be its first."""
    given, draw = free_port(), secrets.choice
    draws = iter([given, given])
    monkeypatch.setattr("secrets.choice", lambda ports: next(draws, None) or draw(ports))
    assert free_port() != given
    assert next(draws, None) is None
