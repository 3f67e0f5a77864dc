"""Recordings of snapshots as JSON lines (docs/file-formats.md#snapshots): record at an even pace, write, read.

One line: ``{"nowMsec": …, "loadMsec": …, "hostName": …, "connections": {…}, GROUP: {"HOST:PORT": {…}}}``. Groups with
the name of one of the line's own keys are in ``"upstreamZones": {GROUP: {…}}``; ``"duplicates": [[GROUP, SERVER], …]``
are servers that a group lists more than once. A killed writer tears at most its last line; files with the keys of the
project's first data set can be read too.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from actuators.closing import Closing
from actuators.errors import DataError, StatusError
from actuators.files import open_private
from actuators.statistics.vts import Responses, ServerCounters, Snapshot, Source, parse

_SNAPSHOT_KEYS = ("nowMsec", "loadMsec", "hostName", "connections", "sharedZones", "deepsched")
_SOURCE, _MORE_GROUPS, _DUPLICATES = "source", "upstreamZones", "duplicates"
_OTHER_SOURCES: tuple[Source, ...] = ("prometheus", "haproxy", "envoy")
"""Those that a line names; of vts it says nothing."""
_RESERVED = frozenset((*_SNAPSHOT_KEYS, _SOURCE, _MORE_GROUPS, _DUPLICATES, "gap"))
_NOT_SHOWN = ("weight", "maxFails", "failTimeout", "backup", "down")
"""Keys of a server that are left out where the statistics do not show them."""
_GAP = "gap"
_BAD = "Non 2xx/3xx responses"
OLD_INTERVAL_MS = 500
"""Files with only the old keys have no times: their snapshots were taken every 0.5 s."""
_LONGEST_BACKOFF_S = 5.0


def record(
    read: Callable[[], Snapshot],
    writer: SnapshotWriter,
    interval_s: float,
    pause: Callable[[float], bool],
    note: Callable[[str], None] = lambda _: None,
) -> None:
    """Writes a snapshot every `interval_s` seconds until `pause` returns True, and one more at the end.

    When the statistics cannot be read, writes a gap and tries again at growing intervals of up to 5 s.

    Args:
        read: takes a reading; StatusError when the statistics cannot be read.
        pause: waits that many seconds, or less; True ends the recording.
        note: called with a line when NGINX becomes unreachable, and when it responds again.

    Raises:
        DataError: the file cannot be written.
    """
    silent, due_s = 0, time.monotonic()
    last = False
    while True:
        try:
            writer.write(read())
            if silent:
                note(f"NGINX responds again after {silent} attempts")
            silent = 0
        except StatusError as error:
            writer.write_gap(str(error), time.time())
            silent += 1
            if silent == 1:
                note(f"a gap: {error}")
        if last:
            return
        now_s = time.monotonic()
        # A late reading does not delay the next ones; missed readings are not repeated.
        due_s = max(min(due_s, now_s) + interval_s, now_s) if not silent else now_s + _backoff_s(interval_s, silent)
        last = pause(due_s - now_s)


class Recording(NamedTuple):
    """Content of a file.

    Attributes:
        snapshots: in the order of the file.
        skipped: number of lines that are torn or not a snapshot, as the last line of a killed writer.
        gaps: number of notes that the statistics could not be read.
    """

    snapshots: list[Snapshot]
    skipped: int
    gaps: int = 0


class SnapshotWriter(Closing):
    """Appends snapshots to a file, each with one write. A new file in which nothing was written is removed again.

    Raises DataError when the file cannot be opened or written.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.written, self.gaps = path, 0, 0
        try:
            self._is_new = not path.exists()
            self._file = open(path, "ab", buffering=0, opener=open_private)  # noqa: SIM115 - closed by close()
            if _torn(path):
                self._file.write(b"\n")
        except OSError as error:
            raise DataError(f"cannot write: {error.strerror}", where=str(path), remedy="choose another file") from error

    def write(self, snapshot: Snapshot) -> None:
        """One without groups is left out: there is nothing in it to read back."""
        if not snapshot.groups:
            return
        self._write(to_json(snapshot))
        self.written += 1

    def write_gap(self, reason: str, now_s: float) -> None:
        """Writes that the statistics could not be read at `now_s` (seconds since the epoch)."""
        text = reason[:300].encode(errors="replace").decode()
        self._write(msgspec.json.encode({_GAP: text, "nowMsec": round(now_s * 1000)}))
        self.gaps += 1

    def _write(self, line: bytes) -> None:
        try:
            if self._file.write(line + b"\n") <= len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # only a part had room
        except OSError as error:
            remedy = "free some space"
            raise DataError(f"cannot write: {error.strerror}", where=str(self.path), remedy=remedy) from error

    def close(self) -> None:
        self._file.close()
        if self._is_new and self.written + self.gaps == 0:
            self.path.unlink(missing_ok=True)


def read_snapshots(path: Path) -> Recording:
    """The snapshots of a file, and the number of skipped lines and gaps.

    Raises DataError when the file cannot be read or holds no snapshot at all.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", where=str(path), remedy="check the path") from error
    snapshots: list[Snapshot] = []
    skipped = gaps = 0
    for line in filter(bytes.strip, lines):
        try:
            value = json.loads(line)
            if isinstance(value, dict) and isinstance(value.get(_GAP), str):
                gaps += 1
            else:
                snapshots.append(from_json(value, index=len(snapshots) + skipped))
        except (ValueError, RecursionError, StatusError):
            skipped += 1
    if not snapshots:
        raise DataError(
            f"no snapshot in {skipped} lines", where=str(path), remedy="record with: deepsched collect FILE"
        )
    return Recording(snapshots, skipped, gaps)


def to_json(snapshot: Snapshot) -> bytes:
    """One line, without its end."""
    line: dict[str, Any] = {
        "nowMsec": snapshot.now_ms,
        "loadMsec": snapshot.load_ms,
        "hostName": snapshot.host_name,
        "connections": snapshot.connections,
    }
    if snapshot.source != "vts":
        line[_SOURCE] = snapshot.source
    if snapshot.zone is not None:
        line["sharedZones"] = _known(snapshot.zone)
    if snapshot.balancer is not None:
        line["deepsched"] = snapshot.balancer
    if twice := sorted(pair for pair in snapshot.duplicates if pair[1] in snapshot.groups.get(pair[0], ())):
        line[_DUPLICATES] = twice
    without = _NOT_SHOWN if snapshot.source == "prometheus" else ()
    for name, servers in snapshot.groups.items():
        group = {server: _entry(counters, without) for server, counters in servers.items()}
        if snapshot.unserved.get(name) and name not in servers:
            group[name] = _entry(_unserved(name, snapshot.unserved[name]))
        (line.setdefault(_MORE_GROUPS, {}) if name in _RESERVED else line)[name] = group
    return msgspec.json.encode(line)


def from_json(line: Mapping[str, Any], index: int = 0) -> Snapshot:
    """The snapshot of one line with old or new keys. Raises StatusError for any other line."""
    if not isinstance(line, Mapping):
        raise StatusError("a line is not a JSON object", where="snapshots")
    named = line.get(_SOURCE)
    source: Source = next((known for known in _OTHER_SOURCES if known == named), "vts")
    own = {*_SNAPSHOT_KEYS, _MORE_GROUPS} | ({_SOURCE} if source != "vts" else set())
    pairs = line.get(_DUPLICATES)
    if isinstance(pairs, list):  # else a group of an earlier version has this name
        own.add(_DUPLICATES)
    more = line.get(_MORE_GROUPS, {})
    groups = {name: value for name, value in line.items() if name not in own}
    groups |= more if isinstance(more, Mapping) else {_MORE_GROUPS: more}
    if not groups or not all(isinstance(servers, Mapping) for servers in groups.values()):
        raise StatusError("a line has no groups", where="snapshots", remedy="expected {GROUP: {SERVER: {…}}}")
    document = {key: line[key] for key in _SNAPSHOT_KEYS if key in line}
    document.setdefault("nowMsec", index * OLD_INTERVAL_MS)
    document.setdefault("loadMsec", 0)
    document.setdefault("connections", {})
    document["upstreamZones"] = {
        name: [_server_from_json(server, counters) for server, counters in servers.items()]
        for name, servers in groups.items()
    }
    snapshot = parse(document)
    return replace(snapshot, source=source, duplicates=_duplicates(pairs, snapshot.groups))


def _duplicates(pairs: Any, groups: Mapping[str, Mapping[str, object]]) -> frozenset[tuple[str, str]]:
    """Those of a line that the groups show. Raises StatusError for a list of anything else."""
    if not isinstance(pairs, list):
        return frozenset()
    try:
        known = msgspec.convert(pairs, list[tuple[str, str]])
    except msgspec.MsgspecError as error:
        remedy = "expected [[GROUP, SERVER], …]"
        raise StatusError(f"wrong '{_DUPLICATES}' of a line", where="snapshots", remedy=remedy) from error
    return frozenset(pair for pair in known if pair[1] in groups.get(pair[0], ()))


def _entry(counters: ServerCounters, without: Sequence[str] = ()) -> dict[str, Any]:
    """The keys of one server; values that are structs are left to the encoder, which is faster."""
    names, values = _keys(type(counters))
    entry: dict[str, Any] = dict(zip(names, values(counters), strict=True))
    if counters.response_msec_counter is None:
        del entry["responseMsecCounter"]
    for key in ("server", *without):
        del entry[key]
    informational, _, _, client, server = counters.responses.counts()
    entry[_BAD] = min(informational + client + server, 2**64 - 1)
    return entry


@cache
def _keys(kind: type[ServerCounters]) -> tuple[tuple[str, ...], attrgetter[tuple[Any, ...]]]:
    """The keys of vts, and a function that takes their values from an object."""
    fields = msgspec.structs.fields(kind)
    return tuple(each.encode_name for each in fields), attrgetter(*(each.name for each in fields))


def _known(value: msgspec.Struct) -> dict[str, Any]:
    return {key: part for key, part in msgspec.to_builtins(value).items() if part is not None}


def _server_from_json(server: str, counters: Any) -> Any:
    if not isinstance(counters, Mapping):
        return counters
    entry = {**counters, "server": server}
    bad, requests = counters.get(_BAD), counters.get("requestCounter")
    if "responses" not in counters and isinstance(bad, int) and isinstance(requests, int) and 0 <= bad <= requests:
        # Old files tell only good from bad: the bad ones count as the class that matters to a policy.
        entry["responses"] = {"2xx": requests - bad, "5xx": bad}
    return entry


def _unserved(name: str, count: int) -> ServerCounters:
    responses = Responses(server_errors=count)
    return ServerCounters(server=name, request_counter=count, responses=responses, weight=0, max_fails=0)


def _torn(path: Path) -> bool:
    """Whether the last line of the file is incomplete."""
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _backoff_s(interval_s: float, attempts: int) -> float:
    return max(interval_s, min(interval_s * 2.0 ** min(attempts - 1, 10), _LONGEST_BACKOFF_S))
