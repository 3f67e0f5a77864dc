"""Benchmarks that others can compare with: fixed scenarios, seeds and budgets, and scores between two references.

What a version fixes never changes: another scenario, seed or formula of the score is another version
(docs/benchmark.md).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.late_binding import LateBinding, LateBindingNumbers, slots_for
from actuators.contract.script import Script, ServerProfile
from actuators.contract.topology import Topology, social_network
from actuators.errors import ConfigError, closest
from envs.environment.study_setup import SHARED_MEMORY
from envs.estimators.registry import DEFAULT_ESTIMATOR
from envs.heuristics.names import HELD, policy_name
from envs.scenarios.catalogue import StudyScenario
from envs.scenarios.lookup import scenario
from envs.simulator.batch import SimulatedBatch
from envs.simulator.window_batch import WindowBatch
from envs.study.interval import student_interval
from envs.study.judge import Score, deadlines_s, judge_each, play
from envs.study.rules import (
    RULES,
    BatchController,
    Learning,
    Rule,
    late_binding,
    rule_named,
    true_service_times,
    workers_of,
)

Entry = Callable[[StudyScenario, Topology], Rule]
"""What takes part: the rule that plays a scenario. It may use what an operator knows: topology and deadlines."""
LOWEST, HIGHEST = "least_conn", "oracle"
"""Score 0 and score 1."""
BOUND = "bound"
_UNLIMITED = 1024


@dataclass(frozen=True)
class Suite:
    """One version of a benchmark.

    Attributes:
        seconds: simulated time of each play; the first 10 s are not judged.
        search_seeds: what a search may look at, as often as it likes.
        held_out_seeds: what an entry is judged on, once, after all choices.
        training_steps: environment steps (control intervals of one system) that training an entry may take, in all.
        search_evaluations: evaluations on the search seeds that an entry may take; stated by its author, not checked.
    """

    name: str
    summary: str
    scenarios: tuple[str, ...]
    seconds: float
    search_seeds: tuple[int, ...]
    held_out_seeds: tuple[int, ...]
    training_steps: int = 1_000_000
    search_evaluations: int = 1000
    interval_s: float = 1.0

    @property
    def topology(self) -> Topology:
        return social_network()

    def played(self) -> list[StudyScenario]:
        """The scenarios with this suite's length."""
        return [scenario(name, duration_s=self.seconds) for name in self.scenarios]

    def digest(self) -> str:
        """Of all that this version fixes: the suite, every script, and the deadlines; changes when they do."""
        fixed = [asdict(self)]
        for each in self.played():
            seeds = (*self.search_seeds, *self.held_out_seeds)
            fixed += [each.script(self.topology, seed).to_json() for seed in seeds]
            fixed.append({"deadlines_s": np.round(deadlines_s(each, self.topology), 6).tolist()})
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            "social-1",
            "unequal servers, specialised ones, a noisy neighbour, crashes, servers that slow down in turn",
            ("S2b", "S3", "S4", "S7", "S10"),
            120.0,
            tuple(range(1, 5)),
            tuple(range(1001, 1011)),
        ),
        Suite(
            "wide-1",
            "every scenario of the studies and those from published traces",
            ("S1", "S2", "S2b", "S3", "S4", "S5", "S6", "S7", "S8", "S9", "S10", "T1", "T2", "T3", "T4", "T5"),
            200.0,
            tuple(range(1, 5)),
            tuple(range(2001, 2011)),
        ),
    )
}  # fmt: skip
"""By name; the number at the end is the version."""


def suite_named(name: str) -> Suite:
    """Raises ConfigError with the closest match."""
    if name not in SUITES:
        raise ConfigError(f"unknown benchmark '{name}'", where="name", remedy=closest(name, SUITES))
    return SUITES[name]


@dataclass(frozen=True, eq=False)
class Played:
    """Results of one entry, ``[scenarios, seeds]``.

    Attributes:
        goodput: share of the requests that were answered within their deadline.
        index: J (docs/glossary.md#j).
    """

    goodput: FloatArray
    index: FloatArray

    @classmethod
    def of(cls, scores: Sequence[Sequence[Score]]) -> Played:
        return cls(*(np.array([[getattr(s, name) for s in row] for row in scores]) for name in ("goodput", "index")))


@dataclass(frozen=True)
class Points:
    """An entry's score: 0 is least_conn, 1 the oracle; above 1 is possible.

    Attributes:
        total: mean of the next two.
        goodput: part of the oracle's gain in goodput, summed over scenarios.
        index: part of the oracle's gain in the logarithm of J, summed over scenarios.
        scenarios: the last one for each scenario.
        interval: of `total`, 95 %, Student's t over seeds; nan from one seed.
    """

    total: float
    goodput: float
    index: float
    scenarios: dict[str, float]
    interval: tuple[float, float]


def play_suite(
    suite: Suite, entry: Entry, seeds: Sequence[int], report: Callable[[str], None] = lambda name: None
) -> Played:
    """Plays all scenarios on all seeds; every entry meets the same arrivals and the same work."""
    rows = []
    for each in suite.played():
        report(each.name)
        rows.append(judge_each(entry(each, suite.topology), each, suite.topology, seeds, suite.interval_s))
    return Played.of(rows)


def points(suite: Suite, played: Played, lowest: Played, highest: Played) -> Points:
    """Scores `played` between the two references, which played the same seeds."""
    own, whole = np.log(lowest.index / played.index), np.log(lowest.index / highest.index)
    goodput, goodput_of_seed = _part(played.goodput - lowest.goodput, highest.goodput - lowest.goodput)
    index, index_of_seed = _part(own, whole)
    return Points(
        total=(goodput + index) / 2,
        goodput=goodput,
        index=index,
        scenarios=dict(zip(suite.scenarios, map(float, own.mean(axis=1) / whole.mean(axis=1)), strict=True)),
        interval=student_interval((goodput_of_seed + index_of_seed) / 2),
    )


def _part(own: FloatArray, whole: FloatArray) -> tuple[float, FloatArray]:
    """The part that an entry's gains are of the oracle's, and its values per seed, ``[seeds]``.

    The mean of these values is the part, and their standard error is that of a ratio of two means
    (docs/benchmark.md#the-score).

    Args:
        own, whole: gains of the entry and of the oracle, ``[scenarios, seeds]``.
    """
    gain, most = own.sum(axis=0), whole.sum(axis=0)
    part = float(gain.mean() / most.mean())
    return part, part + (gain - part * most) / most.mean()


@cache
def reference(suite: Suite, name: str, seeds: tuple[int, ...]) -> Played:
    """`least_conn`, the `oracle` or the `bound` on these seeds; played once per process."""
    if name == LOWEST:
        return play_suite(suite, entry_named(LOWEST), seeds)
    return oracle(suite, seeds) if name == HIGHEST else bound(suite, seeds)


def oracle(suite: Suite, seeds: Sequence[int]) -> Played:
    """Score 1: an optimistic reference, not a bound.

    For each scenario the best of three that know what no balancer can: a line before all workers (`central_queue`),
    each request sent where it would be answered first (`shortest_delay`), and `late_binding` with the true service
    times. The best is chosen with the results in hand, separately for goodput and for J.
    """
    informed: list[Entry] = [entry_named("central_queue"), entry_named("shortest_delay"), _held_with_true_times]
    each = [play_suite(suite, entry, seeds) for entry in informed]
    goodput, index = np.array([one.goodput for one in each]), np.array([one.index for one in each])
    best_goodput, best_index = goodput.mean(axis=2).argmax(axis=0), index.mean(axis=2).argmin(axis=0)
    rows = np.arange(len(suite.scenarios))
    return Played(goodput[best_goodput, rows], index[best_index, rows])


def bound(suite: Suite, seeds: Sequence[int]) -> Played:
    """What no balancer can pass: the same requests with the same work, where none ever waits.

    Every server is as fast at each request type as the fastest one ever is, does not fail, and has a worker for every
    request; so each request takes the least time that it can take anywhere. Loose where the load is high.
    """
    rows = []
    for each in suite.played():
        scripts = [without_waiting(each.script(suite.topology, seed)) for seed in seeds]
        totals = play(RULES["round_robin"], scripts, suite.topology, each.duration_s, interval_s=suite.interval_s)
        rows.append(totals.scores(deadlines_s(each, suite.topology)))
    return Played.of(rows)


def without_waiting(script: Script) -> Script:
    """The script on servers that never keep a request waiting (see `bound`)."""
    fastest = max([1.0, *(change.speed for change in script.behaviours)])
    speeds = tuple(fastest * max(column) for column in zip(*(s.speeds for s in script.servers), strict=True))
    return replace(script, servers=(ServerProfile(speeds, _UNLIMITED),) * len(script.servers), behaviours=())


def entry_named(name: str) -> Entry:
    """A rule of `envs.study.rules.RULES`, `late_binding` or `earliest_deadline`; ConfigError with the closest match."""
    if name in HELD:
        numbers = LateBindingNumbers(order=HELD[name])
        learning = Learning(DEFAULT_ESTIMATOR)
        return lambda each, topology: late_binding(deadlines_s(each, topology), numbers, learning, SHARED_MEMORY)
    if policy_name(name) not in RULES:
        known = (*RULES, *HELD)
        raise ConfigError(f"unknown rule '{name}'", where="policies", remedy=closest(name, known))
    return lambda each, topology: rule_named(name)


def _held_with_true_times(each: StudyScenario, topology: Topology) -> Rule:
    numbers, due_s = LateBindingNumbers(), deadlines_s(each, topology)

    def start() -> BatchController:
        learn = true_service_times()

        def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
            learn(batch, scripts, window)
            slots = zip(scripts, workers_of(scripts), strict=True)
            batch.hold([
                LateBinding(
                    topology, due_s, slots_for(workers, numbers.slots_per_worker, batch.contexts_of(script)), numbers
                )
                for script, workers in slots
            ])  # fmt: skip

        return steer

    return Rule("late_binding with true times", "late_binding", start, SHARED_MEMORY)
