"""vts JSON → Snapshot: one reading of NGINX's cumulative counters. Pure: no I/O, no clock.

Reads documents of nginx-module-vts v0.2.2 to today and those of lua/status.lua. Unknown keys are
ignored, missing optional ones have defaults, anything that is not vts-shaped is a StatusError.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from actuators.errors import StatusError

Count = Annotated[int, Field(strict=True, ge=0, le=2**64 - 1)]
Seconds = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]


class _Model(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, frozen=True, extra="ignore", validate_by_name=True)


@lru_cache(maxsize=64)
def _ascends(bounds: tuple[int, ...]) -> bool:
    return all(a < b for a, b in itertools.pairwise(bounds))


class Buckets(_Model):
    """Cumulative histogram: `counters[i]` answers took at most `msecs[i]` ms; above the last bound nothing counts.

    Both empty when the server was never used or no histogram is configured.
    """

    msecs: tuple[Count, ...] = ()
    counters: tuple[Count, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.msecs) != len(self.counters):
            raise ValueError("msecs and counters differ in length")
        if not _ascends(self.msecs):
            raise ValueError("msecs do not ascend")
        # Sorting what is sorted costs a tenth of comparing pairs: a large document has thousands of these.
        if sorted(self.counters) != list(self.counters):
            raise ValueError("counters are not cumulative")
        return self


class Responses(_Model):
    """Answers by status class."""

    informational: Count = Field(default=0, alias="1xx")
    successful: Count = Field(default=0, alias="2xx")
    redirected: Count = Field(default=0, alias="3xx")
    client_errors: Count = Field(default=0, alias="4xx")
    server_errors: Count = Field(default=0, alias="5xx")

    def counts(self) -> tuple[int, int, int, int, int]:
        """1xx … 5xx."""
        return (
            self.informational, self.successful, self.redirected, self.client_errors, self.server_errors,
        )  # fmt: skip


_WRAPPING = (
    "requestCounter", "inBytes", "outBytes", "requestMsecCounter", "responseMsecCounter",
    "1xx", "2xx", "3xx", "4xx", "5xx",
)  # fmt: skip
"""Counters whose overflows vts tells in `overCounts`, beside its `maxIntegerSize`."""


class ServerCounters(_Model):
    """One server of one group: what it did since NGINX started, and how it is configured.

    `request_msec_counter` sums `$request_time`, `response_msec_counter` sums
    `$upstream_response_time` (milliseconds); None when the document does not have it.
    `request_msec` and `response_msec` are vts' moving averages over at most 63 requests: never learn from them.
    """

    server: str = Field(min_length=1, max_length=1024)
    request_counter: Count
    in_bytes: Count = 0
    out_bytes: Count = 0
    responses: Responses = Responses()
    request_msec_counter: Count = 0
    request_msec: Count = 0
    request_buckets: Buckets = Buckets()
    response_msec_counter: Count | None = None
    response_msec: Count = 0
    response_buckets: Buckets = Buckets()
    weight: Count = 1
    max_fails: Count = 1
    fail_timeout: Count = 10
    backup: bool = Field(default=False, strict=True)
    down: bool = Field(default=False, strict=True)
    over_counts: dict[str, Any] = Field(default_factory=dict)

    @property
    def removed(self) -> bool:
        """A residual entry: today's vts keeps servers that left the config, with weight 0."""
        return self.weight == 0

    @property
    def response_ms_sum(self) -> int:
        """Sum of upstream response times; of request times in documents that have nothing better."""
        return self._own_ms + self._wrapped(self._own_ms_name)

    def totals(self) -> tuple[int, ...]:
        """requests, in_bytes, out_bytes, response_ms_sum, 1xx … 5xx; wrapped counters unwrapped."""
        counts = (self.request_counter, self.in_bytes, self.out_bytes, self._own_ms, *self.responses.counts())
        if not any(self.over_counts.get(name) for name in _WRAPPING):
            return counts
        names = ("requestCounter", "inBytes", "outBytes", self._own_ms_name, "1xx", "2xx", "3xx", "4xx", "5xx")
        return tuple(count + self._wrapped(name) for count, name in zip(counts, names, strict=True))

    @property
    def _own_ms(self) -> int:
        return self.request_msec_counter if self.response_msec_counter is None else self.response_msec_counter

    @property
    def _own_ms_name(self) -> str:
        return "requestMsecCounter" if self.response_msec_counter is None else "responseMsecCounter"

    def _wrapped(self, name: str) -> int:
        times = self.over_counts.get(name, 0)
        return int(times) << 64 if isinstance(times, int) and 0 < times < 2**32 else 0


class ConnectionCounts(_Model):
    """NGINX's own client connections (`stub_status`), of the whole instance; they survive a reload."""

    active: Count = 0
    reading: Count = 0
    writing: Count = 0
    waiting: Count = 0
    accepted: Count = 0
    handled: Count = 0
    requests: Count = 0


class Zone(_Model):
    """The shared memory that holds the counters; `free_size` only since v0.2.7."""

    name: str = ""
    max_size: Count = 0
    used_size: Count = 0
    used_node: Count = 0
    free_size: Count | None = None

    @property
    def full(self) -> bool:
        """No page is left for a new server (a server takes one page of 4 KiB)."""
        if self.free_size is not None:
            return self.max_size > 0 and self.free_size < 4096
        return self.max_size > 0 and self.used_node + 8 >= self.max_size // 4096


class BalancerEntry(_Model):
    """What only our in-memory balancer knows of one server in one group (lua/balancer.lua).

    Sums over finished requests: all of them, and those that found an idle worker when they were sent.
    """

    group: str
    server: str
    requests: Count = 0
    idle_requests: Count = 0
    idle_response_msec: Count = 0
    predicted_wait_s: Seconds = 0.0
    predicted_service_s: Seconds = 0.0
    in_flight: int = Field(default=0, strict=True, ge=-(2**53), le=2**53)
    tau_s: Seconds = 0.0
    workers: Seconds = 0.0
    out: bool = Field(default=False, strict=True)

    def sums(self) -> tuple[float, ...]:
        """requests, idle requests, their response time in ms, predicted wait and service in s."""
        return (
            self.requests, self.idle_requests, self.idle_response_msec, self.predicted_wait_s, self.predicted_service_s,
        )  # fmt: skip


class Balancer(_Model):
    """Our own block in the document; None in a document of the real module.

    `start_msec` changes at a restart, never at a reload. `method` is empty while NGINX itself balances.
    """

    start_msec: Count = 0
    method: str = ""
    version: Count = 0
    servers: tuple[BalancerEntry, ...] = ()


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


class _ServerZone(_Model):
    request_counter: Count = 0


class Document(_Model):
    """A vts document as it is checked; `snapshot` makes what the rest reads of it."""

    now_msec: Count
    load_msec: Count
    connections: ConnectionCounts
    host_name: str = ""
    module_version: str = ""
    shared_zones: Zone | None = None
    server_zones: dict[str, _ServerZone] = Field(default_factory=dict)
    upstream_zones: dict[str, tuple[ServerCounters, ...]]
    deepsched: Balancer | None = None


def parse(document: Mapping[str, Any]) -> Snapshot:
    """A validated Snapshot of one vts document.

    Raises StatusError naming the first key that is not as vts writes it, and what was expected there.
    """
    if not isinstance(document, Mapping):
        raise StatusError(f"statistics are a {type(document).__name__}", remedy="expected a vts JSON object")
    try:
        checked = Document.model_validate(dict(document))
    except ValidationError as error:
        raise _not_vts(error) from error
    return snapshot(checked)


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


def _not_vts(error: ValidationError) -> StatusError:
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "document"
    shown = repr(first["input"])
    return StatusError(
        f"not vts statistics: {first['msg']}",
        where=where[:200],
        remedy="expected the JSON of nginx-module-vts (/status/format/json) or of status.lua",
        evidence=f"got {shown[:80]}",
    )
