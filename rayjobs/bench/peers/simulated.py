"""Every rule on every scenario, simulated on the same arrivals and draws: mean, 99th percentile and goodput."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from actuators.contract.late_binding import LateBindingNumbers
from actuators.contract.topology import social_network
from actuators.files import writable_folder, write_atomic
from envs.environment.study_setup import SHARED_MEMORY
from envs.estimators.registry import DEFAULT_ESTIMATOR
from envs.scenarios.catalogue import STUDY, TRACED, VARYING
from envs.scenarios.lookup import scenario
from envs.simulator.rivals import RIVAL_CODES
from envs.study.judge import Score, deadlines_s, judge_each
from envs.study.rules import Learning, Rule, late_binding, rule_named
from rayjobs.bench.parts.bars import Bar, BenchContext, at_least, at_most, figure
from rayjobs.bench.parts.ratios import PUBLISHED_SEEDS, Ratios
from rayjobs.bench.peers.learned import LEARNED, train_weights

OURS, REFERENCE = "expected_delay", "least_conn"
OTHERS = ("round_robin", "random_two", "inverse_latency", *RIVAL_CODES)
SHOWN = ("least_time", "least_time_shared", "peak_ewma", "least_request", "c3", "join_idle_queue", "prequal",
         "inverse_latency")  # fmt: skip
"""In the table."""
EQUAL = ("S1", "S4", "S5", "S7", "S8", "S10")
"""Scenarios whose servers are equally fast when nothing disturbs them."""
QUICK = ("S1", "S2b", "T1")
MOST_P99, MOST_P99_EQUAL, LEAST_GOODPUT = 1.0, 1.02, -0.001
"""Over the best of the others; goodput as a difference."""

LATE = "late_binding"
BESIDE = (LATE, LEARNED)
"""Ours as well, reported and not judged: late binding with learned slots, and weights on least_conn that PPO learned as
in bench `training` (`rayjobs.bench.parts.ratios.GENERALIST`), once, with this bench's seed."""
TABLE = "simulated.md"
"""The table, in the bench's folder: mean and 99th percentile over those of least_conn."""

Scores = Mapping[str, Sequence[Score]]
"""Rule → a score per seed."""


def measure(context: BenchContext) -> Sequence[Bar]:
    """A figure per scenario and rule, and bars against the best of the others."""
    bars: list[Bar] = []
    rows: list[str] = []
    learned = replace(train_weights(context).rule, name=LEARNED)
    for name in QUICK if context.quick else (*STUDY, *VARYING, *TRACED):
        context.log(name)
        scores = _scores(name, learned, quick=context.quick)
        bars += _bars(name, scores)
        rows.append(_row(name, scores))
        write_atomic(writable_folder(context.kept) / TABLE, "\n".join((*_head(), *rows)) + "\n")
    context.log(f"table: {context.kept / TABLE}")
    return bars


def _scores(name: str, learned: Rule, *, quick: bool) -> Scores:
    played, topology = scenario(name), social_network()
    played = replace(played, duration_s=30.0) if quick else played
    seeds = PUBLISHED_SEEDS[:1] if quick else PUBLISHED_SEEDS
    rules = {rule: rule_named(rule) for rule in (REFERENCE, *OTHERS, OURS)}
    limits_s, numbers = deadlines_s(played, topology), LateBindingNumbers()
    rules[LATE] = late_binding(limits_s, numbers, Learning(DEFAULT_ESTIMATOR), SHARED_MEMORY, learned_slots=True)
    rules[LEARNED] = learned
    return {rule: judge_each(how, played, topology, seeds) for rule, how in rules.items()}


def _head() -> tuple[str, str]:
    names = (*SHOWN, OURS, *BESIDE)
    return f"| scenario | {' | '.join(f'`{name}`' for name in names)} |", "|---" * (len(names) + 1) + "|"


def _row(name: str, scores: Scores) -> str:
    """**Bold** is the least of a row, within 0.3 %."""
    cells = {}
    for rule in (*SHOWN, OURS, *BESIDE):
        ratios = Ratios.of({name: scores[rule]}, {name: scores[REFERENCE]})
        cells[rule] = ratios.geometric("mean_ms"), ratios.geometric("p99_ms")
    least = [min(values) for values in zip(*cells.values(), strict=True)]
    shown = (
        ", ".join(f"**{v:.2f}**" if v <= 1.003 * best else f"{v:.2f}" for v, best in zip(pair, least, strict=True))
        for pair in cells.values()
    )
    return f"| {name} | {' | '.join(shown)} |"


def _bars(name: str, scores: Scores) -> Iterator[Bar]:
    seeds = len(scores[REFERENCE])
    for rule in (*OTHERS, OURS, *BESIDE):
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
