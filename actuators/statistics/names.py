"""Which entries of the statistics belong to a server line of the configuration.

NGINX's statistics show addresses: `localhost:9001` is shown as `127.0.0.1:9001` and `[::1]:9001`, an address without a
port with port 80. Used wherever configuration and statistics meet: windows, confirmation of weights, steering.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from actuators.contract.arrays import IntArray
from actuators.contract.topology import Group, Topology
from actuators.errors import ConfigError
from actuators.statistics.vts import Buckets, OverCounts, Responses, ServerCounters, Snapshot

_V4 = re.compile(r"(\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3})(?::(\d+))?\Z")
_V6 = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::(\d+))?\Z")

Resolver = Callable[[str], Collection[str]]
"""The addresses of a host name, IPv6 without brackets; none when it does not resolve."""


@dataclass(frozen=True)
class ServerNames:
    """The entries of every server line.

    Attributes:
        groups: name of a group in the configuration → its name in the statistics.
        shown: name of a group in the statistics → the entries that they showed.
        entries: (group, server) in the configuration → its entries, in the order of the statistics.
        problems: what is not one to one, in words.
    """

    topology: Topology
    groups: Mapping[str, str]
    shown: Mapping[str, tuple[str, ...]]
    entries: Mapping[tuple[str, str], tuple[str, ...]]
    problems: tuple[str, ...]

    @functools.cached_property
    def counts(self) -> IntArray:
        """Int ``[groups, servers]``: entries of each line, at least 1; every one has the weight of the line."""
        counts = np.ones(self.topology.shape, np.int64)
        for g, group in enumerate(self.topology.groups):
            for server in group.servers:
                counts[g, self.topology.server_index(server)] = max(len(self.entries[group.name, server]), 1)
        return counts

    @functools.cached_property
    def exact(self) -> bool:
        """Whether the statistics use the names of the configuration."""
        same = all(entries in ((server,), ()) for (_, server), entries in self.entries.items())
        return same and all(name == shown for name, shown in self.groups.items())

    @property
    def aliases(self) -> tuple[str, ...]:
        """Servers that have another name in another group, in words: they are taken for different servers."""
        lines: dict[tuple[str, ...], dict[str, str]] = {}
        for (group, server), entries in self.entries.items():
            if entries:
                lines.setdefault(entries, {}).setdefault(server, group)
        return tuple(
            " and ".join(f"{server} of {group}" for server, group in names.items()) + " are one server"
            for names in lines.values()
            if len(names) > 1
        )

    def fits(self, snapshot: Snapshot) -> bool:
        """Whether a later reading shows the same entries."""
        return all(tuple(snapshot.groups.get(name, ())) == entries for name, entries in self.shown.items())

    def check(self) -> None:
        """Raises ConfigError when a group or a line has no entry, or shares one with another line."""
        missing = [f"the statistics do not show {name}" for name, shown in self.groups.items() if not self.shown[shown]]
        problems = [*missing, *self.problems]
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise ConfigError(
                problems[0] + more, where="names of servers",
                remedy="write addresses in the server lines, or reload NGINX when names have new addresses",
            )  # fmt: skip

    def renamed(self, snapshot: Snapshot) -> Snapshot:
        """The reading with the names of the configuration; counters of a line with several entries are added up.

        A line with an entry that this reading does not show is left out.
        """
        if self.exact:
            return snapshot
        groups = dict(snapshot.groups)
        for group in self.topology.groups:
            own = groups.pop(self.groups[group.name], None)
            if own is None:
                continue
            lines = {server: self.entries[group.name, server] for server in group.servers}
            groups[group.name] = {
                server: added([own[name] for name in entries], server)
                for server, entries in lines.items()
                if entries and all(name in own for name in entries)
            }
        owners = {
            (self.groups[group], name): (group, server)
            for (group, server), entries in self.entries.items()
            for name in entries
        }
        unserved = {name: snapshot.unserved.get(shown, 0) for name, shown in self.groups.items()}
        twice = frozenset(owners.get(each, each) for each in snapshot.duplicates)
        return replace(snapshot, groups=groups, unserved={**snapshot.unserved, **unserved}, duplicates=twice)


class NameKeeper:
    """The names of a topology's servers in readings that follow each other; found again when the entries change."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._names: ServerNames | None = None

    def of(self, snapshot: Snapshot) -> ServerNames:
        if self._names is None or not self._names.fits(snapshot):
            self._names = server_names(self._topology, snapshot)
        return self._names


def server_names(topology: Topology, snapshot: Snapshot, resolve: Resolver | None = None) -> ServerNames:
    """Finds the entries by address; names are resolved only where the statistics leave a choice."""
    resolver = functools.cache(resolve or addresses_of)
    groups: dict[str, str] = {}
    present: dict[str, tuple[str, ...]] = {}
    entries: dict[tuple[str, str], tuple[str, ...]] = {}
    problems: list[str] = []
    for group in topology.groups:
        shown = groups[group.name] = _shown_group(group.name, snapshot.groups)
        present[shown] = tuple(snapshot.groups.get(shown, ()))
        own = _entries(group, present[shown], resolver)
        entries |= {(group.name, server): names for server, names in own.items()}
        if shown in snapshot.groups:
            problems += _problems(group, own, {server for name, server in snapshot.duplicates if name == shown})
    return ServerNames(topology, groups, present, entries, tuple(problems))


def added(entries: Sequence[ServerCounters], server: str) -> ServerCounters:
    """The counters of several entries as those of one server: sums; its histogram has the bounds that all share."""
    first = entries[0]
    if len(entries) == 1:
        return first if first.server == server else msgspec.structs.replace(first, server=server)
    totals = [sum(counts) for counts in zip(*(entry.totals() for entry in entries), strict=True)]
    requests, in_bytes, out_bytes, msecs, *classes = (total % 2**64 for total in totals)
    wraps = [total >> 64 for total in totals]
    own_ms = "request_msec_counter" if first.response_msec_counter is None else "response_msec_counter"
    return msgspec.structs.replace(
        first,
        server=server,
        request_counter=requests,
        in_bytes=in_bytes,
        out_bytes=out_bytes,
        responses=Responses(*classes),
        over_counts=OverCounts(*wraps[:3], *(wraps[3:4] * 2), *wraps[4:]),
        response_buckets=_added_buckets([entry.response_buckets for entry in entries if entry.request_counter]),
        weight=sum(entry.weight for entry in entries),
        down=all(entry.down for entry in entries),
        **{own_ms: msecs},
    )


def _added_buckets(used: Sequence[Buckets]) -> Buckets:
    common = sorted(set(used[0].msecs).intersection(*(each.msecs for each in used))) if used else []
    tables = [dict(zip(each.msecs, each.counters, strict=True)) for each in used]
    return Buckets(tuple(common), tuple(sum(table[bound] for table in tables) for bound in common))


def addresses_of(host: str) -> Collection[str]:
    """The addresses that this machine finds for a host name now; none when it does not resolve."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()  # NGINX resolved it when it started; it has no address now
    return {str(address[0]) for *_, address in found}


def _shown_group(name: str, shown: Mapping[str, object]) -> str:
    """NGINX compares names of upstreams without regard to case, and shows the spelling that it met first."""
    if name in shown:
        return name
    return next((each for each in shown if each.lower() == name.lower()), name)


def _entries(group: Group, shown: Iterable[str], resolve: Resolver) -> dict[str, tuple[str, ...]]:
    """Server → its entries."""
    left = dict.fromkeys(shown)
    found: dict[str, tuple[str, ...]] = {}
    unknown = []
    for server in group.servers:
        if server in left:
            found[server] = (server,)
        else:
            unknown.append(server)
    if not unknown:
        return found
    for own in found.values():
        left.pop(own[0])
    by_address = {address_of(name): name for name in left}
    hosts: dict[str, list[str]] = {}
    for server in unknown:
        address = address_of(server)
        if address is None:
            hosts.setdefault(server.rpartition(":")[2] if _has_port(server) else "80", []).append(server)
        elif (entry := by_address.get(address)) is not None:
            found[server] = (entry,)
            left.pop(entry, None)
        else:
            found[server] = ()
    for port, servers in hosts.items():
        found |= _of_hosts(servers, port, [name for name in left if _port(name) == port], resolve)
    return found


def _of_hosts(servers: list[str], port: str, left: list[str], resolve: Resolver) -> dict[str, tuple[str, ...]]:
    """Host names with one port, and the entries with that port that belong to no address in the configuration."""
    if len(servers) == 1:
        return {servers[0]: tuple(left)}
    found = {}
    for server in servers:
        host = server[: -len(port) - 1] if _has_port(server) else server
        own = {address_of(f"[{each}]:{port}" if ":" in each else f"{each}:{port}") for each in resolve(host)}
        found[server] = tuple(name for name in left if address_of(name) in own)
    rest = [name for name in left if not any(name in names for names in found.values())]
    without = [server for server in servers if not found[server]]
    if rest and len(without) == 1:
        found[without[0]] = tuple(rest)
    return found


def _problems(group: Group, own: Mapping[str, tuple[str, ...]], twice: Collection[str]) -> Iterable[str]:
    owners: dict[str, list[str]] = {}
    for server in group.servers:
        for name in own[server]:
            owners.setdefault(name, []).append(server)
    for name, servers in owners.items():
        if len(servers) > 1 or name in twice:
            both = " and ".join(servers) if len(servers) > 1 else f"{servers[0]} and another"
            yield f"two lines of {group.name} are the same server {name}: {both}"
    for server in group.servers:
        if not own[server]:
            yield f"the statistics of {group.name} show no entry that is {server}"


@functools.lru_cache(maxsize=65536)
def address_of(server: str) -> tuple[object, ...] | None:
    """A value that is equal for the spellings of one address; None for a host name."""
    if server[:5].lower() == "unix:":
        return ("unix", server[5:])
    if found := _V4.match(server):
        return ("v4", tuple(map(int, found[1].split("."))), int(found[2] or 80))
    if found := _V6.match(server):
        try:
            return ("v6", ipaddress.IPv6Address(found[1]), int(found[2] or 80))
        except ValueError:
            return None
    return None


def _has_port(server: str) -> bool:
    return bool(re.search(r":\d+\Z", server)) and not server.endswith("]")


def _port(entry: str) -> str:
    address = address_of(entry)
    return str(address[2]) if address and len(address) == 3 else ""
