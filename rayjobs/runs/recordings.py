"""`deepsched calibrate`: fits a simulator to snapshots of a live system and says how well it does."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actuators.contract.topology import Topology
    from actuators.contract.window import Window
    from actuators.statistics.vts import Snapshot

SNAPSHOTS = "snapshots.jsonl"


def windows_of(path: Path) -> tuple[list[Window], Topology, list[str]]:
    """The windows between the snapshots of a file or of a run's folder, and what the file lacks, in words."""
    from actuators.statistics.recording import read_snapshots
    from envs.calibration.calibrate import windows_topology

    recording = read_snapshots(path / SNAPSHOTS if path.is_dir() else path)
    topology = windows_topology(recording.snapshots)
    windows = windows_between(recording.snapshots, topology)
    notes = [f"{recording.skipped} lines are torn or no snapshots"] if recording.skipped else []
    notes += [f"the statistics could not be read {recording.gaps} times"] if recording.gaps else []
    return windows, topology, notes


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
