"""Weights of a external NGINX are confirmed by what its statistics show, also behind host names."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from actuators.contract.topology import Group, Topology
from actuators.errors import ActuationError, StatusError
from actuators.external.config_editor import ServerEdit
from actuators.external.config_reader import ServerLine
from actuators.external.nginx import confirm_weights
from actuators.statistics.vts import parse
from tests.support.vts_documents import document

SERVERS = ("app.local:8080", "10.0.0.9", "unix:/run/a.sock", "[2001:db8::9]:81", "gone.local:1")
ADDRESSES = {"app.local": ("10.0.0.1", "10.0.0.2", "2001:db8::1"), "10.0.0.9": ("10.0.0.9",)}


@pytest.fixture(autouse=True)
def _names(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(host: str, port: str, **_: Any) -> list[tuple[Any, ...]]:
        if host not in ADDRESSES and ":" not in host:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(0, 0, 0, "", (address, int(port))) for address in ADDRESSES.get(host, (host,))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


def confirm(shown: dict[str, int], servers: tuple[str, ...] = SERVERS, group: str = "g") -> None:
    """Wanted are the weights 5, 3, 2, 7, 4."""
    topology = Topology((Group(group, "t", "GET", "/", 2.0, servers),))
    statistics = document("before_load")
    statistics["upstreamZones"] = {
        "g": [{"server": name, "weight": weight, "requestCounter": 0} for name, weight in shown.items()]
    }
    edits = [
        ServerEdit(ServerLine(group, server, Path("a.conf"), 1, 0, ()), weight, down=False)
        for server, weight in zip(servers, (5, 3, 2, 7, 4), strict=False)
    ]
    confirm_weights(edits, topology, parse(statistics), where="http://here/status")


def test_every_address_of_a_host_name_has_the_weight_of_its_line() -> None:
    right = {
        "10.0.0.1:8080": 5, "10.0.0.2:8080": 5, "[2001:db8::1]:8080": 5, "10.0.0.9:80": 3, "unix:/run/a.sock": 2,
        "[2001:db8::9]:81": 7,
    }  # fmt: skip
    confirm(right)
    for name in right:
        with pytest.raises(ActuationError, match="has weight 9 in g"):
            confirm({**right, name: 9})


def test_what_two_lines_share_proves_nothing() -> None:
    confirm({"10.0.0.1:8080": 3}, ("app.local:8080", "10.0.0.1:8080"))
    with pytest.raises(ActuationError, match=r"10.0.0.2:8080 has weight 3"):
        confirm({"10.0.0.1:8080": 3, "10.0.0.2:8080": 3}, ("app.local:8080", "10.0.0.1:8080"))


def test_a_group_that_is_not_shown_is_told() -> None:
    with pytest.raises(StatusError, match="have no group h"):
        confirm({}, group="h")
