"""vts JSON → Snapshot: one reading of NGINX's cumulative counters. Pure: no I/O, no clock.

Reads documents of nginx-module-vts v0.2.2 to today and those of lua/status.lua. Unknown keys are
ignored, missing optional ones have defaults, anything that is not vts-shaped is a StatusError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from actuators.errors import StatusError
from actuators.vts_document import (
    Balancer,
    Buckets,
    ConnectionCounts,
    Document,
    RecordedDocument,
    Responses,
    ServerCounters,
    Zone,
)

__all__ = [
    "Balancer", "Buckets", "ConnectionCounts", "Document", "Responses", "ServerCounters", "Snapshot", "Zone",
    "not_vts", "parse", "parse_json", "snapshot",
]  # fmt: skip


@dataclass(frozen=True)
class Snapshot:
    """One reading of the cumulative counters.

    Attributes:
        now_ms, load_ms: NGINX's clock and its last (re)load, milliseconds since the epoch.
        groups: group → server → counters, residual entries and pseudo-servers left out.
        unserved: group → requests that found no live server (vts' pseudo-server named like the group).
        duplicates: (group, server) pairs that the config lists more than once.
        client_requests: client-side count by server name, ``*`` for all.
    """

    now_ms: int
    load_ms: int
    groups: Mapping[str, Mapping[str, ServerCounters]]
    connections: ConnectionCounts = field(default_factory=ConnectionCounts)
    zone: Zone | None = None
    host_name: str = ""
    module_version: str = ""
    unserved: Mapping[str, int] = field(default_factory=dict)
    duplicates: frozenset[tuple[str, str]] = frozenset()
    client_requests: Mapping[str, int] = field(default_factory=dict)
    balancer: Balancer | None = None


_DECODER = msgspec.json.Decoder(RecordedDocument)


def parse(document: Mapping[str, Any]) -> Snapshot:
    """A validated Snapshot of one vts document.

    Raises StatusError naming the first key that is not as vts writes it, and what was expected there.
    """
    if not isinstance(document, Mapping):
        raise StatusError(f"statistics are a {type(document).__name__}", remedy="expected a vts JSON object")
    return snapshot(_checked(lambda: msgspec.convert(document, RecordedDocument)))


def parse_json(text: bytes) -> Snapshot:
    """The same from the JSON itself, many times quicker: what nobody reads is never built."""
    return snapshot(_checked(lambda: _DECODER.decode(text)))


def _checked(read: Callable[[], Document]) -> Document:
    try:
        return read()
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise not_vts(error) from error


def not_vts(error: Exception) -> StatusError:
    """What is wrong with a document, and where in it."""
    what, _, where = str(error).partition(" - at ")
    return StatusError(
        f"not vts statistics: {what[:200]}",
        where=where.strip("`")[:200] or "document",
        remedy="expected the JSON of nginx-module-vts (/status/format/json) or of status.lua",
    )


def snapshot(checked: Document) -> Snapshot:
    """The Snapshot of a document that was checked already."""
    groups: dict[str, dict[str, ServerCounters]] = {}
    unserved: dict[str, int] = {}
    duplicates: set[tuple[str, str]] = set()
    for name, entries in checked.upstream_zones.items():
        groups[name], unserved[name], twice = _group(name, entries)
        duplicates.update((name, server) for server in twice)
    return Snapshot(
        now_ms=checked.now_msec,
        load_ms=checked.load_msec,
        groups=groups,
        connections=checked.connections,
        zone=checked.shared_zones,
        host_name=checked.host_name,
        module_version=checked.module_version,
        unserved=unserved,
        duplicates=frozenset(duplicates),
        client_requests={name: zone.request_counter for name, zone in checked.server_zones.items()},
        balancer=checked.deepsched,
    )


def _group(name: str, entries: Sequence[ServerCounters]) -> tuple[dict[str, ServerCounters], int, set[str]]:
    servers: dict[str, ServerCounters] = {}
    unserved, twice = 0, set[str]()
    for entry in entries:
        if entry.server == name and entry.removed:
            unserved = entry.request_counter
        elif entry.removed:
            continue
        elif entry.server in servers:
            # Both lines show the same combined counters: count them once.
            twice.add(entry.server)
        else:
            servers[entry.server] = entry
    return servers, unserved, twice
