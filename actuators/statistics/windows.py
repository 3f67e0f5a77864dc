"""The window between two snapshots; restarts, resets and reloads become faults, not numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

import numpy as np

from actuators.contract.arrays import IntArray
from actuators.contract.topology import Topology
from actuators.contract.window import (
    DEFAULT_BOUNDS_MS,
    AdmissionWindow,
    Connections,
    DelayWindow,
    Fault,
    HoldWindow,
    Window,
)
from actuators.statistics.names import ServerNames, server_names
from actuators.statistics.vts import AdmissionEntry, Buckets, HoldEntry, ServerCounters, Snapshot

# A counter that grows by more than this between two readings is not a count.
_MOST = 2**53


class _Cell(NamedTuple):
    """One server of one group, with its indices in a window; None where a snapshot does not have it."""

    g: int
    s: int
    server: str
    old: ServerCounters | None
    new: ServerCounters | None


def difference(before: Snapshot, after: Snapshot, topology: Topology, names: ServerNames | None = None) -> Window:
    """The window between two snapshots of one NGINX; servers are matched by name.

    Args:
        names: which entries belong to which server, from `after` or a reading with the same entries; found when absent.

    A cell without a valid difference (restart, reset, missing, duplicate) is zero and has a fault. `response_ms_sum`
    holds request times where a document has no upstream times. Histogram bounds are those that all servers have in
    common; a window in which no server has a histogram has no bounds, and all counts are above them.
    """
    names = names or server_names(topology, after)
    before, after = names.renamed(before), names.renamed(after)
    faults = [*_whole(before, after), *_missing_groups(after, topology)]
    cells = _cells(before, after, topology)
    window = _zeros(topology, before.now_ms / 1e3, after.now_ms / 1e3, _common_bounds(cells))
    dead = any(fault.kind in ("restart", "reset") for fault in faults)
    shown = [cell for cell in cells if cell.new is not None]
    rows, columns = [cell.g for cell in shown], [cell.s for cell in shown]
    window.weight[rows, columns] = [min(cell.new.weight, 2**31) for cell in shown if cell.new]
    window.down[rows, columns] = [cell.new.down for cell in shown if cell.new]
    backup = np.zeros(topology.shape, bool)
    backup[rows, columns] = [cell.new.backup for cell in shown if cell.new]
    checked = [(cell, _cell_fault(cell, before, after, topology)) for cell in cells]
    faults.extend(fault for _, fault in checked if fault is not None)
    if not dead:
        faults.extend(_fill(window, [cell for cell, fault in checked if fault is None and cell.new is not None]))
    faults.extend(_unserved(before, after, topology))
    counts = after.connections
    connections = Connections(counts.active, counts.reading, counts.writing, counts.waiting)
    active, delay = _balancer(before, after, topology, dead=dead)
    return replace(
        window, connections=connections, active=active, delay=delay, faults=tuple(faults),
        client_errors=_client_errors(before, after), admission=_admission(before, after, topology),
        holding=_holding(before, after, topology), backup=backup if backup.any() else None,
    )  # fmt: skip


def gap(topology: Topology, start_s: float, end_s: float, detail: str) -> Window:
    """The window for statistics that could not be read: zeros and one ``gap`` fault."""
    return replace(_zeros(topology, start_s, end_s, DEFAULT_BOUNDS_MS), faults=(Fault("gap", detail),))


def _whole(before: Snapshot, after: Snapshot) -> Iterable[Fault]:
    """Faults of the whole NGINX."""
    started = [snapshot.balancer.start_msec for snapshot in (before, after) if snapshot.balancer]
    # An NGINX that was loaded earlier is another one, as when an upgrade of its program is taken back.
    counts_fell = after.connections.requests < before.connections.requests or after.load_ms < before.load_ms
    if counts_fell or after.connections.accepted < before.connections.accepted or len(set(started)) > 1:
        yield Fault("restart", "NGINX was restarted: its counters began again at 0")
    elif before.zone and after.zone and before.zone.max_size != after.zone.max_size:
        yield Fault("reset", "the statistics zone was resized: all counters began again at 0")
    elif after.load_ms != before.load_ms:
        yield Fault("reload", "NGINX was reloaded")
    if after.now_ms <= before.now_ms:
        yield Fault("gap", f"NGINX's clock went from {before.now_ms} to {after.now_ms} ms")
    elif before.host_name != after.host_name and before.host_name and after.host_name:
        yield Fault("restart", f"answers came from two hosts: {before.host_name[:80]} and {after.host_name[:80]}")


def _client_errors(before: Snapshot, after: Snapshot) -> int | None:
    if before.client_errors is None or after.client_errors is None:
        return None
    # A refused request is not an error of a server.
    count = after.client_errors - _shown_refusals(after) - before.client_errors + _shown_refusals(before)
    return count if 0 <= count <= _MOST else None


def _shown_refusals(snapshot: Snapshot) -> int:
    """Refused by admission or while they waited for a slot, and shown to clients as a 5xx."""
    balancer = snapshot.balancer
    if balancer is None:
        return 0
    parts = (balancer.admission, balancer.holding)
    refused = sum(entry.refused for part in parts if part is not None for entry in part.groups)
    return refused - balancer.masked_refusals


def _admission(before: Snapshot, after: Snapshot, topology: Topology) -> AdmissionWindow | None:
    """None without a rule of admission, and where its counts began again."""
    old, new = (snapshot.balancer.admission if snapshot.balancer else None for snapshot in (before, after))
    if old is None or new is None or new.rule == "none":
        return None
    was, now = ({entry.group: entry for entry in status.groups} for status in (old, new))
    counts: list[list[int]] = []
    in_flight, limits = np.zeros(len(topology.groups), np.int64), np.full(len(topology.groups), np.inf)
    for g, group in enumerate(topology.groups):
        entry = now.get(group.name, AdmissionEntry(group.name))
        earlier = was.get(group.name, AdmissionEntry(group.name)).counts()
        counts.append([b - a for a, b in zip(earlier, entry.counts(), strict=True)])
        in_flight[g], limits[g] = entry.in_flight, np.inf if entry.limit is None else entry.limit
    if min(map(min, counts)) < 0 or max(map(max, counts)) > _MOST:
        return None
    offered, refused, spared, finished, late, quick = np.array(counts, np.int64).T
    return AdmissionWindow(
        offered, refused, spared, finished, late, quick, in_flight, limits, peak=min(new.peak, _MOST)
    )


def _holding(before: Snapshot, after: Snapshot, topology: Topology) -> HoldWindow | None:
    """None where no location asks for a slot, and where the counts began again."""
    old, new = (snapshot.balancer.holding if snapshot.balancer else None for snapshot in (before, after))
    if old is None or new is None or new.state == "absent":
        return None
    was, now = ({entry.group: entry for entry in status.groups} for status in (old, new))
    names = [group.name for group in topology.groups]
    pairs = [(was.get(name, HoldEntry(name)), now.get(name, HoldEntry(name))) for name in names]
    every = [each.msecs for pair in pairs for entry in pair for each in (entry.held_buckets, entry.answer_buckets)]
    bounds_ms = next((msecs for msecs in every if msecs), ())
    if any(msecs not in ((), bounds_ms) for msecs in every):
        return None
    counts = _integers([b.counts() for _, b in pairs]) - _integers([a.counts() for a, _ in pairs])
    seconds = np.array([(b.held_s - a.held_s, b.answered_s - a.answered_s) for a, b in pairs])
    held, answers = (
        _bins([_cumulative(getattr(b, name), bounds_ms) for _, b in pairs], bounds_ms)
        - _bins([_cumulative(getattr(a, name), bounds_ms) for a, _ in pairs], bounds_ms)
        for name in ("held_buckets", "answer_buckets")
    )
    if any((table < 0).any() for table in (counts, seconds, held, answers)) or counts.max() > _MOST:
        return None
    asked, would, left, refused, hopeless, gone, passed, answered, late = counts.astype(np.int64).T
    above = [(total - bins.sum(axis=1)).clip(0)[:, None] for total, bins in ((left, held), (answered, answers))]
    return HoldWindow(
        new.state, asked, would, left, seconds[:, 0], refused, hopeless, gone, passed, answered, seconds[:, 1], late,
        np.array([b.in_line for _, b in pairs], np.int64).clip(0), bounds_ms,
        np.hstack((held, above[0])), np.hstack((answers, above[1])),
    )  # fmt: skip


def _bins(cumulative: Sequence[Sequence[int]], bounds_ms: tuple[int, ...]) -> IntArray:
    """Counts of each bucket, ``[rows, bounds]``."""
    table = np.array(cumulative, np.int64).reshape(len(cumulative), len(bounds_ms))
    bins: IntArray = np.diff(table, axis=1, prepend=0)
    return bins


def _missing_groups(after: Snapshot, topology: Topology) -> Iterable[Fault]:
    for group in topology.groups if after.source != "prometheus" else ():
        if group.name not in after.groups:
            yield Fault("missing_group", "not in NGINX's statistics", group.name)


def _unserved(before: Snapshot, after: Snapshot, topology: Topology) -> Iterable[Fault]:
    for group in topology.groups:
        count = after.unserved.get(group.name, 0) - before.unserved.get(group.name, 0)
        if count > 0:
            yield Fault("server_down", f"{count} requests found no live server", group.name)


def _balancer(
    before: Snapshot, after: Snapshot, topology: Topology, *, dead: bool
) -> tuple[IntArray | None, DelayWindow | None]:
    """Requests in flight and samples of service time; None without a balancer in memory."""
    if before.balancer is None or after.balancer is None or not after.balancer.servers:
        return None, None
    old = {(entry.group, entry.server): entry for entry in before.balancer.servers}
    names = [group.name for group in topology.groups]
    places = {(name, server): (g, s) for g, name in enumerate(names) for s, server in enumerate(topology.servers)}
    active = np.zeros(topology.shape, np.int64)
    sums, tau_s = np.zeros((5, *topology.shape)), np.zeros(topology.shape)
    for new in after.balancer.servers:
        at = places.get((new.group, new.server))
        if at is None:
            continue
        active[at], tau_s[at] = new.in_flight, new.tau_s
        was = old.get((new.group, new.server))
        if was is not None and not dead:
            deltas = [b - a for a, b in zip(was.sums(), new.sums(), strict=True)]
            sums[(slice(None), *at)] = deltas if min(deltas) >= 0 else 0.0
    requests, idle = sums[:2].astype(np.int64)
    return active, DelayWindow(requests, idle, sums[2] / 1e3, sums[3], sums[4], tau_s)


def _cells(before: Snapshot, after: Snapshot, topology: Topology) -> list[_Cell]:
    """Every server of every group, with its counters in both snapshots."""
    cells: list[_Cell] = []
    for g, group in enumerate(topology.groups):
        cells += [
            _Cell(g, topology.server_index(s), s, _find(before, group.name, s), _find(after, group.name, s))
            for s in group.servers
        ]
    return cells


def _find(snapshot: Snapshot, group: str, server: str) -> ServerCounters | None:
    """The server's counters; NGINX shows an address without a port with port 80.

    Metrics do not show a server before its first request: it has counted nothing.
    """
    servers = snapshot.groups.get(group, {})
    shown = servers.get(server) or servers.get(f"{server}:80")
    return shown or (ServerCounters(server, 0) if snapshot.source == "prometheus" else None)


def _cell_fault(cell: _Cell, before: Snapshot, after: Snapshot, topology: Topology) -> Fault | None:
    """Why the difference of this server is not valid; None when it is, or when the group already has a fault."""
    group, new = topology.groups[cell.g].name, cell.new
    if new is None:
        if group not in after.groups:
            return None
        shown = ", ".join(list(after.groups[group])[:5])
        return Fault("missing_server", f"not in NGINX's statistics, which show: {shown}"[:300], group, cell.server)
    if (group, new.server) in after.duplicates:
        return Fault("duplicate_server", "the config lists it more than once", group, cell.server)
    if cell.old is None:
        return Fault("missing_server", "it joined during the window", group, cell.server)
    if after.zone is not None and after.zone.full and new.request_counter == 0:
        detail = "the statistics zone is full: a new server is not counted; make the zone larger"
        return Fault("zone_full", detail, group, cell.server)
    return None


def _fill(window: Window, cells: Sequence[_Cell]) -> list[Fault]:
    """Writes the cells; returns a fault for each whose counters or histogram fell."""
    pairs = [(cell.old, cell.new) for cell in cells if cell.old and cell.new]
    if not pairs:
        return []
    totals = _integers([new.totals() for _, new in pairs]) - _integers([old.totals() for old, _ in pairs])
    fell = np.asarray((totals < 0) | (totals > _MOST), bool).any(axis=1)
    before, after = (
        _table([_cumulative(pair[side].response_buckets, window.bounds_ms) for pair in pairs]) for side in (0, 1)
    )
    below = after - before
    bins = np.diff(below, axis=1, prepend=0)
    contradicts = ~fell & (bins < 0).any(axis=1)
    good = np.flatnonzero(~fell & ~contradicts).tolist()
    at = [cells[i].g for i in good], [cells[i].s for i in good]
    counts, bins, below = totals[good].astype(np.int64), bins[good], below[good]
    window.requests[at], window.in_bytes[at], window.out_bytes[at] = counts.T[:3]
    window.response_ms_sum[at], window.responses[at] = counts[:, 3], counts[:, 4:]
    # A reading between the two updates of one request may count it in only one of them.
    above = (counts[:, 0] - (below[:, -1] if below.shape[1] else 0)).clip(0)
    window.latency_histogram[at] = np.column_stack((bins, above))
    groups = window.topology.groups
    return [
        Fault("reset", f"its {what} began again at 0", groups[cells[i].g].name, cells[i].server)
        for what, which in (("counters", fell), ("histogram", contradicts))
        for i in np.flatnonzero(which).tolist()
    ]


def _integers(rows: Sequence[tuple[int, ...]]) -> np.ndarray:
    """An exact array: counters with overflows may be longer than 64 bits."""
    try:
        return _table(rows)
    except OverflowError:
        return np.array(rows, object)


def _table(rows: Sequence[Sequence[int]]) -> IntArray:
    """Rows of equal length; for many short rows twice as fast as np.array."""
    width = len(rows[0])
    return np.fromiter(chain.from_iterable(rows), np.int64, len(rows) * width).reshape(len(rows), width)


def _cumulative(buckets: Buckets, bounds_ms: tuple[int, ...]) -> Sequence[int]:
    """Counters at `bounds_ms`, exact because they are cumulative; zeros for a server that was never used."""
    if bounds_ms and buckets.msecs == bounds_ms and buckets.counters[-1] < 2**62:
        return buckets.counters
    at = dict(zip(buckets.msecs, buckets.counters, strict=True))
    return [min(at.get(bound, 0), 2**62) for bound in bounds_ms]


def _common_bounds(cells: Sequence[_Cell]) -> tuple[int, ...]:
    """Bounds of all used servers before and after; after a change, vts keeps the old bounds of old servers."""
    used = {
        counters.response_buckets.msecs
        for cell in cells
        for counters in (cell.old, cell.new)
        if counters is not None and counters.request_counter > 0
    }
    if not used:
        return DEFAULT_BOUNDS_MS
    common = set.intersection(*map(set, used))
    return tuple(sorted(bound for bound in common if bound < 2**31))


def _zeros(topology: Topology, start_s: float, end_s: float, bounds_ms: tuple[int, ...]) -> Window:
    def zeros(*more: int) -> IntArray:
        return np.zeros((*topology.shape, *more), np.int64)

    return Window(
        topology=topology,
        start_s=start_s,
        end_s=end_s,
        requests=zeros(),
        in_bytes=zeros(),
        out_bytes=zeros(),
        responses=zeros(5),
        response_ms_sum=zeros(),
        bounds_ms=bounds_ms,
        latency_histogram=zeros(len(bounds_ms) + 1),
        weight=zeros(),
        down=np.zeros(topology.shape, bool),
    )
