"""Which bundle is served. The state that matters is a file, so that any replica can be replaced."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from actuators.contract.topology import Topology
from actuators.errors import BundleError, ConflictError, DataError, DeepSchedError
from actuators.store import Store, Stored
from rayjobs.serve.telemetry import event
from tuning.policy.adviser import Adviser
from tuning.policy.bundle import FILES, check_bundle, load_bundle

KEPT_TOPOLOGIES = 16
"""Sets of servers for which a policy is kept in memory, the latest ones."""
KEPT_SERVERS = 1000
"""A larger set is not kept: names that are not requested again would fill the memory."""


_UNSEEN = (0, 0)
TRIAL_S = 3600.0
"""How long a bundle that was swapped in is on trial: while it fails, the bundle before takes its place."""


class TakenBack(BaseModel):
    """A bundle that was swapped in, failed, and was replaced by the one before.

    Attributes:
        why: its last failure.
        at: when it was taken back, ISO 8601 in UTC.
    """

    model_config = ConfigDict(frozen=True)

    folder: Path
    why: str
    at: str


class Served(BaseModel):
    """Which bundle is served.

    Attributes:
        given: bundle of the start that this belongs to; another start begins with its own.
        previous: what a rollback would serve; None when nothing was swapped, or the swap was taken back.
        swapped_s: Unix time of the swap that `current` came by; None when an operator may not be overruled: it was
            there at the start, or by a rollback.
        taken_back: the latest swap, when it was taken back.
        times_taken_back: since the start.
    """

    model_config = ConfigDict(frozen=True)

    current: Path
    previous: Path | None = None
    given: Path | None = None
    swapped_s: float | None = None
    taken_back: TakenBack | None = None
    times_taken_back: int = 0

    def without_current(self, why: str) -> Served:
        """The bundle before is served again; there must be one."""
        assert self.previous is not None
        at = datetime.now(UTC).isoformat(timespec="seconds")
        taken = TakenBack(folder=self.current, why=why[:300], at=at)
        return Served(
            current=self.previous, given=self.given, taken_back=taken, times_taken_back=self.times_taken_back + 1
        )


@dataclass(frozen=True, eq=False)
class InUse:
    """What a replica answers with.

    Attributes:
        before: the bundle that takes the place of a swapped one that fails; None when nothing can.
        version: of the pointer, whose content is `served`.
    """

    bundle: LoadedBundle
    before: LoadedBundle | None
    served: Served
    version: int

    @property
    def on_trial(self) -> bool:
        """Whether failures count."""
        since_s = self.served.swapped_s
        return self.before is not None and since_s is not None and abs(time.time() - since_s) < TRIAL_S


def serve_anew(state: Path) -> None:
    """Forgets the swaps of an earlier start; call once before the replicas of a new one begin. Raises OSError."""
    (state / "served.json").unlink(missing_ok=True)


class BundleStore:
    """The served bundle: a pointer file that every replica follows.

    A bundle that was swapped in and does not load any more is taken back at once.

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
        self._seen = self._stamp()
        self._in_use = self._opened(self._pointer.read(), None)

    def is_behind(self) -> bool:
        """Whether the pointer may have changed, so that `in_use` looks at it, and loads a bundle when it has."""
        try:
            return self._stamp() != self._seen
        except OSError:
            return False

    def in_use(self) -> InUse:
        """What the pointer names."""
        if self.is_behind():
            try:
                self._follow()
            except (OSError, DeepSchedError) as error:
                event("bundle not followed, the one in use stays in use", logging.ERROR, detail=str(error))
        return self._in_use

    def swap(self, folder: Path) -> None:
        """Serves another bundle from now on, on trial, and remembers the present one.

        Raises BundleError, or ConflictError when somebody else has swapped at the same time.
        """
        self._swap(self._pointer.read(), folder, time.time())

    def rollback(self) -> None:
        """Serves the previous bundle again. Raises BundleError when there is none, otherwise as `swap`."""
        stored = self._pointer.read()
        if stored.value is None or stored.value.previous is None:
            raise BundleError("no previous bundle to roll back to", where=str(self.root), remedy="swap first")
        self._swap(stored, stored.value.previous, None)

    def take_back(self, failing: InUse, why: str) -> None:
        """Serves the bundle before `failing` again; follows the pointer when that has changed meanwhile.

        Raises BundleError, DataError or OSError.
        """
        assert failing.before is not None
        with self._lock:
            stored = Stored(failing.version, failing.served)
            self._seen, self._in_use = _UNSEEN, self._without_current(stored, failing.before, why)

    def _follow(self) -> None:
        with self._lock:
            if self.is_behind():
                self._seen = self._stamp()
                stored = self._pointer.read()
                if stored.version != self._in_use.version:
                    self._in_use = self._opened(stored, self._in_use.bundle)

    def _swap(self, stored: Stored[Served], folder: Path, swapped_s: float | None) -> None:
        folder = folder if folder.is_absolute() else self.root / folder
        real = check_bundle(folder, self.root)
        loaded = LoadedBundle(real)  # proves that it loads before the pointer names it
        with self._lock:
            present, pointed = self._in_use.bundle, stored.value or Served(current=self._in_use.bundle.folder)
            # Not `present`: another replica may have swapped, and this one has not followed yet.
            served = Served(
                current=real, previous=pointed.current, given=self._first, swapped_s=swapped_s,
                times_taken_back=pointed.times_taken_back,
            )  # fmt: skip
            version = self._pointer.change(lambda _: served, expected=stored.version).version
            # Not the stamp of now: somebody may have changed the pointer since.
            self._seen, self._in_use = _UNSEEN, InUse(loaded, self._before(served, present), served, version)

    def _opened(self, stored: Stored[Served], present: LoadedBundle | None) -> InUse:
        """Loads what the pointer names; a swapped-in bundle that does not load gives its place to the one before.

        Args:
            present: the bundle in memory, which may be the one before.

        Raises BundleError, DataError or OSError.
        """
        served = stored.value or Served(current=self._first)
        try:
            bundle = LoadedBundle(check_bundle(served.current, self.root))
        except (BundleError, OSError) as error:
            if served.previous is None or served.swapped_s is None:  # an operator chose it
                raise
            return self._without_current(stored, LoadedBundle(check_bundle(served.previous, self.root)), str(error))
        return InUse(bundle, self._before(served, present), served, stored.version)

    def _without_current(self, stored: Stored[Served], before: LoadedBundle, why: str) -> InUse:
        """Makes the pointer name the bundle before, unless it has changed since `stored`."""
        assert stored.value is not None
        served = stored.value.without_current(why)
        try:
            version = self._pointer.change(lambda _: served, expected=stored.version).version
        except ConflictError:
            return self._opened(self._pointer.read(), before)
        event("bundle taken back", logging.ERROR, folder=str(stored.value.current), why=why, by=str(before.folder))
        return InUse(before, None, served, version)

    def _before(self, served: Served, present: LoadedBundle | None) -> LoadedBundle | None:
        """The bundle before a swap, as long as the swap is on trial."""
        if served.swapped_s is None or served.previous in (None, served.current):
            return None
        assert served.previous is not None
        if present is not None and present.folder == served.previous:
            return present
        try:
            return LoadedBundle(check_bundle(served.previous, self.root))
        except (BundleError, OSError) as error:
            event("no bundle to return to", logging.WARNING, folder=str(served.previous), why=str(error))
            return None

    def _begun(self, stored: Stored[Served]) -> Served:
        """The pointer of this start: what was swapped in since it began, or its own bundle."""
        served = stored.value
        if served is not None and served.given == self._first:
            return served
        return Served(current=check_bundle(self._first, self.root), given=self._first)

    def _stamp(self) -> tuple[int, int]:
        status = self._pointer.path.stat()
        return status.st_mtime_ns, status.st_ino


class LoadedBundle:
    """One bundle in memory, and a policy for each set of servers in recent requests.

    Attributes:
        learned_names: of what its estimator of service times learns; empty without one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.own = Adviser(load_bundle(folder))
        self.learned_names = frozenset(self.own.bundle.problem.observer().remembered().learned)
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
