"""Whether the statistics of an NGINX show the weights that its server lines were given."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from actuators.control import Weights
from actuators.errors import ActuationError, StatusError
from actuators.vts import ServerCounters


def confirm_weights(control: Weights, groups: Mapping[str, Mapping[str, ServerCounters]], *, where: str) -> None:
    """Compares every line with all entries that show it: a host name is shown by each of its addresses.

    Entries that two lines of a group share, and lines that the statistics do not show, prove nothing.
    Raises StatusError when a group is missing, ActuationError when a weight is another.
    """
    for g, group in enumerate(control.topology.groups):
        if group.name not in groups:
            raise StatusError(f"the statistics do not know group {group.name}", where=where)
        names = {server: _shown_as(server) for server in group.servers}
        for server, own in names.items():
            others = set[str]().union(*(shown for other, shown in names.items() if other != server))
            wanted = control.values[g, control.topology.server_index(server)]
            for name in sorted(own - others):
                counters = groups[group.name].get(name)
                if counters is not None and counters.weight != wanted:
                    raise ActuationError(f"{name} has weight {counters.weight} in {group.name}", where=where)


def _shown_as(server: str) -> set[str]:
    """The names under which vts may show a server line: as written, with its port, and by its addresses."""
    if server.startswith("unix:"):
        return {server}
    host, colon, port = server.rpartition(":")
    if not colon or server.endswith("]"):
        host, port = server, "80"
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        found = []  # NGINX resolved it when it started; today it has no address
    addresses = {str(address[0]) for *_, address in found}
    return {server, f"{host}:{port}", *(f"[{each}]:{port}" if ":" in each else f"{each}:{port}" for each in addresses)}
