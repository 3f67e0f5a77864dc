"""The topology: groups, their servers and request types as frozen, validated values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from actuators.errors import ConfigError, closest

_UNREADABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""What no message and no file of ours can show: control characters, and bytes that are not UTF-8."""
# Names and addresses without a character that could end a directive or a word.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")
_PLAIN_SERVER = re.compile(
    r"(unix:/[A-Za-z0-9_./@:+,~=%-]+|\[[0-9A-Fa-f:.]+\](:\d{1,5})?|[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?(:\d{1,5})?)\Z"
)


@dataclass(frozen=True)
class Group:
    """One NGINX `upstream` block and the request type it serves.

    Attributes:
        name: upstream name as NGINX shows it, for example ``compose_backend``; any that NGINX accepts.
        request_type: ``compose``, ``home_read``, ``user_read`` or a name that the user chose.
        method: HTTP method of the type's requests.
        path: URL path of the type's requests.
        priority: p > 1; the deadline is mean + (1 + 1/p) standard deviations.
        servers: addresses of its server lines or of the statistics (``HOST:PORT``, ``[v6]:PORT``, ``unix:/path``).

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
        if not self.name or _UNREADABLE.search(self.name):
            raise ConfigError("not a readable upstream name", where=where, remedy="use printable characters")
        if not self.priority > 1:
            raise ConfigError(f"priority is {self.priority}", where=where, remedy="it must be greater than 1")
        if not self.servers:
            raise ConfigError("no servers", where=where, remedy="list at least one server")
        for server in self.servers:
            if not server or _UNREADABLE.search(server):
                raise ConfigError(
                    f"{server!r} is not a server address", where=where, remedy="use HOST:PORT or unix:/path"
                )
        if len(set(self.servers)) != len(self.servers):
            raise ConfigError("a server is listed twice", where=where, remedy="list each server once per group")


@dataclass(frozen=True)
class Topology:
    """The groups of one NGINX. Arrays ``[groups, servers]`` have the order of `groups` and `servers`.

    Attributes:
        addresses: for each group, how many addresses NGINX has for each of its servers, every one of which gets the
            server's weight; empty when each has one.
    """

    groups: tuple[Group, ...]
    addresses: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.addresses and [*map(len, self.addresses)] != [len(group.servers) for group in self.groups]:
            remedy = "give one count per server of each group"
            raise ConfigError("counts of addresses do not fit the servers", where="topology", remedy=remedy)
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
        mask = np.zeros(self.shape, dtype=bool)
        for g, group in enumerate(self.groups):
            mask[g, [self._indices[server] for server in group.servers]] = True
        return mask

    @cached_property
    def entries(self) -> NDArray[np.int64]:
        """Int ``[groups, servers]``: `addresses` as a table; 1 where a group lacks the server."""
        table = np.ones(self.shape, np.int64)
        for g, counts in enumerate(self.addresses):
            table[g, [self._indices[server] for server in self.groups[g].servers]] = counts
        return table

    @cached_property
    def plain(self) -> Topology:
        """The same with one address for each server: what policies see, whose weights are shares."""
        return Topology(self.groups) if self.addresses else self

    def with_entries(self, counts: NDArray[np.int64]) -> Topology:
        """The same groups with so many addresses, ``[groups, servers]``."""
        rows = tuple(
            tuple(int(counts[g, self._indices[server]]) for server in group.servers)
            for g, group in enumerate(self.groups)
        )
        return Topology(self.groups, rows if any(count != 1 for row in rows for count in row) else ())

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

    def check_groups(self, names: Iterable[str]) -> None:
        """Raises ConfigError, with the closest match, when a name is not that of a group."""
        for name in names:
            self.group_index(name)

    def with_priorities(self, priorities: Mapping[str, float]) -> Topology:
        """The same groups with other priorities, by name. Raises ConfigError for an unknown name or a bad priority."""
        self.check_groups(priorities)
        return Topology(tuple(replace(g, priority=priorities.get(g.name, g.priority)) for g in self.groups))

    def with_servers(self, addresses: tuple[str, ...]) -> Topology:
        """The same groups over other addresses, replaced position by position."""
        if len(addresses) != len(self.servers):
            raise ConfigError(
                f"{len(addresses)} addresses for {len(self.servers)} servers", remedy="give one address per server"
            )
        new = dict(zip(self.servers, addresses, strict=True))
        return Topology(tuple(replace(g, servers=tuple(new[s] for s in g.servers)) for g in self.groups))


def check_plain(topology: Topology) -> None:
    """Raises ConfigError for a name or address that a configuration or control text of ours cannot carry.

    Such groups can be observed, and their weights can be changed by reload.
    """
    for group in topology.groups:
        if not _PLAIN_NAME.match(group.name):
            raise ConfigError(
                f"group '{group.name}' cannot be balanced in memory", where="its name",
                remedy="rename the upstream to ASCII letters, digits, '_', '-' and '.', or change weights by reload",
            )  # fmt: skip
        for server in group.servers:
            if not _PLAIN_SERVER.match(server):
                raise ConfigError(
                    f"server '{server}' cannot be balanced in memory", where=f"group {group.name}",
                    remedy="use HOST:PORT, or unix:/path without blanks and quotes, or change weights by reload",
                )  # fmt: skip


def group_of(name: str, servers: tuple[str, ...], request_type: str = "", priority: float = 2.0) -> Group:
    """A group of any system; a group with a name of the social network has that one's request type, method and path.

    Args:
        request_type: the group's name when empty.
    """
    known = {group.name: group for group in social_network().groups}.get(name)
    if known is not None and request_type in ("", known.request_type):
        return replace(known, servers=servers, priority=priority)
    return Group(name, request_type or name, "GET", "/", priority, servers)


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
