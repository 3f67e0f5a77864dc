"""vts documents and snapshots: the JSON of nginx-module-vts, validated while it is decoded. Pure: no I/O, no clock.

Reads documents of nginx-module-vts from v0.2.2 on and those of lua/status.lua (docs/nginx-facts.md#vts-document).
Unknown keys are ignored, optional ones have defaults, anything else is a StatusError.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec

from actuators.errors import StatusError

Count = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e15)]
Overflows = Annotated[int, msgspec.Meta(ge=0, le=2**32)]
InFlight = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
Source = Literal["vts", "prometheus", "haproxy", "envoy"]
_MOST = 2**64 - 1
_NO_NAME = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
"""What no message can show: control characters, and halves of surrogate pairs."""


class _VtsStruct(msgspec.Struct, rename="camel", frozen=True, gc=False):
    """Keys as vts writes them; msgspec skips all others, which are most of a document, without building them."""


_ABOVE = "a count is above 2**64"


def _bounded(*counts: int) -> None:
    if max(counts) > _MOST:
        raise ValueError(_ABOVE)


def _named(name: str) -> None:
    if _NO_NAME.search(name):
        raise ValueError("a name with a control character or half a surrogate pair")


@lru_cache(maxsize=64)
def _ascends(bounds: tuple[int, ...]) -> bool:
    return all(a < b for a, b in itertools.pairwise(bounds))


class Buckets(_VtsStruct, frozen=True):
    """Cumulative histogram: `counters[i]` responses took at most `msecs[i]` ms; those above the last bound are missing.

    Both are empty when the server was never used or no histogram is configured.
    """

    msecs: tuple[Count, ...] = ()
    counters: tuple[Count, ...] = ()

    def __post_init__(self) -> None:
        if not self.msecs and not self.counters:
            return
        if len(self.msecs) != len(self.counters):
            raise ValueError("msecs and counters differ in length")
        if not _ascends(self.msecs):
            raise ValueError("msecs do not ascend")
        # Sorting a sorted list costs a tenth of comparing pairs, and a large document has thousands of lists.
        if sorted(self.counters) != list(self.counters):
            raise ValueError("counters are not cumulative")
        if self.counters[-1] > _MOST or self.msecs[-1] > _MOST:
            raise ValueError(_ABOVE)


class Responses(_VtsStruct, frozen=True):
    """Responses by status class."""

    informational: Count = msgspec.field(default=0, name="1xx")
    successful: Count = msgspec.field(default=0, name="2xx")
    redirected: Count = msgspec.field(default=0, name="3xx")
    client_errors: Count = msgspec.field(default=0, name="4xx")
    server_errors: Count = msgspec.field(default=0, name="5xx")

    def __post_init__(self) -> None:
        if max(self.counts()) > _MOST:
            raise ValueError(_ABOVE)

    def counts(self) -> tuple[int, int, int, int, int]:
        """1xx … 5xx."""
        return (
            self.informational, self.successful, self.redirected, self.client_errors, self.server_errors,
        )  # fmt: skip


class OverCounts(_VtsStruct, frozen=True, omit_defaults=True):
    """How often each 64-bit counter has overflowed; other keys, as `maxIntegerSize`, are ignored."""

    request_counter: Overflows = 0
    in_bytes: Overflows = 0
    out_bytes: Overflows = 0
    request_msec_counter: Overflows = 0
    response_msec_counter: Overflows = 0
    informational: Overflows = msgspec.field(default=0, name="1xx")
    successful: Overflows = msgspec.field(default=0, name="2xx")
    redirected: Overflows = msgspec.field(default=0, name="3xx")
    client_errors: Overflows = msgspec.field(default=0, name="4xx")
    server_errors: Overflows = msgspec.field(default=0, name="5xx")


_NEVER = OverCounts()


class ServerCounters(_VtsStruct, frozen=True):
    """One server of one group: counters since the start of NGINX, and configuration.

    `request_msec_counter` is the sum of `$request_time`, `response_msec_counter` that of `$upstream_response_time`,
    both in milliseconds; None when the document lacks it. `request_msec` and `response_msec` are moving averages over
    at most 63 requests, from which nothing may be learned (docs/nginx-facts.md#vts-counters).
    """

    server: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
    request_counter: Count
    in_bytes: Count = 0
    out_bytes: Count = 0
    responses: Responses = Responses()
    request_msec_counter: Count = 0
    request_msec: Count = 0
    response_msec_counter: Count | None = None
    response_msec: Count = 0
    response_buckets: Buckets = Buckets()
    weight: Count = 1
    max_fails: Count = 1
    fail_timeout: Count = 10
    backup: bool = False
    down: bool = False
    over_counts: OverCounts = _NEVER

    def __post_init__(self) -> None:
        _bounded(
            self.request_counter, self.in_bytes, self.out_bytes, self.request_msec_counter, self.request_msec,
            self.response_msec_counter or 0, self.response_msec, self.weight, self.max_fails, self.fail_timeout,
        )  # fmt: skip
        _named(self.server)

    @property
    def removed(self) -> bool:
        """Whether the entry is a residue: vts keeps servers that are no longer configured, with weight 0."""
        return self.weight == 0

    @property
    def response_ms_sum(self) -> int:
        """Sum of upstream response times; of request times in documents without these."""
        return self.totals()[3]

    def totals(self) -> tuple[int, ...]:
        """requests, in_bytes, out_bytes, response_ms_sum, 1xx … 5xx, with overflows added."""
        upstream, over = self.response_msec_counter, self.over_counts
        own_ms = self.request_msec_counter if upstream is None else upstream
        counts = (self.request_counter, self.in_bytes, self.out_bytes, own_ms, *self.responses.counts())
        if over == _NEVER:
            return counts
        wraps = (
            over.request_counter, over.in_bytes, over.out_bytes,
            over.request_msec_counter if upstream is None else over.response_msec_counter,
            over.informational, over.successful, over.redirected, over.client_errors, over.server_errors,
        )  # fmt: skip
        return tuple(count + (times << 64) for count, times in zip(counts, wraps, strict=True))


class RecordedCounters(ServerCounters, frozen=True):
    """The same with the counters that no decision reads, for recordings."""

    request_buckets: Buckets = Buckets()


class ConnectionCounts(_VtsStruct, frozen=True):
    """NGINX's client connections (`stub_status`), of the whole instance; the counts survive a reload."""

    active: Count = 0
    reading: Count = 0
    writing: Count = 0
    waiting: Count = 0
    accepted: Count = 0
    handled: Count = 0
    requests: Count = 0

    def __post_init__(self) -> None:
        _bounded(self.active, self.reading, self.writing, self.waiting, self.accepted, self.handled, self.requests)


class Zone(_VtsStruct, frozen=True):
    """The shared memory of the counters; `free_size` since v0.2.7."""

    name: str = ""
    max_size: Count = 0
    used_size: Count = 0
    used_node: Count = 0
    free_size: Count | None = None

    def __post_init__(self) -> None:
        _bounded(self.max_size, self.used_size, self.used_node, self.free_size or 0)
        _named(self.name)

    @property
    def full(self) -> bool:
        """Whether there is no page for a new server, which takes 4 KiB."""
        if self.free_size is not None:
            return self.max_size > 0 and self.free_size < 4096
        return self.max_size > 0 and self.used_node + 8 >= self.max_size // 4096


class BalancerEntry(_VtsStruct, frozen=True):
    """What only the balancer in memory knows of one server in one group (lua/balancer.lua).

    Sums over all finished requests, and over those that met an idle worker when they were forwarded.
    """

    group: str
    server: str
    requests: Count = 0
    idle_requests: Count = 0
    idle_response_msec: Count = 0
    predicted_wait_s: Seconds = 0.0
    predicted_service_s: Seconds = 0.0
    in_flight: InFlight = 0
    tau_s: Seconds = 0.0
    workers: Seconds = 0.0
    out: bool = False

    def __post_init__(self) -> None:
        _bounded(self.requests, self.idle_requests, self.idle_response_msec)
        _named(self.group)
        _named(self.server)

    def sums(self) -> tuple[float, ...]:
        """requests, idle requests, their response time in ms, predicted wait and service time in s."""
        return (
            self.requests, self.idle_requests, self.idle_response_msec, self.predicted_wait_s, self.predicted_service_s,
        )  # fmt: skip


class AdmissionEntry(_VtsStruct, frozen=True):
    """What admission control (lua/admission.lua) counted of one group; `limit` is None where none is in force."""

    group: str
    offered: Count = 0
    refused: Count = 0
    spared: Count = 0
    finished: Count = 0
    late: Count = 0
    quick: Count = 0
    in_flight: InFlight = 0
    limit: Seconds | None = None

    def __post_init__(self) -> None:
        _bounded(*self.counts())
        _named(self.group)

    def counts(self) -> tuple[int, ...]:
        """offered, refused, spared, finished, late, quick."""
        return self.offered, self.refused, self.spared, self.finished, self.late, self.quick


class AdmissionStatus(_VtsStruct, frozen=True):
    """Admission control of an NGINX: the rule in force, its state after the last tick, and counts of the groups.

    `kept` is the file whose rule NGINX begins with; empty for none.
    """

    rule: str = "none"
    percent: Seconds = 100.0
    version: Count = 0
    multiple: Seconds = 0.0
    late_share: Seconds = 0.0
    peak: Count = 0
    kept: str = ""
    groups: tuple[AdmissionEntry, ...] = ()

    def __post_init__(self) -> None:
        _bounded(self.version, self.peak)
        _named(self.rule)


class HoldEntry(_VtsStruct, frozen=True):
    """What late binding (lua/late.lua) counted of one group.

    `asked` for a slot; `would` have been held, where that is only counted. `in_line` is held now; `held` requests were
    held and have been sent, let through or refused, `held_s` seconds in all with the histogram `held_buckets`.
    Refused: `full` because too many were held, `expired` after the longest hold, `hopeless` because they would have
    been late. `gone`: clients that left meanwhile; `passed`: let through without a slot. Of `answered` requests, all
    times counted from their arrival, `late` were answered after the deadline; `answered_s` seconds in all with the
    histogram `answer_buckets`.
    """

    group: str
    in_line: InFlight = 0
    asked: Count = 0
    would: Count = 0
    held: Count = 0
    held_s: Seconds = 0.0
    full: Count = 0
    expired: Count = 0
    hopeless: Count = 0
    gone: Count = 0
    passed: Count = 0
    answered: Count = 0
    late: Count = 0
    answered_s: Seconds = 0.0
    held_buckets: Buckets = Buckets()
    answer_buckets: Buckets = Buckets()

    def __post_init__(self) -> None:
        _bounded(*self.counts())
        _named(self.group)

    def counts(self) -> tuple[int, ...]:
        """asked, would, held, refused for want of room or after the longest hold, hopeless, gone, passed, answered,
        late.
        """
        return (
            self.asked, self.would, self.held, self.full + self.expired, self.hopeless, self.gone, self.passed,
            self.answered, self.late,
        )  # fmt: skip

    @property
    def refused(self) -> int:
        """All that were answered with 503."""
        return self.full + self.expired + self.hopeless


class HoldStatus(_VtsStruct, frozen=True):
    """Late binding of an NGINX.

    `state`: `holding`; `absent` where no location asks for a slot; `off` under another method, `watching` under
    another one beside which it is counted what would be held; `unset` without service times or slots; `stale` when
    nobody has renewed the control; `failing` when its code has failed, see NGINX's error log. Only in the first
    requests are held. `kept` is the file whose late binding NGINX begins with; empty for none.
    """

    state: str = "off"
    kept: str = ""
    groups: tuple[HoldEntry, ...] = ()

    def __post_init__(self) -> None:
        _named(self.state)


class Balancer(_VtsStruct, frozen=True):
    """The block that lua/status.lua adds to the document; nginx-module-vts has none.

    `start_msec` changes at a restart, not at a reload. `method` is empty while NGINX itself balances. `masked_refusals`
    are refused requests to which `error_page` gave a status below 500.
    """

    start_msec: Count = 0
    masked_refusals: Count = 0
    method: str = ""
    version: Count = 0
    servers: tuple[BalancerEntry, ...] = ()
    admission: AdmissionStatus | None = None
    holding: HoldStatus | None = None

    def __post_init__(self) -> None:
        _bounded(self.start_msec, self.version, self.masked_refusals)
        _named(self.method)


class _ServerZone(_VtsStruct, frozen=True):
    request_counter: Count = 0
    responses: Responses | None = None

    def __post_init__(self) -> None:
        _bounded(self.request_counter)


class Document(_VtsStruct, frozen=True, kw_only=True):
    """A validated vts document; `snapshot` makes a Snapshot of it.

    vts leaves `upstreamZones` out where the configuration has no upstream.
    """

    now_msec: Count
    load_msec: Count
    connections: ConnectionCounts
    host_name: str = ""
    module_version: str = ""
    shared_zones: Zone | None = None
    server_zones: dict[str, _ServerZone] = msgspec.field(default_factory=dict)
    upstream_zones: dict[str, tuple[ServerCounters, ...]] = msgspec.field(default_factory=dict)
    deepsched: Balancer | None = None

    def __post_init__(self) -> None:
        _bounded(self.now_msec, self.load_msec)
        for name in (self.host_name, self.module_version, *self.server_zones, *self.upstream_zones):
            _named(name)


class RecordedDocument(Document, frozen=True, kw_only=True):
    """The same with all keys of a recording; a large one takes half as long again to decode."""

    upstream_zones: dict[str, tuple[RecordedCounters, ...]] = msgspec.field(  # type: ignore[assignment]
        default_factory=dict
    )


@dataclass(frozen=True)
class Snapshot:
    """One reading of the cumulative counters.

    Attributes:
        now_ms, load_ms: NGINX's clock and its last (re)load, milliseconds since the epoch.
        groups: group → server → counters, without residual entries and pseudo-servers.
        unserved: group → requests that met no live server (the pseudo-server of vts with the name of the group).
        duplicates: (group, server) pairs that the configuration lists more than once.
        client_requests: client-side count by server name, ``*`` for all.
        source: "prometheus" shows no weights, and a server only once it had a request; "haproxy" and "envoy" have no
            histograms, and their sums of response times are estimates (`actuators.statistics.haproxy`, `….envoy`).
        client_errors: 5xx that clients got, of all virtual servers; None when the document does not tell.
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
    client_errors: int | None = None
    balancer: Balancer | None = None
    source: Source = "vts"

    @property
    def is_nginx(self) -> bool:
        """Whether NGINX counted this, with vts or with our Lua."""
        return self.source in ("vts", "prometheus")


_DECODER, _RECORDED_DECODER = msgspec.json.Decoder(Document), msgspec.json.Decoder(RecordedDocument)


def parse(document: Mapping[str, Any]) -> Snapshot:
    """The Snapshot of a vts document.

    Raises StatusError with the first key that differs from vts, and what was expected there.
    """
    if not isinstance(document, Mapping):
        raise StatusError(f"statistics are a {type(document).__name__}", remedy="expected a vts JSON object")
    try:
        return snapshot(_checked(lambda: msgspec.convert(document, RecordedDocument)))
    except StatusError:
        _name_the_server(document)
        raise


def _name_the_server(document: Mapping[str, Any]) -> None:
    """Raises StatusError for the first group, server or zone that is not of vts, with its name."""
    zones = document.get("upstreamZones")
    for group, entries in zones.items() if isinstance(zones, Mapping) else ():
        _check_entry(entries, list[Any], f"group {_shown(group)}")
        for entry in entries:
            name = entry.get("server") if isinstance(entry, Mapping) else None
            _check_entry(entry, RecordedCounters, f"server {_shown(name)} in group {_shown(group)}")
    zones = document.get("serverZones")
    for name, zone in zones.items() if isinstance(zones, Mapping) else ():
        _check_entry(zone, _ServerZone, f"server zone {_shown(name)}")


def _check_entry(entry: Any, kind: Any, owner: str) -> None:
    try:
        msgspec.convert(entry, kind)
    except (msgspec.MsgspecError, UnicodeError) as error:
        what, _, where = str(error).partition(" - at ")
        raise _not_vts(what, f"{where.strip('`$.')} of {owner}".removeprefix(" of ")) from error


def _shown(name: Any) -> str:
    text = name if isinstance(name, str) else f"({type(name).__name__})"
    return _NO_NAME.sub("?", text)[:80]


def parse_json(text: bytes, *, for_decisions: bool = False) -> Snapshot:
    """The same from JSON, several times faster, because keys without a use are not built.

    Args:
        for_decisions: leaves out the counters that only a recording holds.
    """
    decoder = _DECODER if for_decisions else _RECORDED_DECODER
    return snapshot(_checked(lambda: decoder.decode(text)))


def _checked(read: Callable[[], Document]) -> Document:
    try:
        return read()
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise not_vts(error) from error


def not_vts(error: Exception) -> StatusError:
    """The error for a document that is not of vts: what is wrong, and where."""
    what, _, where = str(error).partition(" - at ")
    return _not_vts(what, where.strip("`") or "document")


def _not_vts(what: str, where: str) -> StatusError:
    return StatusError(
        f"not vts statistics: {_NO_NAME.sub('?', what)[:200]}",
        where=_NO_NAME.sub("?", where)[:300],
        remedy="expected the JSON of nginx-module-vts (/status/format/json) or of status.lua",
    )


def snapshot(checked: Document) -> Snapshot:
    """The Snapshot of a validated document."""
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
        client_errors=_client_errors(checked.server_zones),
        balancer=checked.deepsched,
    )


def _client_errors(zones: Mapping[str, _ServerZone]) -> int | None:
    """5xx of the zone ``*``, which vts adds up from all; None without it."""
    everything = zones.get("*")
    return None if everything is None or everything.responses is None else everything.responses.server_errors


def _group(name: str, entries: Sequence[ServerCounters]) -> tuple[dict[str, ServerCounters], int, set[str]]:
    servers: dict[str, ServerCounters] = {}
    unserved, twice = 0, set[str]()
    for entry in entries:
        if entry.server == name and entry.removed:
            unserved = entry.request_counter
        elif entry.removed:
            continue
        elif entry.server in servers:
            # Both lines show the same combined counters, which must count once.
            twice.add(entry.server)
        else:
            servers[entry.server] = entry
    return servers, unserved, twice
