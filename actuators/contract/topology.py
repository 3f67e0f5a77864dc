"""The topology: groups, their servers and request types as frozen, validated values."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from actuators.errors import ConfigError, closest

# Addresses that an NGINX `server` line may hold; none of them can end a directive or open a block.
_SERVER = re.compile(r"^(unix:/[\w./-]+|\[[0-9A-Fa-f:.]+\](:\d{1,5})?|[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?(:\d{1,5})?)\Z")
_NAME = re.compile(r"^[A-Za-z][\w.-]*\Z")


@dataclass(frozen=True)
class Group:
    """One NGINX `upstream` block and the request type it serves.

    Attributes:
        name: upstream name, for example ``compose_backend``.
        request_type: ``compose``, ``home_read``, ``user_read`` or a name that the user chose.
        method: HTTP method of the type's requests.
        path: URL path of the type's requests.
        priority: p > 1; the deadline is mean + (1 + 1/p) standard deviations.
        servers: addresses as NGINX shows them (``HOST:PORT``, ``[v6]:PORT``, ``unix:/path``).

    Raises:
        ConfigError: a name, address or priority is invalid, or a server is listed twice.
    """

    name: str
    request_type: str
    method: str
    path: str
    priority: float
    servers: tuple[str, ...]

    def __post_init__(self) -> None:
        where = f"group {self.name!r}"
        if not _NAME.match(self.name):
            raise ConfigError("not a valid upstream name", where=where, remedy="use letters, digits, '_', '-' and '.'")
        if not self.priority > 1:
            raise ConfigError(f"priority is {self.priority}", where=where, remedy="it must be greater than 1")
        if not self.servers:
            raise ConfigError("no servers", where=where, remedy="list at least one server")
        for server in self.servers:
            check_server(server, where)
        if len(set(self.servers)) != len(self.servers):
            raise ConfigError("a server is listed twice", where=where, remedy="list each server once per group")


@dataclass(frozen=True)
class Topology:
    """The groups of one NGINX. Arrays ``[groups, servers]`` have the order of `groups` and `servers`."""

    groups: tuple[Group, ...]

    def __post_init__(self) -> None:
        names = [group.name for group in self.groups]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"groups are {names}", where="topology", remedy="give at least one, each name once")

    @cached_property
    def servers(self) -> tuple[str, ...]:
        """All servers, in order of first appearance."""
        return tuple(dict.fromkeys(server for group in self.groups for server in group.servers))

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {server: index for index, server in enumerate(self.servers)}

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """``[groups, servers]``: True where the group has the server."""
        return np.array([[server in group.servers for server in self.servers] for group in self.groups])

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.groups), len(self.servers)

    @property
    def request_types(self) -> tuple[str, ...]:
        return tuple(group.request_type for group in self.groups)

    def group_index(self, name: str) -> int:
        """Index of a group. Raises ConfigError with the closest match when there is none."""
        names = [group.name for group in self.groups]
        if name not in names:
            raise ConfigError(f"unknown group '{name}'", remedy=closest(name, names))
        return names.index(name)

    def server_index(self, address: str) -> int:
        """Index of a server. Raises ConfigError with the closest match when there is none."""
        index = self._indices.get(address)
        if index is None:
            raise ConfigError(f"unknown server '{address}'", remedy=closest(address, self.servers))
        return index

    def with_servers(self, addresses: tuple[str, ...]) -> Topology:
        """The same groups over other addresses, replaced position by position."""
        if len(addresses) != len(self.servers):
            raise ConfigError(
                f"{len(addresses)} addresses for {len(self.servers)} servers", remedy="give one address per server"
            )
        new = dict(zip(self.servers, addresses, strict=True))
        return Topology(tuple(replace(g, servers=tuple(new[s] for s in g.servers)) for g in self.groups))


def check_server(server: str, where: str) -> None:
    """Raises ConfigError unless a `server` line can hold the address without injecting configuration."""
    if not _SERVER.match(server):
        raise ConfigError(f"'{server}' is not a server address", where=where, remedy="use HOST:PORT or unix:/path")


def social_network(servers: tuple[str, ...] = ("server-1:80", "server-2:80", "server-3:80")) -> Topology:
    """The three upstream groups of DeathStarBench's social network, over the same servers.

    Endpoints and methods as its wrk2 scripts use them; priority 2 for each type.
    """
    return Topology(
        (
            Group("compose_backend", "compose", "POST", "/wrk2-api/post/compose", 2.0, servers),
            Group("home_read_backend", "home_read", "GET", "/wrk2-api/home-timeline/read", 2.0, servers),
            Group("user_read_backend", "user_read", "GET", "/wrk2-api/user-timeline/read", 2.0, servers),
        )
    )
