"""Bench `headline`: `expected_delay` with service times learned from statistics alone, against plain least_conn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from actuators.contract.topology import social_network
from envs.estimators.workers import CAUTION
from envs.scenarios.catalogue import STUDY, StudyScenario, falling_speeds
from envs.scenarios.lookup import scenario
from envs.study.rules import RULES, Learning, Rule
from rayjobs.bench.parts.bars import Bar, BenchContext, at_most, figure
from rayjobs.bench.parts.ratios import PUBLISHED_SEEDS, Judged, Metric, Ratios

TOPOLOGY = social_network()
TEN_SERVERS = social_network(tuple(f"server-{number}:80" for number in range(1, 11)))
TEN_UNEQUAL = StudyScenario(
    "ten", "ten servers, speeds 1.6 to 0.4, 65 %", 0.65, falling_speeds(1.6, 0.4), duration_s=200
)

DEFAULT = Learning("idle")
STUDY_ROWS = {
    "type_means": (0.977, 0.988),
    "idle": (0.870, 0.804),
    "ratio": (0.870, 0.801),
    "inverse_latency": (0.872, 0.820),
}
"""Geometric means over S1-S10 of mean and p99 over least_conn (docs/studies.md#learned-service-times)."""


class Bench:
    """Judges rules on S1-S10; least_conn's scores are measured once.

    Args:
        seeds: 101 to 104, as in docs/studies.md, and one drawn from the bench's seed, which nothing can be tuned to.
    """

    def __init__(self, context: BenchContext) -> None:
        self._context = context
        drawn = 100_000 + int(np.random.default_rng([context.seed, 5]).integers(900_000))
        self.seeds = PUBLISHED_SEEDS[:1] if context.quick else (*PUBLISHED_SEEDS, drawn)
        self.scenarios = [scenario(name) for name in STUDY]
        self._judged = Judged(TOPOLOGY, self.seeds)
        self.how = f"S1-S10, seeds {', '.join(map(str, self.seeds))}, 600 s (S6 1500 s)"

    def over_least_conn(self, rule: Rule) -> Ratios:
        """The rule on every scenario."""
        self._context.log(f"{rule.name} on {len(self.scenarios)} scenarios, {len(self.seeds)} seeds")
        return self._judged.over(rule, RULES["least_conn"], self.scenarios)


def measure(context: BenchContext) -> Sequence[Bar]:
    """`expected_delay` without a learned policy on all scenarios (docs/results.md#bench-headline)."""
    bench = Bench(context)
    learned = {name: bench.over_least_conn(Learning(name).rule()) for name in STUDY_ROWS}
    truth = bench.over_least_conn(RULES["true_times"])
    default = learned[DEFAULT.estimator]
    bars = [*_goals(bench, default, truth), *_against_study(bench, learned, context.quick)]
    return [*bars, *_stability(bench, context.quick)]


def _goals(bench: Bench, default: Ratios, truth: Ratios) -> Iterator[Bar]:
    for metric, limit in (("mean_ms", 0.88), ("p99_ms", 0.82), ("art", 0.40)):
        yield _ratio_bar(bench, default, metric, limit)
    for name, mean, p99 in (("S3", 0.75, 0.62), ("S1", 1.02, 1.02), ("S8", 1.02, 1.02)):
        yield _ratio_bar(bench, default, "mean_ms", mean, (name,))
        yield _ratio_bar(bench, default, "p99_ms", p99, (name,))
    ten = Judged(TEN_SERVERS, bench.seeds).over(DEFAULT.rule(), RULES["least_conn"], [TEN_UNEQUAL])
    yield _ratio_bar(bench, ten, "mean_ms", 0.80, ("ten",))
    yield _ratio_bar(bench, ten, "p99_ms", 0.68, ("ten",))
    best = truth.geometric("mean_ms")
    yield at_most(
        "learned over true service times: mean", default.geometric("mean_ms") / best, 1.02, "×", how=bench.how,
        reference=f"true times {best:.3f} of least_conn",
    )  # fmt: skip


def _against_study(bench: Bench, learned: Mapping[str, Ratios], quick: bool) -> Iterator[Bar]:
    slack = 2.0 if quick else 1.0
    for name, (mean, p99) in STUDY_ROWS.items():
        for metric, told, limit in (("mean_ms", mean, 0.01), ("p99_ms", p99, 0.015)):
            found = learned[name].geometric(metric)
            yield at_most(
                f"{name}: {_WORDS[metric]} over least_conn, off the study's", abs(found - told), slack * limit, "",
                how=bench.how, reference=f"{found:.3f}, study {told:.3f}",
            )  # fmt: skip
        yield figure(f"{name}: ART over least_conn", learned[name].geometric("art"), "×", how=bench.how)
        yield figure(f"{name}: J over least_conn", learned[name].geometric("index"), "×", how=bench.how)


def _stability(bench: Bench, quick: bool) -> Iterator[Bar]:
    """Statistics that come late, fewer workers believed than there are, workers learned from nothing."""
    hardest = (
        replace(DEFAULT, delay_windows=3), replace(DEFAULT, worker_factor=0.5),
        replace(DEFAULT, delay_windows=3, worker_factor=0.5),
    )  # fmt: skip
    others = (
        *(replace(DEFAULT, delay_windows=late) for late in (1, 2)), replace(DEFAULT, worker_factor=0.75),
        *(Learning(name, late) for name in ("ratio", "inverse_latency") for late in (1, 2, 3)),
        *(Learning(name, worker_factor=c) for name in ("ratio", "inverse_latency") for c in (0.5, 0.75)),
        replace(DEFAULT, first_workers=1.0), replace(DEFAULT, first_workers=1.0, worker_factor=CAUTION),
    )  # fmt: skip
    for learning in hardest if quick else hardest + others:
        ratios = bench.over_least_conn(learning.rule())
        # On S7 least_conn's mean is low because it answers many requests by quick errors: J counts those, too.
        told = (
            f"worst {_WORDS[m]} {worst:.3f} on {where}"
            for m in ("mean_ms", "index")
            for worst, where in [ratios.worst(m)]
        )
        limit = 0.95 if learning.worker_factor < 1.0 else 0.90
        yield at_most(
            f"{learning.rule().name}: mean over least_conn", ratios.geometric("mean_ms"), limit, "×", how=bench.how,
            reference=f"p99 {ratios.geometric('p99_ms'):.3f}; {'; '.join(told)}",
        )  # fmt: skip


_WORDS = {"mean_ms": "mean", "p99_ms": "p99", "art": "ART", "index": "J"}


def _ratio_bar(bench: Bench, ratios: Ratios, metric: Metric, limit: float, names: Sequence[str] | None = None) -> Bar:
    where = "S1-S10" if names is None else ", ".join(names)
    return at_most(
        f"expected_delay, learned, over least_conn: {_WORDS[metric]} on {where}", ratios.geometric(metric, names),
        limit, "×", how=bench.how, reference=ratios.interval(metric, names),
    )  # fmt: skip
