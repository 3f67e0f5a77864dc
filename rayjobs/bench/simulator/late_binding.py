"""Late binding, simulated: mean, tail, lateness and goodput of held requests (docs/results.md#late-binding).

Ratios are to `least_conn` with the same arrivals and draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from actuators.contract.late_binding import HoldOrder, LateBindingNumbers
from actuators.contract.topology import Topology, social_network
from envs.environment.study_setup import PLAIN, SHARED_MEMORY
from envs.estimators.registry import DEFAULT_ESTIMATOR
from envs.scenarios.catalogue import SCENARIOS, STUDY, StudyScenario
from envs.simulator.batch import SimulationOptions
from envs.study.judge import Score, deadlines_s, judge_each
from envs.study.rules import Learning, Rule, late_binding
from rayjobs.bench.parts.bars import Bar, BenchContext, at_least, at_most
from rayjobs.bench.parts.ratios import PUBLISHED_SEEDS, Ratios

ORDERS: Mapping[HoldOrder, tuple[float, float, float]] = {
    "shortest": (0.85, 0.73, 0.32), "earliest_deadline": (0.82, 0.74, 0.28),
}  # fmt: skip
"""Bars of mean, 99th percentile and ART."""
OVERLOADED: Mapping[str, Mapping[HoldOrder, tuple[float, float]]] = {
    "S8": {"shortest": (0.81, 0.91), "earliest_deadline": (0.82, 0.92)},
    "S5": {"shortest": (0.87, 0.91), "earliest_deadline": (0.87, 0.91)},
}
"""Bars of goodput with two slots per learned worker, and with one per known worker."""
LEAST_PRIORITY = 1.000001
"""The study's is 1, which is out of range here: two standard deviations."""
ROBUST = ("S2", "S2b", "S3", "S5", "S8")
QUICK_S, LONG_S = 30.0, {"S6": 1500.0}
"""Simulated seconds; a scenario that changes over an hour is played for longer."""

KNOWN = Learning(DEFAULT_ESTIMATOR)


def topology(scenario: str) -> Topology:
    """With the priorities of the study, whose deadlines are a mean and two standard deviations but for S8's compose."""
    whole = social_network(("a:80", "b:80", "c:80"))
    priorities = (5.0, LEAST_PRIORITY, LEAST_PRIORITY) if scenario == "S8" else (LEAST_PRIORITY,) * 3
    groups = zip(whole.groups, priorities, strict=True)
    return Topology(tuple(replace(group, priority=priority) for group, priority in groups))


class Judged:
    """Scores per seed of one set of scenarios, each taken once.

    Args:
        seeds: of the arrivals.
        duration_s: of each scenario; its own when None.
    """

    def __init__(self, seeds: Sequence[int], duration_s: float | None) -> None:
        self.seeds, self._duration_s = tuple(seeds), duration_s
        self._scores: dict[tuple[str, StudyScenario], tuple[Score, ...]] = {}

    def scenario(self, name: str, service_cv: float = 1.0) -> StudyScenario:
        """One of the study's, as long as it is played here."""
        duration_s = self._duration_s or LONG_S.get(name, SCENARIOS[name].duration_s)
        return replace(SCENARIOS[name], duration_s=duration_s, service_cv=service_cv)

    def scores(self, rule: Rule, played: StudyScenario) -> tuple[Score, ...]:
        """A score per seed."""
        key = (f"{rule.name} {rule.options}", played)
        if key not in self._scores:
            self._scores[key] = judge_each(rule, played, topology(played.name), self.seeds)
        return self._scores[key]

    def late_binding(self, played: StudyScenario, numbers: LateBindingNumbers, how: Learning,
                     options: SimulationOptions = SHARED_MEMORY, *, learned_slots: bool = False,
                     ) -> tuple[Score, ...]:  # fmt: skip
        """The same of held requests with the scenario's deadlines."""
        limits_s = deadlines_s(played, topology(played.name))
        return self.scores(late_binding(limits_s, numbers, how, options, learned_slots=learned_slots), played)

    def over(self, ours: Mapping[str, Sequence[Score]], base: Rule) -> Ratios:
        """Scenario by scenario, of the study's as they are."""
        return Ratios.of(ours, {name: self.scores(base, self.scenario(name)) for name in ours})


def measure(context: BenchContext) -> Sequence[Bar]:
    """All bars that need no NGINX."""
    judged = Judged(PUBLISHED_SEEDS[:1] if context.quick else PUBLISHED_SEEDS, QUICK_S if context.quick else None)
    bars = [*_suite(judged), *_overload(judged), *_robust(judged)]
    context.log(f"{len(bars)} figures")
    return bars


def _numbers(order: HoldOrder, slots_per_worker: float = 2.0) -> LateBindingNumbers:
    """As the study plays it: without a longest hold."""
    return LateBindingNumbers(
        order=order, slots_per_worker=slots_per_worker, longest_hold_s=3600.0, most_held=1_000_000
    )


def _suite(judged: Judged) -> Iterator[Bar]:
    """S1 to S10, two slots per learned worker, without limit before it is learned."""
    how = f"simulated, {len(judged.seeds)} seeds, 2 slots per learned worker"
    delayed = {name: judged.scores(KNOWN.rule(), judged.scenario(name)) for name in STUDY}
    for order, limits in ORDERS.items():
        ours = {
            name: judged.late_binding(judged.scenario(name), _numbers(order), KNOWN, learned_slots=True)
            for name in STUDY
        }
        ratios = judged.over(ours, Rule("least_conn", "least_conn", None, PLAIN))
        for metric, limit in zip(("mean_ms", "p99_ms", "art"), limits, strict=True):
            yield at_most(
                f"{order}: {metric} over least_conn, S1 to S10", ratios.geometric(metric), limit, "x", how=how,
                reference=ratios.interval(metric),
            )  # fmt: skip
        against = Ratios.of(ours, delayed)
        for metric, limit in (("mean_ms", 1.02), ("p99_ms", 1.05)) if order == "shortest" else ():
            worst, where = against.worst(metric)
            yield at_most(f"{order}: {metric} over expected_delay, worst scenario", worst, limit, "x", how=how,
                          reference=where)  # fmt: skip


def _overload(judged: Judged) -> Iterator[Bar]:
    """Goodput in the two scenarios with overload."""
    for name, limits in OVERLOADED.items():
        played = judged.scenario(name)
        base = _goodput(judged.scores(Rule("least_conn", "least_conn", None, PLAIN), played))
        for order, (learned, known) in limits.items():
            for limit, slots, workers in ((learned, 2.0, "learned"), (known, 1.0, "known")):
                learns = workers == "learned"
                found = _goodput(judged.late_binding(played, _numbers(order, slots), KNOWN, learned_slots=learns))
                yield at_least(
                    f"{name} {order}, {slots:g} slots per {workers} worker: goodput", found, limit, "",
                    how=f"simulated, {len(judged.seeds)} seeds", reference=f"least_conn {base:.3f}",
                )  # fmt: skip


def _robust(judged: Judged) -> Iterator[Bar]:
    """Mean over that of `expected_delay` where something is not as it is believed to be."""
    slow = SHARED_MEMORY.model_copy(update={"overhead_ms": 2.0})
    shared = SHARED_MEMORY.model_copy(update={"discipline": "processor_sharing"})
    cases: tuple[tuple[str, Learning, SimulationOptions, float], ...] = (
        ("workers believed × 0.5", replace(KNOWN, worker_factor=0.5), SHARED_MEMORY, 1.0),
        ("workers believed × 1.5", replace(KNOWN, worker_factor=1.5), SHARED_MEMORY, 1.0),
        ("2 ms to each server", KNOWN, slow, 1.0),
        ("processor sharing", KNOWN, shared, 1.0),
        ("coefficient of variation 4", KNOWN, SHARED_MEMORY, 4.0),
    )
    for what, how, options, service_cv in cases:
        ours, theirs = {}, {}
        for name in ROBUST:
            played = judged.scenario(name, service_cv)
            ours[name] = judged.late_binding(played, _numbers("shortest"), how, options)
            theirs[name] = judged.scores(how.rule(options), played)
        ratios = Ratios.of(ours, theirs)
        yield at_most(
            f"{what}: mean over expected_delay", ratios.geometric("mean_ms"), 1.02, "x",
            how=f"simulated, {', '.join(ROBUST)}, shortest, 2 slots per worker, {len(judged.seeds)} seeds",
            reference=f"worst {ratios.worst('mean_ms')}",
        )  # fmt: skip


def _goodput(scores: Sequence[Score]) -> float:
    return float(np.mean([score.goodput for score in scores]))
