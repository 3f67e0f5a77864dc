"""The served policy without its HTTP: which bundle, and what it answers. State that matters is on disk only.

The body of `POST /v1/weights` → what was asked. Documents are read past what nobody needs: they can be megabytes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from actuators.contract.control import ServiceTimes
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from actuators.errors import BundleError, DataError, StatusError
from actuators.files import write_atomic
from actuators.statistics.vts import Document, Snapshot, not_vts, snapshot
from actuators.statistics.windows import difference
from envs.observation.features import LatencyMemory
from rayjobs.serve.models import MAX_MOMENTS, MemoryModel, WeightsRequest
from tuning.policy.adviser import Adviser
from tuning.policy.bundle import FILES, check_bundle, load_bundle
from tuning.steering import window_json
from tuning.steering.decide import Answer, answer
from tuning.steering.guards import GuardOptions
from tuning.steering.window_json import WindowModel

_NOTHING = msgspec.Raw(b"null")


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    documents: Annotated[list[Document], msgspec.Meta(min_length=2, max_length=MAX_MOMENTS)] | None = None
    windows: msgspec.Raw = _NOTHING
    memory: msgspec.Raw = _NOTHING


_DECODER = msgspec.json.Decoder(_Body)


@dataclass(frozen=True)
class Asked:
    """One request: either snapshots or windows, oldest first, and what is known from before."""

    snapshots: list[Snapshot] | None
    windows: list[WindowModel] | None
    memory: MemoryModel | None


def read_body(body: bytes) -> Asked:
    """Raises StatusError or pydantic's ValidationError naming the first thing that is not as it should be."""
    try:
        parts = _DECODER.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise not_vts(error) if "documents" in str(error) else StatusError(f"not a request: {error}"[:300]) from error
    if parts.documents is None or bytes(parts.windows) != b"null":
        # Small, and refused with pydantic's words.
        request = WeightsRequest.model_validate_json(body)
        return Asked(None, request.windows, request.memory)
    memory = None if bytes(parts.memory) == b"null" else MemoryModel.model_validate_json(bytes(parts.memory))
    return Asked([snapshot(document) for document in parts.documents], None, memory)


KEPT_TOPOLOGIES = 16
"""Sets of servers for which a ready policy is kept."""


class BundleStore:
    """Which bundle is served: a pointer file that every replica follows, so that none of them matters.

    Args:
        root: bundles must lie below it.
        state: folder of the pointer, `served.json`.

    Raises:
        BundleError: the first bundle is refused.
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
        """The bundle that the pointer names; loaded anew when the pointer has changed."""
        try:
            changed = self._pointer.stat().st_mtime_ns != self._seen_ns
        except OSError:
            return self._loaded
        if changed:
            with self._lock:
                self._loaded = self._load()
        return self._loaded

    def swap(self, folder: Path) -> None:
        """Serves another bundle from now on; the present one is kept for a rollback. Raises BundleError."""
        folder = folder if folder.is_absolute() else self.root / folder
        real = check_bundle(folder, self.root)
        LoadedBundle(real)  # proves that it loads, before anybody points at it
        with self._lock:
            self.point(real, self._loaded.folder)

    def rollback(self) -> None:
        """Serves the previous bundle again. Raises BundleError when there is none."""
        previous = self.previous()
        if previous is None:
            raise BundleError("there is no previous bundle", where=str(self.root), remedy="swap first")
        self.swap(previous)

    def previous(self) -> Path | None:
        named = json.loads(self._pointer.read_bytes())["previous"]
        return Path(named) if named else None

    def point(self, folder: Path, previous: Path | None) -> None:
        write_atomic(
            self._pointer, json.dumps({"current": str(folder), "previous": str(previous) if previous else None})
        )

    def _load(self) -> LoadedBundle:
        self._seen_ns = self._pointer.stat().st_mtime_ns
        return LoadedBundle(check_bundle(Path(json.loads(self._pointer.read_bytes())["current"]), self.root))


class LoadedBundle:
    """One bundle in memory, and a ready policy for each set of servers that it was asked about."""

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


@dataclass(frozen=True, eq=False)
class Question:
    """What one request asks: windows of some servers, oldest first, and what is known from before them."""

    topology: Topology
    windows: list[Window]
    memory: LatencyMemory | None


def question(bundle: LoadedBundle, asked: Asked) -> Question:
    """Raises StatusError, DataError or ConfigError: what was sent makes no sense."""
    topology, windows = _windows(bundle.own.topology, asked)
    return Question(topology, windows, _memory(asked.memory, topology))


def advise(bundle: LoadedBundle, asked: Asked, guards: GuardOptions) -> dict[str, Any]:
    """The body of an answer, see `WeightsAnswer`.

    Raises:
        StatusError, DataError, ConfigError, BundleError: what was sent makes no sense.
    """
    given = question(bundle, asked)
    deadlines_s = bundle.own.bundle.problem.deadlines_s
    result = answer(bundle.adviser(given.topology), given.windows, given.memory, deadlines_s, guards)
    return shaped(result, given.topology, bundle.id)


def _windows(model: Topology, asked: Asked) -> tuple[Topology, list[Window]]:
    if asked.windows is not None:
        first = asked.windows[0]
        # Every group of a window has a column per server; which of them are its own, its weights say.
        groups = {
            name: [s for s, weight in zip(first.servers, row, strict=False) if weight > 0] or first.servers
            for name, row in zip(first.groups, first.weight, strict=False)
        }
        topology = window_json.topology_of(model, groups)
        return topology, [window_json.from_json(window, topology) for window in asked.windows]
    assert asked.snapshots is not None
    topology = window_json.topology_of(model, _servers(asked.snapshots[-1]))
    pairs = itertools.pairwise(asked.snapshots)
    return topology, [difference(before, after, topology) for before, after in pairs]


def _servers(snapshot: Snapshot) -> dict[str, list[str]]:
    return {name: list(servers) for name, servers in snapshot.groups.items()}


def _memory(given: MemoryModel | None, topology: Topology) -> LatencyMemory | None:
    if given is None:
        return None
    rows, columns = topology.shape
    for table in (given.fast_s, given.slow_log):
        if len(table) != rows or any(len(row) != columns for row in table):
            raise DataError("memory has the wrong size", where="memory", remedy=f"expected {topology.shape}")
    fast = np.array([[np.nan if value is None else value for value in row] for row in given.fast_s], dtype=float)
    try:
        learned = {name: np.array(rows, dtype=float) for name, rows in given.learned.items()}
    except (ValueError, TypeError) as error:
        raise DataError("not numbers", where="memory.learned", remedy="send what was answered") from error
    if not all(np.isfinite(table).all() for table in learned.values()):
        raise DataError("not finite", where="memory.learned", remedy="send what was answered")
    return LatencyMemory(np.where(fast > 0, fast, np.nan), np.array(given.slow_log, dtype=float), learned)


def shaped(result: Answer, topology: Topology, bundle: str) -> dict[str, Any]:
    """A decision as the body of an answer; `bundle` is the digest of the one that made it."""
    advice, weights = result.advice, result.weights.as_weights() if result.weights else None
    named = None
    if weights is not None:
        named = {
            group.name: {s: int(weights.values[g, topology.server_index(s)]) for s in group.servers}
            for g, group in enumerate(topology.groups)
        }
    return {
        "decision": result.decision,
        "reason": result.reason,
        "weights": named,
        "groups": [group.name for group in topology.groups],
        "servers": list(topology.servers),
        "policy": advice.policy.as_weights().values.tolist() if advice and advice.policy else None,
        "baseline": advice.baseline.as_weights().values.tolist() if advice else None,
        "service_times": _times(result),
        "problem": advice.problem if advice else "",
        "state": None if advice is None else {
            "cluster": advice.state.cluster.tolist(),
            "posterior": advice.state.posterior.tolist(),
            "novelty": advice.state.novelty.tolist(),
        },
        "memory": None if advice is None else {
            "fast_s": [[None if np.isnan(v) else v for v in row] for row in advice.memory.fast_s.tolist()],
            "slow_log": advice.memory.slow_log.tolist(),
            "learned": {name: table.tolist() for name, table in advice.memory.learned.items()},
        },
        "bundle": bundle,
    }  # fmt: skip


def _times(result: Answer) -> dict[str, Any] | None:
    if result.advice is None or not isinstance(result.advice.baseline, ServiceTimes):
        return None
    controls = {"policy": result.advice.policy, "baseline": result.advice.baseline, "decided": result.weights}
    tables = {name: c.tau_s.tolist() if isinstance(c, ServiceTimes) else None for name, c in controls.items()}
    return {**tables, "workers": result.advice.baseline.workers.tolist()}
