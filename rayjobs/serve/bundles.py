"""Which bundle is served. The state that matters is a file, so that any replica can be replaced."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import OrderedDict
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from actuators.contract.topology import Topology
from actuators.errors import BundleError, DataError
from actuators.store import Store, Stored
from tuning.policy.adviser import Adviser
from tuning.policy.bundle import FILES, check_bundle, load_bundle

KEPT_TOPOLOGIES = 16
"""Sets of servers for which a policy is kept in memory, the latest ones."""
KEPT_SERVERS = 1000
"""A larger set is not kept: names that nobody asks about again would take the memory."""


class Served(BaseModel):
    """Which bundle is served.

    Attributes:
        given: bundle of the start that this belongs to; another start begins with its own.
        previous: what a rollback would serve; None when nothing was swapped.
    """

    model_config = ConfigDict(frozen=True)

    current: Path
    previous: Path | None = None
    given: Path | None = None


def serve_anew(state: Path) -> None:
    """Forgets the swaps of an earlier start; call once before the replicas of a new one begin. Raises OSError."""
    (state / "served.json").unlink(missing_ok=True)


class BundleStore:
    """The served bundle: a pointer file that every replica follows.

    Args:
        first: bundle that is served until another is swapped in.
        root: folder that bundles must lie below.
        state: folder of the pointer, `served.json`.

    Raises:
        BundleError: the bundle cannot be used.
    """

    def __init__(self, first: Path, root: Path, state: Path) -> None:
        self.root, self._first = root, first
        state.mkdir(parents=True, exist_ok=True)
        self._pointer = Store(state / "served.json", Served, "a pointer to a bundle")
        self._lock = threading.Lock()
        try:
            self._pointer.change(self._begun)
        except DataError:
            # Torn, and without a good copy: nobody can say any more what was swapped in.
            serve_anew(state)
            self._pointer.change(self._begun)
        self._seen = (0, 0)
        self._loaded = self._load()

    def is_behind(self) -> bool:
        """Whether the pointer has changed, so that `current` loads a bundle."""
        try:
            return self._stamp() != self._seen
        except OSError:
            return False

    def current(self) -> LoadedBundle:
        """The bundle that the pointer names; loaded again when the pointer has changed."""
        if self.is_behind():
            with self._lock, contextlib.suppress(OSError, DataError):  # gone or torn: the bundle in use stays in use
                if self.is_behind():
                    self._loaded = self._load()
        return self._loaded

    def swap(self, folder: Path) -> None:
        """Serves another bundle from now on and remembers the present one for a rollback.

        Raises BundleError, or ConflictError when somebody else has swapped at the same time.
        """
        version = self._pointer.read().version
        folder = folder if folder.is_absolute() else self.root / folder
        real = check_bundle(folder, self.root)
        loaded = LoadedBundle(real)  # proves that it loads before the pointer names it
        with self._lock:
            present = self._loaded.folder
            self._pointer.change(lambda _: Served(current=real, previous=present, given=self._first), expected=version)
            self._seen, self._loaded = self._stamp(), loaded

    def rollback(self) -> None:
        """Serves the previous bundle again. Raises BundleError when there is none."""
        previous = self.previous()
        if previous is None:
            raise BundleError("no previous bundle to roll back to", where=str(self.root), remedy="swap first")
        self.swap(previous)

    def previous(self) -> Path | None:
        """The bundle that a rollback would serve; None when nothing was swapped."""
        served = self._pointer.read().value
        return served.previous if served is not None else None

    def _begun(self, stored: Stored[Served]) -> Served:
        """The pointer of this start: what was swapped in since it began, or its own bundle."""
        served = stored.value
        if served is not None and served.given == self._first:
            return served
        return Served(current=check_bundle(self._first, self.root), given=self._first)

    def _stamp(self) -> tuple[int, int]:
        status = self._pointer.path.stat()
        return status.st_mtime_ns, status.st_ino

    def _load(self) -> LoadedBundle:
        self._seen = self._stamp()
        served = self._pointer.read().value
        return LoadedBundle(check_bundle(served.current if served is not None else self._first, self.root))


class LoadedBundle:
    """One bundle in memory, and a policy for each set of servers in recent requests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.own = Adviser(load_bundle(folder))
        digests = [hashlib.sha256((folder / name).read_bytes()).digest() for name in sorted(FILES)]
        self.id = hashlib.sha256(b"".join(digests)).hexdigest()[:16]
        self._advisers: OrderedDict[Topology, Adviser] = OrderedDict({self.own.topology: self.own})
        self._lock = threading.Lock()

    def adviser(self, topology: Topology) -> Adviser:
        """Raises BundleError when the bundle cannot act on this topology."""
        kept = self._advisers.get(topology)
        if kept is not None:
            return kept
        made = Adviser(self.own.bundle.on(topology))
        if len(topology.servers) <= KEPT_SERVERS:
            with self._lock:
                self._advisers[topology] = made
                while len(self._advisers) > KEPT_TOPOLOGIES:
                    self._advisers.popitem(last=False)
        return made
