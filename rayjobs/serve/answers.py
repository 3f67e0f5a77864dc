"""Bodies of `POST /v1/weights` → answers, one at a time or several with one call of the network."""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from anyio import CapacityLimiter, to_thread
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool

from actuators.contract.control import ServiceTimes
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from actuators.errors import DataError, DeepSchedError, StatusError
from actuators.statistics.vts import Document, Snapshot, not_vts, parse, snapshot
from actuators.statistics.windows import difference
from envs.observation.features import LatencyMemory
from rayjobs.serve.bundles import BundleStore, InUse, LoadedBundle
from rayjobs.serve.intake import SMALL_BYTES
from rayjobs.serve.models import MAX_MOMENTS, MemoryModel, WeightsRequest
from rayjobs.serve.telemetry import Metrics, event
from rayjobs.serve.trial import Trial
from tuning.policy.adviser import Advice, advisable
from tuning.steering import window_json
from tuning.steering.decide import Verdict, decide_alone
from tuning.steering.options import GuardOptions
from tuning.steering.window_json import WindowModel

Refusal = DeepSchedError | ValidationError
"""Why a request has no answer; sent to the client."""
MOST_NAMED_BYTES = 2**22
"""Longest document that is searched for the group and the server that are wrong."""
Given = TypeVar("Given")
Found = TypeVar("Found")


class Answers:
    """Answers of one replica, counted in `metrics`.

    Attributes:
        together: decides requests in batches when set; takes a body, returns an answer or a refusal.
    """

    def __init__(self, store: BundleStore, guards: GuardOptions, metrics: Metrics | None = None) -> None:
        self.store, self.metrics, self._guards = store, metrics or Metrics(), guards
        self.together: Callable[[bytes], Awaitable[bytes | Refusal]] | None = None
        self._turn, self._trial = CapacityLimiter(1), Trial()

    async def answer(self, body: bytes) -> bytes:
        """JSON of a `WeightsAnswer`. Raises DeepSchedError or ValidationError (`Refusal`)."""
        began_s = time.perf_counter()
        await self._follow()
        if self.together is not None:
            result = await self.together(body)
            if not isinstance(result, bytes):
                raise result
        elif len(body) <= SMALL_BYTES:
            result = self._one(body)
        else:
            result = await self._in_turn(self._one, body)
        await self._take_back_what_lost()
        self.metrics.took(time.perf_counter() - began_s)
        return result

    async def answer_each(self, bodies: Sequence[bytes]) -> list[bytes | Refusal]:
        """The same for several bodies; a bad one does not affect the others."""
        self.metrics.together(len(bodies))
        await self._follow()
        small = sum(map(len, bodies)) <= SMALL_BYTES
        return self._each(bodies) if small else await self._in_turn(self._each, bodies)

    async def _follow(self) -> None:
        """Loads the bundle that another replica has swapped in; meanwhile the event loop goes on."""
        if self.store.is_behind():
            await run_in_threadpool(self.store.in_use)

    async def _take_back_what_lost(self) -> None:
        """A bundle that failed on trial gives its place to the one before."""
        if (lost := self._trial.lost()) is not None:
            try:
                await run_in_threadpool(self.store.take_back, *lost)
            except (DeepSchedError, OSError) as error:
                # The bundle before goes on answering; when that is over, the failures count anew.
                event("bundle not taken back", logging.ERROR, detail=str(error))

    async def _in_turn(self, work: Callable[[Given], Found], given: Given) -> Found:
        """Large requests one after the other, in a thread: a parsed one has many times the size of its body."""
        return await to_thread.run_sync(work, given, limiter=self._turn)

    def _one(self, body: bytes) -> bytes:
        return self._seen(self._decided(self.store.in_use(), read_body(body)))

    def _decided(self, in_use: InUse, parsed: Parsed) -> dict[str, Any]:
        return self._trial.decide(in_use, lambda bundle: advise(bundle, parsed, self._guards))

    def _each(self, bodies: Sequence[bytes]) -> list[bytes | Refusal]:
        in_use = self.store.in_use()
        if in_use.on_trial:
            results = self._each_on_trial(in_use, bodies)
        else:
            results = advise_each(in_use.bundle, bodies, self._guards)
        return [self._seen(result) if isinstance(result, dict) else result for result in results]

    def _each_on_trial(self, in_use: InUse, bodies: Sequence[bytes]) -> list[dict[str, Any] | Refusal]:
        """Those that the bundle in use fails on are decided again by themselves."""
        try:
            together: Sequence[dict[str, Any] | Refusal | None] = advise_each(in_use.bundle, bodies, self._guards)
        except Exception:  # noqa: BLE001 - each raises it by itself again, if it is its own
            together = [None] * len(bodies)
        results: list[dict[str, Any] | Refusal] = []
        for body, result in zip(bodies, together, strict=True):
            if isinstance(result, dict) and not result["problem"]:
                self._trial.passed(result)
                results.append(result)
                continue
            try:
                results.append(self._decided(in_use, read_body(body)))
            except (DeepSchedError, ValidationError) as error:
                results.append(error)
        return results

    def _seen(self, result: dict[str, Any]) -> bytes:
        self.metrics.see(result)
        return to_json(result, inf_nan_mode="null")


@dataclass(frozen=True)
class Parsed:
    """A parsed body: either snapshots or windows, oldest first, and the memory of the last answer."""

    snapshots: list[Snapshot] | None
    windows: list[WindowModel] | None
    memory: MemoryModel | None


@dataclass(frozen=True, eq=False)
class Question:
    """Windows of some servers, oldest first, and the averages from before them."""

    topology: Topology
    windows: list[Window]
    memory: LatencyMemory | None

    @property
    def advisable(self) -> list[Window]:
        """The windows that advice can be given on."""
        return [window for window in self.windows if advisable(window)]


def read_body(body: bytes) -> Parsed:
    """Parses a body; documents can be megabytes, so fields that no decision needs are skipped.

    Raises:
        StatusError, ValidationError: names the first field that is wrong.
    """
    try:
        parts = _BODIES.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise _refusal(body, error) from error
    if parts.documents is None or bytes(parts.windows) != b"null":
        # Small; pydantic words the refusal.
        request = WeightsRequest.model_validate_json(body)
        return Parsed(None, request.windows, request.memory)
    memory = None if bytes(parts.memory) == b"null" else MemoryModel.model_validate_json(bytes(parts.memory))
    return Parsed([snapshot(document) for document in parts.documents], None, memory)


def _refusal(body: bytes, error: Exception) -> StatusError:
    """Why the body is refused; group and server are named where a document is wrong."""
    if "documents" not in str(error):
        return StatusError(f"not a request: {error}"[:300])
    try:
        for document in _PARTS.decode(body).documents:
            # A larger one would take a hundred times its size, and all others would wait.
            if len(bytes(document)) <= MOST_NAMED_BYTES:
                parse(json.loads(bytes(document)))
    except StatusError as named:
        return named
    except (ValueError, RecursionError, TypeError):
        pass  # the decoder's own words are all there is
    return not_vts(error)


def question(bundle: LoadedBundle, parsed: Parsed) -> Question:
    """Raises StatusError, DataError or ConfigError for inconsistent documents or windows."""
    topology, windows = _windows(bundle.own.topology, parsed)
    return Question(topology, windows, _memory(parsed.memory, topology, bundle.learned_names))


def advise(bundle: LoadedBundle, parsed: Parsed, guards: GuardOptions) -> dict[str, Any]:
    """The body of an answer, see `WeightsAnswer`.

    Raises:
        StatusError, DataError, ConfigError: inconsistent documents or windows.
        BundleError: the bundle cannot act on these servers.
    """
    given = question(bundle, parsed)
    windows, adviser = given.advisable, bundle.adviser(given.topology)
    return _decided(bundle, given, adviser.advise(windows, given.memory) if windows else None, guards)


def advise_each(bundle: LoadedBundle, bodies: Sequence[bytes], guards: GuardOptions) -> list[dict[str, Any] | Refusal]:
    """`advise` for many bodies: one call of the network for all that name the same servers."""
    questions = [_question(bundle, body) for body in bodies]
    advices = _advices(bundle, questions)
    results: list[dict[str, Any] | Refusal] = []
    for one, advice in zip(questions, advices, strict=True):
        if not isinstance(one, Question):
            results.append(one)
        elif isinstance(advice, DeepSchedError):
            results.append(advice)
        else:
            results.append(_decided(bundle, one, advice, guards))
    return results


def shaped(verdict: Verdict, advice: Advice | None, topology: Topology, bundle: str) -> dict[str, Any]:
    """The body of an answer; `bundle` is the digest of the bundle that decided."""
    weights = verdict.control.as_weights() if verdict.control else None
    named = None
    if weights is not None:
        named = {
            group.name: {s: int(weights.values[g, topology.server_index(s)]) for s in group.servers}
            for g, group in enumerate(topology.groups)
        }
    return {
        "decision": verdict.source,
        "reason": verdict.reason,
        "weights": named,
        "groups": [group.name for group in topology.groups],
        "servers": list(topology.servers),
        "policy": advice.policy.as_weights().values.tolist() if advice and advice.policy else None,
        "baseline": advice.baseline.as_weights().values.tolist() if advice else None,
        "service_times": _times(verdict, advice),
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


def _decided(bundle: LoadedBundle, asked: Question, advice: Advice | None, guards: GuardOptions) -> dict[str, Any]:
    """The answer after the last window; `advice` is None when no window was usable."""
    verdict = decide_alone(asked.windows[-1], advice, bundle.own.bundle.problem.deadlines_s, guards)
    return shaped(verdict, advice, asked.topology, bundle.id)


_NOTHING = msgspec.Raw(b"null")


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    documents: Annotated[list[Document], msgspec.Meta(min_length=2, max_length=MAX_MOMENTS)] | None = None
    windows: msgspec.Raw = _NOTHING
    memory: msgspec.Raw = _NOTHING


class _Parts(msgspec.Struct):
    documents: list[msgspec.Raw]


_BODIES = msgspec.json.Decoder(_Body)
_PARTS = msgspec.json.Decoder(_Parts)


def _advices(bundle: LoadedBundle, questions: Sequence[Question | Refusal]) -> list[Advice | DeepSchedError | None]:
    """In the order of `questions`; None where there is nothing to advise on."""
    advices: list[Advice | DeepSchedError | None] = [None] * len(questions)
    groups: dict[Topology, dict[int, Question]] = {}
    for index, one in enumerate(questions):
        if isinstance(one, Question) and one.advisable:
            groups.setdefault(one.topology, {})[index] = one
    for topology, group in groups.items():
        try:
            adviser = bundle.adviser(topology)
        except DeepSchedError as error:
            advices = [error if index in group else advice for index, advice in enumerate(advices)]
            continue
        found = adviser.advise_each([(one.advisable, one.memory) for one in group.values()])
        for index, advice in zip(group, found, strict=True):
            advices[index] = advice
    return advices


def _question(bundle: LoadedBundle, body: bytes) -> Question | Refusal:
    try:
        return question(bundle, read_body(body))
    except (DeepSchedError, ValidationError) as error:
        return error


def _windows(model: Topology, parsed: Parsed) -> tuple[Topology, list[Window]]:
    if parsed.windows is not None:
        first = parsed.windows[0]
        # Every group of a window has a column per server; a group's servers are those with a weight.
        groups = {
            name: [s for s, weight in zip(first.servers, row, strict=False) if weight > 0] or first.servers
            for name, row in zip(first.groups, first.weight, strict=False)
        }
        topology = window_json.topology_of(model, groups)
        return topology, [window_json.from_json(window, topology) for window in parsed.windows]
    assert parsed.snapshots is not None
    topology = window_json.topology_of(model, _servers(parsed.snapshots[-1]))
    pairs = itertools.pairwise(parsed.snapshots)
    return topology, [difference(before, after, topology) for before, after in pairs]


def _servers(snapshot: Snapshot) -> dict[str, list[str]]:
    return {name: list(servers) for name, servers in snapshot.groups.items()}


def _memory(given: MemoryModel | None, topology: Topology, names: frozenset[str]) -> LatencyMemory | None:
    """The averages; what an estimator has learned only under these names: another bundle's is of no use to this one."""
    if given is None:
        return None
    rows, columns = topology.shape
    for table in (given.fast_s, given.slow_log):
        if len(table) != rows or any(len(row) != columns for row in table):
            raise DataError("memory has the wrong size", where="memory", remedy=f"expected {topology.shape}")
    fast = np.array([[np.nan if value is None else value for value in row] for row in given.fast_s], dtype=float)
    try:
        learned = {name: np.array(rows, dtype=float) for name, rows in given.learned.items()}
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(
            "not numbers", where="memory.learned", remedy="send `memory` of the last answer unchanged"
        ) from error
    if not all(np.isfinite(table).all() for table in learned.values()):
        raise DataError("not finite", where="memory.learned", remedy="send `memory` of the last answer unchanged")
    if learned.keys() != names:
        learned = {}
    return LatencyMemory(np.where(fast > 0, fast, np.nan), np.array(given.slow_log, dtype=float), learned)


def _times(verdict: Verdict, advice: Advice | None) -> dict[str, Any] | None:
    if advice is None or not isinstance(advice.baseline, ServiceTimes):
        return None
    controls = {"policy": advice.policy, "baseline": advice.baseline, "decided": verdict.control}
    tables = {name: c.tau_s.tolist() if isinstance(c, ServiceTimes) else None for name, c in controls.items()}
    return {**tables, "workers": advice.baseline.workers.tolist()}
