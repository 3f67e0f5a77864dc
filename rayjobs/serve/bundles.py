"""Which bundle is served. The state that matters is a file, so that any replica can be replaced."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from pathlib import Path

from actuators.contract.topology import Topology
from actuators.errors import BundleError
from actuators.files import write_atomic
from tuning.policy.adviser import Adviser
from tuning.policy.bundle import FILES, check_bundle, load_bundle

KEPT_TOPOLOGIES = 16
"""Sets of servers for which a policy is kept in memory."""


class BundleStore:
    """The served bundle: a pointer file that every replica follows.

    Args:
        first: bundle that is served when there is no pointer yet.
        root: folder that bundles must lie below.
        state: folder of the pointer, `served.json`.

    Raises:
        BundleError: the bundle cannot be used.
    """

    def __init__(self, first: Path, root: Path, state: Path) -> None:
        self.root, self._pointer = root, state / "served.json"
        state.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        if not self._pointer.exists():
            self.point(check_bundle(first, root), None)
        self._seen_ns = 0
        self._loaded = self._load()

    def current(self) -> LoadedBundle:
        """The bundle that the pointer names; loaded again when the pointer has changed."""
        try:
            changed = self._pointer.stat().st_mtime_ns != self._seen_ns
        except OSError:
            return self._loaded
        if changed:
            with self._lock:
                self._loaded = self._load()
        return self._loaded

    def swap(self, folder: Path) -> None:
        """Serves another bundle from now on and remembers the present one for a rollback. Raises BundleError."""
        folder = folder if folder.is_absolute() else self.root / folder
        real = check_bundle(folder, self.root)
        LoadedBundle(real)  # proves that it loads before the pointer names it
        with self._lock:
            self.point(real, self._loaded.folder)

    def rollback(self) -> None:
        """Serves the previous bundle again. Raises BundleError when there is none."""
        previous = self.previous()
        if previous is None:
            raise BundleError("no previous bundle to roll back to", where=str(self.root), remedy="swap first")
        self.swap(previous)

    def previous(self) -> Path | None:
        """The bundle that a rollback would serve; None when nothing was swapped."""
        named = json.loads(self._pointer.read_bytes())["previous"]
        return Path(named) if named else None

    def point(self, folder: Path, previous: Path | None) -> None:
        """Writes the pointer. Raises OSError."""
        write_atomic(
            self._pointer, json.dumps({"current": str(folder), "previous": str(previous) if previous else None})
        )

    def _load(self) -> LoadedBundle:
        self._seen_ns = self._pointer.stat().st_mtime_ns
        return LoadedBundle(check_bundle(Path(json.loads(self._pointer.read_bytes())["current"]), self.root))


class LoadedBundle:
    """One bundle in memory, and a policy for each set of servers in recent requests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.own = Adviser(load_bundle(folder))
        digests = [hashlib.sha256((folder / name).read_bytes()).digest() for name in sorted(FILES)]
        self.id = hashlib.sha256(b"".join(digests)).hexdigest()[:16]
        self._advisers: OrderedDict[Topology, Adviser] = OrderedDict({self.own.topology: self.own})

    def adviser(self, topology: Topology) -> Adviser:
        """Raises BundleError when the bundle cannot act on this topology."""
        if topology not in self._advisers:
            self._advisers[topology] = Adviser(load_bundle(self.folder, topology))
        self._advisers.move_to_end(topology)
        while len(self._advisers) > KEPT_TOPOLOGIES:
            self._advisers.popitem(last=False)
        return self._advisers[topology]
