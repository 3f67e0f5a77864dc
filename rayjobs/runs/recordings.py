"""Recordings as windows, for the verbs that learn from them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actuators.contract.topology import Topology

if TYPE_CHECKING:
    from actuators.contract.window import Window
    from actuators.statistics.vts import Snapshot

SNAPSHOTS = "snapshots.jsonl"


def windows_of(
    path: Path, groups: Sequence[str] = (), *, in_rotation: bool = False
) -> tuple[list[Window], Topology, list[str]]:
    """The windows between the snapshots of a file or of a run's folder, and what the file lacks, in words.

    Args:
        groups: names of the groups that are wanted; all that had requests when empty.
        in_rotation: without servers that balancing gives no requests, as `windows_topology` leaves them out.
    """
    from actuators.statistics.recording import read_snapshots
    from envs.calibration.calibrate import windows_topology

    recording = read_snapshots(path / SNAPSHOTS if path.is_dir() else path)
    topology, left_out, spare = windows_topology(recording.snapshots, groups, in_rotation=in_rotation)
    windows = windows_between(recording.snapshots, topology)
    unfit = {} if groups else _unfit(windows, topology)
    if unfit and len(unfit) < len(topology.groups):
        topology = Topology(tuple(group for group in topology.groups if group.name not in unfit))
        windows, left_out = windows_between(recording.snapshots, topology), left_out | unfit
    notes = [f"group {name} is left out: it {why}" for name, why in left_out.items()]
    notes += [_without(group.name, spare[group.name]) for group in topology.groups if group.name in spare]
    notes += [f"{recording.skipped} lines are torn or no snapshots"] if recording.skipped else []
    notes += [f"the statistics could not be read {recording.gaps} times"] if recording.gaps else []
    return windows, topology, notes


def _without(group: str, spare: Mapping[str, str], most: int = 12) -> str:
    """Which servers of a group are left out, and why, in a sentence."""
    named = [f"{server} ({why})" for server, why in spare.items()]
    shown = named if len(named) <= most else [*named[:most], f"and {len(named) - most} more"]
    return f"servers of group {group} are left out: {', '.join(shown)}"


def _unfit(windows: Sequence[Window], topology: Topology) -> dict[str, str]:
    """Groups that would spoil the windows for the others: faults in most of them, or no requests in the good ones."""
    unfit = {}
    for g, group in enumerate(topology.groups):
        faults = [
            [fault.detail for fault in window.faults if fault.group == group.name and fault.kind != "reload"]
            for window in windows
        ]
        if sum(map(bool, faults)) > len(windows) / 2:
            unfit[group.name] = f"has faults in most windows: {next(filter(None, faults))[0]}"
        elif not any(window.requests[g].any() for window in windows):
            unfit[group.name] = "had no requests that can be counted"
    return unfit


def windows_between(snapshots: Sequence[Snapshot], topology: Topology) -> list[Window]:
    """A window per pair of neighbours."""
    from actuators.statistics.windows import difference

    return [difference(before, after, topology) for before, after in itertools.pairwise(snapshots)]


def read_windows(path: Path, topology: Topology) -> list[Window]:
    """The windows of a file or of a run's folder, for a topology that is known."""
    from actuators.statistics.recording import read_snapshots

    return windows_between(read_snapshots(path / SNAPSHOTS if path.is_dir() else path).snapshots, topology)


def _between(low: Any, high: Any) -> str:
    return f"{float(low):.3g} to {float(high):.3g}"
