"""Bench `scaling`: parallel testbeds, our own work per live step, a sweep on all cores."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rayjobs.bench import Bar, BenchContext, at_least, at_most, figure
from rayjobs.local_ray import LocalRay, local_ray

if TYPE_CHECKING:
    from envs.decision import DecisionProblem

MEMORY_GIB = 16.0
MAX_TESTBEDS = 32
LIVE_WORK_SCALE = 4.6
"""Stretches the demo's work so that about 150 requests/s arrive at each live testbed."""


def measure(context: BenchContext) -> Sequence[Bar]:
    """The bars of issue 7 that are numbers: 1, 2 (on fewer trials when quick) and 6."""
    from rayjobs.bench_scaling import small_problem

    problem = small_problem(context.seed)
    with local_ray(testbeds=2) as ray:
        return [*_waiting(context, problem, ray), *_live(context, problem), *_sweep(context, ray)]


def _waiting(context: BenchContext, problem: DecisionProblem, ray: LocalRay) -> Iterator[Bar]:
    from rayjobs.bench_scaling import waiting_pace

    counts = (1, MAX_TESTBEDS) if context.quick else (1, 2, 4, 8, 16, MAX_TESTBEDS)
    steps = 6 if context.quick else 20
    shares = {}
    memory_gib = 0.0
    for count in counts:
        pace, memory_gib = waiting_pace(problem, count, steps, 1.0, ray.folder)
        shares[count] = pace.share
        context.log(f"{count} waiting testbeds: {pace.steps_per_s:.2f} steps/s, {pace.share:.3f} of ideal")
    worst = min(shares, key=lambda count: shares[count])
    how = f"{steps} intervals of 1 s each with {', '.join(map(str, counts))} testbeds, one process drives them"
    yield at_least(
        f"env steps/s over ideal, the worst of 1…{MAX_TESTBEDS} testbeds",
        shares[worst],
        0.95,
        "",
        how=how,
        reference=f"{worst} testbeds; {MAX_TESTBEDS}: {shares[MAX_TESTBEDS]:.3f}",
    )
    yield at_most(
        f"memory with {counts[-1]} testbeds", memory_gib, MEMORY_GIB, "GiB", how="PSS of all processes of this Ray"
    )


def _live(context: BenchContext, problem: DecisionProblem) -> Iterator[Bar]:
    from rayjobs.bench_scaling import live_pace

    steps = 10 if context.quick else 40
    paces = []
    for count in (1, 2):
        work_dir = context.work_dir / f"live-{count}"
        paces.append(live_pace(problem, count, LIVE_WORK_SCALE, steps, 1.0, work_dir))
        context.log(f"{count} live testbed(s): {paces[-1].steps_per_s:.2f} steps/s, {paces[-1].faults} faults")
    one, two = paces
    how = f"{steps} intervals of 1 s, about 150 requests/s each, usable windows only"
    usable = [p.steps_per_s * (1 - p.faults / (steps * number)) for number, p in enumerate(paces, 1)]
    yield at_least("two live testbeds over one", usable[1] / usable[0], 1.9, "x", how=how)
    p99_ms = float(np.percentile(one.work_ms, 99))
    how = f"{steps} steps of one live testbed, each with another control; a step's time less the wait for its interval"
    median = f"median {np.median(one.work_ms):.1f} ms"
    yield at_most("our own work per live step, p99", p99_ms, 15.0, "ms", how=how, reference=median)
    yield figure("faults with two live testbeds", two.faults, "windows", how="lost to anything")


def _sweep(context: BenchContext, ray: LocalRay) -> Iterator[Bar]:
    from rayjobs.bench_sweep import timed_sweep

    trials, steps = (4, 2400) if context.quick else (32, 12_000)
    began_s = time.monotonic()
    found = timed_sweep(context.seed, trials, steps, context.work_dir, ray.folder)
    minutes = (time.monotonic() - began_s) / 60
    how = f"{trials} simulated trials over K and PPO hyperparameters, Optuna and ASHA, up to {steps} steps each"
    yield at_most(f"sweep of {trials} trials", minutes, 20.0 * trials / 32, "minutes", how=how)
    yield at_least(
        "share of the cores that it used", found.busy_share, 0.85, "", how="CPU time of all processes of this Ray"
    )
    yield figure("best score", found.best_score, "log ratio to least_conn", how="validation episodes")
