"""Every rule on every scenario, simulated on the same arrivals and draws: mean, 99th percentile and goodput."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from actuators.contract.topology import social_network
from envs.scenarios.catalogue import STUDY, TRACED
from envs.scenarios.lookup import scenario
from envs.simulator.rivals import RIVAL_CODES
from envs.study.judge import Score, judge_each
from envs.study.rules import rule_named
from rayjobs.bench.parts.bars import Bar, BenchContext, at_least, at_most, figure
from rayjobs.bench.parts.ratios import PUBLISHED_SEEDS, Ratios

OURS, REFERENCE = "expected_delay", "least_conn"
OTHERS = ("round_robin", "random_two", "inverse_latency", *RIVAL_CODES)
EQUAL = ("S1", "S4", "S5", "S7", "S8", "S10")
"""Scenarios whose servers are equally fast when nothing disturbs them."""
QUICK = ("S1", "S2b", "T1")
MOST_P99, MOST_P99_EQUAL, LEAST_GOODPUT = 1.0, 1.02, -0.001
"""Over the best of the others; goodput as a difference."""

Scores = Mapping[str, Sequence[Score]]
"""Rule → a score per seed."""


def measure(context: BenchContext) -> Sequence[Bar]:
    """A figure per scenario and rule, and bars against the best of the others."""
    bars: list[Bar] = []
    for name in QUICK if context.quick else (*STUDY, *TRACED):
        context.log(name)
        bars += _bars(name, _scores(name, quick=context.quick))
    return bars


def _scores(name: str, *, quick: bool) -> Scores:
    played = replace(scenario(name), duration_s=30.0) if quick else scenario(name)
    seeds = PUBLISHED_SEEDS[:1] if quick else PUBLISHED_SEEDS
    return {rule: judge_each(rule_named(rule), played, social_network(), seeds) for rule in (REFERENCE, *OTHERS, OURS)}


def _bars(name: str, scores: Scores) -> Iterator[Bar]:
    seeds = len(scores[REFERENCE])
    for rule in (*OTHERS, OURS):
        ratios = Ratios.of({name: scores[rule]}, {name: scores[REFERENCE]})
        yield figure(
            f"{name} {rule}: p99 over {REFERENCE}", ratios.geometric("p99_ms"), "×",
            how=f"simulated, {seeds} seeds; {ratios.interval('p99_ms')}",
            reference=f"mean {ratios.geometric('mean_ms'):.3f}×, goodput {_goodput(scores[rule]):.4f}"
            f" ({REFERENCE} {_goodput(scores[REFERENCE]):.4f})",
        )  # fmt: skip
    rivals = (REFERENCE, *OTHERS)
    best = min(rivals, key=lambda rule: _p99_ms(scores[rule]))
    ratio = Ratios.of({name: scores[OURS]}, {name: scores[best]})
    yield at_most(
        f"{name}: p99 of {OURS} over the best of the others", ratio.geometric("p99_ms"),
        MOST_P99_EQUAL if name in EQUAL else MOST_P99, "×", how=ratio.interval("p99_ms"), reference=best,
    )  # fmt: skip
    best = max(rivals, key=lambda rule: _goodput(scores[rule]))
    gain = _goodput(scores[OURS]) - _goodput(scores[best])
    yield at_least(
        f"{name}: goodput of {OURS} less that of the best of the others", gain, LEAST_GOODPUT, "",
        how=f"simulated, {seeds} seeds", reference=best,
    )  # fmt: skip


def _p99_ms(scores: Sequence[Score]) -> float:
    return float(np.exp(np.mean(np.log([score.p99_ms for score in scores]))))


def _goodput(scores: Sequence[Score]) -> float:
    return float(np.mean([score.goodput for score in scores]))
