"""Request cost, simulated: what a model explains, and what late binding gains by it (docs/results.md#late-binding)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np

from actuators.contract.late_binding import HoldOrder, LateBindingNumbers
from actuators.contract.request_cost import RequestCost, oracle_r2
from actuators.contract.topology import social_network
from envs.environment.study_setup import SHARED_MEMORY
from envs.estimators.registry import DEFAULT_ESTIMATOR
from envs.scenarios.catalogue import VARYING
from envs.study.judge import deadlines_s, judge_each
from envs.study.request_cost import explained_by, observed_costs
from envs.study.rules import Learning, late_binding
from rayjobs.bench.parts.bars import Bar, BenchContext, at_least, at_most, figure
from rayjobs.bench.parts.ratios import PUBLISHED_SEEDS, Ratios

LEARNED_AT, LEARNED_S, LEARNED_SEED = 0.65, 300.0, 999
"""Load, seconds and seed from which the models are learned."""
TESTED_S = 120.0


def measure(context: BenchContext) -> Sequence[Bar]:
    """R² of requests that no model has seen, and the mean with and without the models."""
    topology, played = social_network(("a:80", "b:80", "c:80")), VARYING["S11"]
    played = replace(played, duration_s=60.0) if context.quick else played
    seeds, ordinary = PUBLISHED_SEEDS[:1] if context.quick else PUBLISHED_SEEDS, replace(played, load=LEARNED_AT)
    costs = observed_costs(ordinary, topology, LEARNED_SEED, 60.0 if context.quick else LEARNED_S)
    script = ordinary.script(topology, seeds[0])
    shares = np.array([stream.steps[0].rate_rps for stream in script.streams])
    each = [oracle_r2(kinds, script.service_cv) for kinds in script.kinds]
    oracle, found = float(np.average(each, weights=shares)), explained_by(costs, script, topology, TESTED_S)
    own = ", ".join(f"{name} {model.r2:.3f}{'' if model.counts else ' (off)'}" for name, model in costs.groups.items())
    context.log(f"R² {found:.3f}, oracle {oracle:.3f}; {own}")
    how = f"S11, learned from {LEARNED_S:.0f} s at a load of {LEARNED_AT:g}"
    bars = [
        figure("request cost: R² of a perfect predictor", oracle, "", how="S11: variance of the law over that of all"),
        at_least("request cost: R² held out over that", found / oracle, 0.7, "x", how=how, reference=own),
    ]
    limits_s, learning = deadlines_s(played, topology), Learning(DEFAULT_ESTIMATOR)
    for order in get_args(HoldOrder)[:2]:
        numbers = LateBindingNumbers(order=order, longest_hold_s=3600.0, most_held=1_000_000)
        with_costs, without = (
            judge_each(late_binding(limits_s, numbers, learning, SHARED_MEMORY, given), played, topology, seeds)
            for given in (costs, RequestCost())
        )
        ratios = Ratios.of({"S11": with_costs}, {"S11": without})
        goodput = [100 * float(np.mean([score.goodput for score in scores])) for scores in (with_costs, without)]
        reference = f"{ratios.interval('mean_ms')}; p99 {ratios.geometric('p99_ms'):.3f}"
        bar = at_most(
            f"{order} with request cost: mean over that without", ratios.geometric("mean_ms"), 0.96, "x",
            how=f"S11 at a load of {played.load:g}, {len(seeds)} seeds of {played.duration_s:.0f} s",
            reference=f"{reference}, goodput {goodput[0]:.1f} for {goodput[1]:.1f} %",
        )  # fmt: skip
        bars.append(bar)
    return bars
