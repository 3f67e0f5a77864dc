"""Bodies of `POST /v1/weights` → answers, one by one or several with one call of the network; for every front."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool

from actuators.contract.topology import Topology
from actuators.errors import DeepSchedError
from rayjobs.serve.bundles import BundleStore, LoadedBundle, Question, advise, question, read_body, shaped
from rayjobs.serve.telemetry import Metrics
from tuning.policy.adviser import Advice
from tuning.steering.decide import judged, usable
from tuning.steering.guards import GuardOptions

Refusal = DeepSchedError | ValidationError
"""What is wrong with a request: an answer, too."""
SMALL_BYTES = 100_000
"""Bodies up to this size are answered on the event loop; a hop to a thread would take longer."""


class Answers:
    """What a replica answers with, and counts.

    Attributes:
        together: set where several requests may be decided at once: takes a body, returns an answer or a refusal.
    """

    def __init__(self, store: BundleStore, guards: GuardOptions) -> None:
        self.store, self.metrics, self._guards = store, Metrics(), guards
        self.together: Callable[[bytes], Awaitable[bytes | Refusal]] | None = None

    async def answer(self, body: bytes) -> bytes:
        """JSON of a `WeightsAnswer`. Raises what `Refusal` names."""
        began_s = time.perf_counter()
        if self.together is not None:
            result = await self.together(body)
            if not isinstance(result, bytes):
                raise result
        elif len(body) <= SMALL_BYTES:
            result = self._one(body)
        else:
            result = await run_in_threadpool(self._one, body)
        self.metrics.seconds.observe(time.perf_counter() - began_s)
        return result

    async def answer_each(self, bodies: Sequence[bytes]) -> list[bytes | Refusal]:
        """The same for several bodies; a bad one among them spoils no other."""
        self.metrics.together.observe(len(bodies))
        if sum(map(len, bodies)) <= SMALL_BYTES:
            return self._each(bodies)
        return await run_in_threadpool(self._each, bodies)

    def _one(self, body: bytes) -> bytes:
        return self._seen(advise(self.store.current(), read_body(body), self._guards))

    def _each(self, bodies: Sequence[bytes]) -> list[bytes | Refusal]:
        results = advise_each(self.store.current(), bodies, self._guards)
        return [self._seen(result) if isinstance(result, dict) else result for result in results]

    def _seen(self, result: dict[str, Any]) -> bytes:
        self.metrics.see(result)
        return to_json(result, inf_nan_mode="null")


def advise_each(bundle: LoadedBundle, bodies: Sequence[bytes], guards: GuardOptions) -> list[dict[str, Any] | Refusal]:
    """`advise` for many bodies: the network is called once for all that ask about the same servers."""
    asked = [_question(bundle, body) for body in bodies]
    advices = _advices(bundle, asked)
    deadlines_s = bundle.own.bundle.problem.deadlines_s
    results: list[dict[str, Any] | Refusal] = []
    for one, advice in zip(asked, advices, strict=True):
        if not isinstance(one, Question):
            results.append(one)
        elif isinstance(advice, DeepSchedError):
            results.append(advice)
        else:
            results.append(shaped(judged(one.windows[-1], advice, deadlines_s, guards), one.topology, bundle.id))
    return results


def _question(bundle: LoadedBundle, body: bytes) -> Question | Refusal:
    try:
        return question(bundle, read_body(body))
    except (DeepSchedError, ValidationError) as error:
        return error


def _advices(bundle: LoadedBundle, asked: Sequence[Question | Refusal]) -> list[Advice | DeepSchedError | None]:
    """In the order of `asked`; None where there is nothing to advise on."""
    advices: list[Advice | DeepSchedError | None] = [None] * len(asked)
    groups: dict[Topology, dict[int, Question]] = {}
    for index, one in enumerate(asked):
        if isinstance(one, Question) and usable(one.windows):
            groups.setdefault(one.topology, {})[index] = one
    for topology, questions in groups.items():
        try:
            adviser = bundle.adviser(topology)
        except DeepSchedError as error:
            advices = [error if index in questions else advice for index, advice in enumerate(advices)]
            continue
        found = adviser.advise_each([(usable(one.windows), one.memory) for one in questions.values()])
        for index, advice in zip(questions, found, strict=True):
            advices[index] = advice
    return advices
