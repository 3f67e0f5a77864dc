"""Watches a system until its response times are known: records snapshots, and asks the stopping rule when to end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from actuators.contract.topology import Topology
from actuators.contract.window import Window
from actuators.errors import ConfigError, DataError, closest
from actuators.statistics.lacks import unfit
from actuators.statistics.reader import StatusReader
from actuators.statistics.recording import SnapshotWriter, read_snapshots, record
from actuators.statistics.vts import Snapshot
from envs.calibration.calibrate import windows_topology
from envs.calibration.verdict import GroupVerdict
from envs.observation.precision import Precision, WatchOptions, expected_s, is_enough, precision
from rayjobs.onboard.faults import faulty
from rayjobs.onboard.options import OnboardOptions
from rayjobs.runs.recordings import windows_between

RECORDING = "snapshots.jsonl"
_LOOK_EVERY_S = 5.0
_LONGEST_WINDOWS = 5.0
"""A window that lasts longer than this many times the usual one spans an interruption and is left out."""


class Watch:
    """One watch.

    Args:
        path: file of the recording; what it holds already is used, and new snapshots are appended.
        report: called with what is known, in words, and the share of the watch that is over.
        note: called with a line when the statistics cannot be read, and when they can again.
    """

    def __init__(
        self,
        options: OnboardOptions,
        path: Path,
        report: Callable[[str, float], None],
        note: Callable[[str], None],
    ) -> None:
        self._options, self._path, self._report, self._note = options, path, report, note
        self._rule = rule_of(options)
        self.seen = Recorded(options.groups)
        self.seen.snapshots.extend(_recorded(path))
        self._found = len(self.seen.snapshots)
        self._began_s = self._looked_s = time.monotonic()
        self._before_s = sum(window.duration_s for window in self.seen.windows() if window.usable)

    def run(self) -> Recorded:
        """Returns when the rule is met.

        Raises:
            DataError: the recording cannot be written, or no simulator can be fitted to what is read.
        """
        if not self._is_over():
            with (
                _Keeping(self._path, self.seen.snapshots) as writer,
                StatusReader(self._options.status_url, self._options.reading) as reader,
            ):
                record(reader.snapshot, writer, self._options.interval_s, self._pause, self._note)
            self._require_histograms(self.seen.windows())
        return self.seen

    @property
    def _elapsed_s(self) -> float:
        return self._before_s + time.monotonic() - self._began_s

    def _pause(self, duration_s: float) -> bool:
        until_s = time.monotonic() + min(duration_s, self._rule.most_s - self._elapsed_s)
        over = time.monotonic() - self._looked_s >= _LOOK_EVERY_S and self._is_over()
        threading.Event().wait(max(until_s - time.monotonic(), 0.0))
        return over or self._elapsed_s >= self._rule.most_s

    def _is_over(self) -> bool:
        self._looked_s, elapsed_s = time.monotonic(), self._elapsed_s
        windows = self.seen.windows()
        if not windows:
            self._report("no requests yet", min(elapsed_s / self._rule.most_s, 1.0))
            return elapsed_s >= self._rule.most_s
        self._require_histograms(windows)
        known = precision(windows)
        total_s = max(expected_s(known, self._rule), elapsed_s)
        self._report(describe(known, total_s - elapsed_s, self._rule), elapsed_s / total_s)
        exact = self._options.watch_s is not None
        return elapsed_s >= self._rule.most_s or (not exact and is_enough(known, self._rule))

    def _require_histograms(self, windows: Sequence[Window]) -> None:
        """The preflight cannot see what servers without requests lack; what was recorded earlier may be corrected."""
        if not windows or windows[-1].bounds_ms or len(self.seen.snapshots) == self._found:
            return
        lack = unfit(self.seen.snapshots[-1], [group.name for group in windows[-1].topology.groups])
        if lack is not None:
            raise DataError(lack.what, where=self._options.status_url, remedy=lack.remedy)


class Recorded:
    """The snapshots of a watch, and the windows between them; windows are made once.

    Args:
        groups: the upstreams that are looked at; all when empty.

    Attributes:
        left_out: verdicts on groups that would have spoiled the windows of `windows` for the others, as of its last
            call; none when all groups would.
    """

    def __init__(self, groups: Sequence[str]) -> None:
        self.snapshots: list[Snapshot] = []
        self.left_out: tuple[GroupVerdict, ...] = ()
        self._groups = groups
        self._observed: _Windows | None = None
        self._usable: _Windows | None = None

    def windows(self) -> list[Window]:
        """Without those that span an interruption; empty while there was no request.

        Their topology: the groups that had requests and can be used, and the servers that answered them.
        """
        topology, self.left_out = self._topology(), ()
        if topology is None:
            return []
        self._observed = _of(topology, self._observed)
        windows = self._observed.until_now(self.snapshots)
        left_out = faulty(windows, topology)
        names = {verdict.group for verdict in left_out}
        whole = tuple(group for group in topology.groups if group.name not in names)
        if not left_out or not whole:
            return windows
        self.left_out, self._usable = left_out, _of(Topology(whole), self._usable)
        return self._usable.until_now(self.snapshots)

    def windows_of(self, topology: Topology) -> list[Window]:
        """The same for some of the groups."""
        return _whole(windows_between(self.snapshots, topology))

    def _topology(self) -> Topology | None:
        if len(self.snapshots) < 2:
            return None
        # Counters are cumulative: a few snapshots tell as much as all of them.
        step = max(len(self.snapshots) // 50, 1)
        try:
            return observed_topology([*self.snapshots[::step], *self.snapshots[-1:]], self._groups)
        except DataError:
            return None


class _Windows:
    """The windows of one topology; each is made once."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self._windows: list[Window] = []
        self._done = 0

    def until_now(self, snapshots: Sequence[Snapshot]) -> list[Window]:
        """Those of all snapshots, of which there are more at each call."""
        self._windows += windows_between(snapshots[self._done :], self.topology)
        self._done = max(len(snapshots) - 1, 0)
        return _whole(self._windows)


def _of(topology: Topology, known: _Windows | None) -> _Windows:
    return known if known is not None and known.topology == topology else _Windows(topology)


def _recorded(path: Path) -> list[Snapshot]:
    """What an earlier watch has left; nothing where it saw gaps only, or was killed in its first line.

    Raises DataError when the file cannot be read.
    """
    if not path.exists() or path.stat().st_size == 0:
        return []
    try:
        return read_snapshots(path).snapshots
    except DataError as error:
        if isinstance(error.__cause__, OSError):
            raise
        return []


def _whole(windows: Sequence[Window]) -> list[Window]:
    """Those that span no interruption."""
    usual_s = float(np.median([window.duration_s for window in windows])) if windows else 0.0
    return [window for window in windows if window.duration_s <= _LONGEST_WINDOWS * usual_s]


def observed_topology(snapshots: Sequence[Snapshot], groups: Sequence[str]) -> Topology:
    """The groups that had requests, without servers that got none: spare ones, and those out of rotation.

    Raises:
        DataError: no group had a request.
        ConfigError: a group that is looked at is not in the statistics.
    """
    names = {name for snapshot in snapshots for name in snapshot.groups}
    for name in groups:
        if name not in names:
            raise ConfigError(f"no upstream '{name}' in the statistics", where="--groups", remedy=closest(name, names))
    first, last = snapshots[0], snapshots[-1]
    found = []
    for group in windows_topology(snapshots).topology.groups:
        before, after = first.groups.get(group.name, {}), last.groups.get(group.name, {})
        served = tuple(
            server
            for server in group.servers
            if server in after
            and after[server].request_counter != (before[server].request_counter if server in before else 0)
        )
        if served and (not groups or group.name in groups):
            found.append(replace(group, servers=served))
    if not found:
        raise DataError("no request was seen", where="statistics", remedy="watch while there is traffic")
    return Topology(tuple(found))


def rule_of(options: OnboardOptions) -> WatchOptions:
    """When the watch ends; with an exact length it ends then."""
    if options.watch_s is None:
        return options.watch
    return options.watch.changed({"least_s": options.watch_s, "most_s": options.watch_s})


def describe(known: Precision, rest_s: float, rule: WatchOptions) -> str:
    """What is known so far, in words."""
    rate_rps = known.requests.sum() / max(known.seconds, 1e-3)
    widest = "unknown" if known.widest == float("inf") else f"±{known.widest:.0%}"
    return (
        f"{rate_rps:.0f} requests/s, mean response times known to {widest} (±{rule.half_width:.0%} is enough),"
        f" about {rest_s / 60:.1f} min to go"
    )


def summary(known: Precision, topology: Topology, rule: WatchOptions) -> dict[str, Any]:
    """Plain JSON for the next steps and the page."""
    cells = [
        {
            "group": group.name,
            "server": server,
            "requests": int(known.requests[g, s]),
            "mean_ms": float(known.mean_ms[g, s]),
            "half_width": float(known.half_width[g, s]) if known.half_width[g, s] < float("inf") else None,
            "counted": bool(known.counted[g, s]),
        }
        for g, group in enumerate(topology.groups)
        for s, server in enumerate(topology.servers)
        if known.requests[g, s] > 0
    ]
    return {"seconds": known.seconds, "enough": known.widest <= rule.half_width, "cells": cells}


class _Keeping(SnapshotWriter):
    """Appends to the file and to the list."""

    def __init__(self, path: Path, snapshots: list[Snapshot]) -> None:
        super().__init__(path)
        self._snapshots = snapshots

    def write(self, snapshot: Snapshot) -> None:
        super().write(snapshot)
        self._snapshots.append(snapshot)
