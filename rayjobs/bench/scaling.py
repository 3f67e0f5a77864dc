"""Bench `scaling`: parallel testbeds, and our own work per live step, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actuators.errors import DataError
from rayjobs.bench.parts.bars import Bar, BenchContext, at_least, at_most, figure
from rayjobs.runs.local_ray import LocalRay, local_ray

if TYPE_CHECKING:
    from envs.environment.problem import DecisionProblem

_Part = Callable[[BenchContext, "DecisionProblem", LocalRay], Iterator[Bar]]
MEMORY_GIB = 16.0
MAX_TESTBEDS = 32
STEP_MS = 15.0
MANY, MANY_STEP_MS = 1000, 150.0
PER_NODE = 50
"""Fake testbeds behind a relay."""
COMPARED = 100
"""Fake testbeds of the comparison of runners."""
WAITING_EACH = 2
"""Waiting testbeds of each of many env runners."""
LIVE_WORK_SCALE = 4.6
"""Stretches the demo's work so that about 150 requests/s arrive at each live testbed."""


def measure(context: BenchContext) -> Sequence[Bar]:
    """Env steps/s and memory up to 32 testbeds, two live ones against one, and the whole control step."""
    return _measured(context, _waiting, _many, _runners, _live, _steps)


def _measured(context: BenchContext, *parts: _Part) -> Sequence[Bar]:
    """Those parts, on one Ray."""
    from rayjobs.bench.parts.control_step import small_problem

    problem = small_problem(context.seed)
    with local_ray(testbeds=2) as ray:
        return [bar for part in parts for bar in part(context, problem, ray)]


def _waiting(context: BenchContext, problem: DecisionProblem, ray: LocalRay) -> Iterator[Bar]:
    from rayjobs.bench.parts.control_step import waiting_pace

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


def _many(context: BenchContext, problem: DecisionProblem, ray: LocalRay) -> Iterator[Bar]:
    from rayjobs.bench.parts.control_step import fake_pace

    counts = (32, MANY) if context.quick else (32, 100, 300, MANY)
    steps = 6 if context.quick else 30
    for count in counts:
        per_node = min(PER_NODE, count)
        pace = fake_pace(problem, count, per_node, steps, 1.0)
        context.log(f"{count} fake testbeds: step {np.median(pace.whole_ms):.1f} ms, {pace.share:.3f} of ideal")
        how = f"{steps} intervals of 1 s, fake conductors behind real relays on this machine, {per_node} each"
        whole, name = float(np.median(pace.whole_ms)), f"own work of a step of {count} testbeds, median"
        parts = ", ".join(f"{part} {np.median(taken):.1f}" for part, taken in pace.parts_ms.items())
        about = f"p99 {np.percentile(pace.whole_ms, 99):.1f} ms; parts {parts}; env steps/s over ideal {pace.share:.3f}"
        yield (
            at_most(name, whole, MANY_STEP_MS, "ms", how=how, reference=about)
            if count == MANY
            else figure(name, whole, "ms", how=how, reference=about)
        )
        yield figure(f"CPU time of the driver, {count} testbeds", float(np.median(pace.cpu_ms)), "ms a step", how=how)


def _runners(context: BenchContext, problem: DecisionProblem, ray: LocalRay) -> Iterator[Bar]:
    from rayjobs.bench.parts.runners import runner_costs

    turns = 1 if context.quick else 6
    array, default = runner_costs(problem, COMPARED, PER_NODE, turns, 1.0)
    how = f"{COMPARED} fake testbeds, 4 intervals of 1 s a turn, {turns} turns of each"
    yield figure(
        "CPU time of an interval, array runner", array.cpu_ms, "ms", how=how,
        reference=f"RLlib's own {default.cpu_ms:.1f}",
    )  # fmt: skip
    beyond = default.wall_ms - array.wall_ms
    yield figure("wall time of an interval that RLlib's own takes more", beyond, "ms", how=how)


def _env_runners(context: BenchContext, problem: DecisionProblem, ray: LocalRay) -> Iterator[Bar]:
    from rayjobs.bench.parts.env_runners import simulated_pace, waiting_pace

    iterations = 2 if context.quick else 6
    for count in (0, 2) if context.quick else (0, 1, 2, 4):
        pace = simulated_pace(problem, count, iterations, ray.folder)
        context.log(f"{count} env runners that simulate: {pace.steps_per_s:.0f} steps/s")
        yield figure(
            f"environment steps of PPO, {count} env runners", pace.steps_per_s, "per s",
            how=f"{iterations} iterations after a first one, S2, sampling and learning by turns; 0: no process beside",
            reference=f"sampling alone {pace.sampled_per_s:.0f}",
        )  # fmt: skip
    for count in (1, 4) if context.quick else (1, 4, 16, 64):
        pace = waiting_pace(problem, count, WAITING_EACH, iterations, ray.folder)
        context.log(f"{count} env runners that wait: {pace.share:.3f} of ideal, started in {pace.start_s:.0f} s")
        yield figure(
            f"sampled steps/s over ideal, {count} env runners", pace.share, "",
            how=f"{WAITING_EACH} waiting testbeds each, interval 1 s, {iterations} iterations, all on this machine",
            reference=f"started in {pace.start_s:.0f} s; {pace.memory_gib:.1f} GiB with Ray itself",
        )  # fmt: skip


def _live(context: BenchContext, problem: DecisionProblem, ray: LocalRay) -> Iterator[Bar]:
    from rayjobs.bench.parts.control_step import live_pace

    steps = {1: 10, 2: 10} if context.quick else {1: 120, 2: 40}
    paces = []
    for count, number in steps.items():
        work_dir = context.work_dir / f"live-{count}"
        paces.append(live_pace(problem, count, LIVE_WORK_SCALE, number, 1.0, work_dir))
        context.log(f"{count} live testbed(s): {paces[-1].steps_per_s:.2f} steps/s, {paces[-1].faults} faults")
    one, two = paces
    how = f"{steps[2]} intervals of 1 s, about 150 requests/s each, usable windows only"
    usable = [p.steps_per_s * (1 - p.faults / (steps[n] * n)) for n, p in enumerate(paces, 1)]
    yield at_least("two live testbeds over one", usable[1] / usable[0], 1.9, "x", how=how)
    yield figure("faults with two live testbeds", two.faults, "windows", how="lost to anything")
    how = f"{steps[1]} steps of one testbed in actors, each with another control"
    yield from _own_work("over Ray actors", one.parts_ms, one.own_ms, one.undisturbed, how)
    yield _p99("the same with Ray's calls between processes", one.whole_ms[one.undisturbed], "but for the wait")


def _steps(context: BenchContext, problem: DecisionProblem, ray: LocalRay) -> Iterator[Bar]:
    from rayjobs.bench.parts.control_step import PARTS, local_steps

    steps = 10 if context.quick else 120
    watch, undisturbed = local_steps(problem, LIVE_WORK_SCALE, steps, 1.0, context.work_dir / "steps", context.seed)
    parts_ms = {part: watch.ms(part) for part in PARTS}
    how = f"{steps} steps of one live testbed, each with another control"
    yield from _own_work("in one process", parts_ms, watch.whole_ms(), undisturbed, how)


def _own_work(
    where: str, parts_ms: dict[str, NDArray[np.float64]], own_ms: NDArray[np.float64], kept: NDArray[np.bool_], how: str
) -> Iterator[Bar]:
    """Of the steps in which the host let both cores run; what all of them would give stands beside."""
    if not kept.any():
        raise DataError(
            "the host of this machine stopped a core in every step", where="bench scaling", remedy="try at another time"
        )
    left_out = f"{how}; without {int((~kept).sum())} in whose work the host stopped a core for more than 3 ms"
    bar = _p99(f"own work of a step {where}", own_ms[kept], left_out, limit_ms=STEP_MS)
    yield replace(bar, reference=f"{bar.reference}; with those: {np.percentile(own_ms, 99):.1f} ms")
    for part, taken_ms in parts_ms.items():
        yield _p99(f"of which {part}", taken_ms[kept], "the same steps")


def _p99(name: str, taken_ms: NDArray[np.float64], how: str, limit_ms: float | None = None) -> Bar:
    value, reference = float(np.percentile(taken_ms, 99)), f"median {np.median(taken_ms):.1f} ms"
    if limit_ms is None:
        return figure(f"{name}, p99", value, "ms", how=how, reference=reference)
    return at_most(f"{name}, p99", value, limit_ms, "ms", how=how, reference=reference)


def _alone(part: _Part) -> Callable[[BenchContext], Sequence[Bar]]:
    return lambda context: _measured(context, part)


PARTS = {
    "waiting": _alone(_waiting), "many": _alone(_many), "runners": _alone(_runners), "live": _alone(_live),
    "steps": _alone(_steps), "env_runners": _alone(_env_runners),
}  # fmt: skip
"""`env_runners` starts 64 processes with RLlib, and is measured when it is asked for alone."""
