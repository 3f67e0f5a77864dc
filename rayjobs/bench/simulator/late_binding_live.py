"""Late binding before real servers: goodput in overload, means where the load is ordinary and high, and two workers.

Every arm has an NGINX of its own before the same servers; all times are the client's, so that holds are in them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from scipy import stats

from actuators.contract.arrays import FloatArray
from actuators.contract.late_binding import LateBinding, LateBindingNumbers, slots_for
from actuators.contract.topology import Topology, social_network
from actuators.files import write_json
from actuators.nginx.config import NginxOptions
from actuators.statistics.reader import Collector
from actuators.testbed.live import LiveTestbed
from actuators.testbed.options import LiveOptions
from actuators.testbed.parts import start_local_testbed
from envs.estimators.registry import DEFAULT_ESTIMATOR
from envs.heuristics.controllers import Controller, EstimatorController, FixedController
from envs.heuristics.names import HELD
from envs.scenarios.catalogue import LIVE_WORK_SCALE, StudyScenario
from envs.scenarios.lookup import scenario
from envs.study.judge import deadlines_s
from rayjobs.bench.parts.bars import Bar, BenchContext, at_least, at_most
from rayjobs.bench.parts.site import front
from rayjobs.runs.folder import commit
from tuning.judging.blocks import Journal
from tuning.judging.evaluation import Evaluation
from tuning.judging.judge import Judge
from tuning.judging.plan import Excerpt, JudgeOptions, plan_blocks

NATIVE, DELAY, LATE, BY_DEADLINE, TWO = (
    "least_conn", "expected_delay", "late_binding", "earliest_deadline", "late_binding, 2 workers",
)  # fmt: skip
WORKERS = 4.0
GOODPUT_POINTS = {"S8": {LATE: 11.0, BY_DEADLINE: 12.0}, "S5": {LATE: 0.0, BY_DEADLINE: 0.0}}
"""Least gain over least_conn; in S5 the lower end of its interval must be above 0."""
BLOCKS = {"S8": (3, 300.0), "S5": (6, 30.0)}
"""Rounds and seconds. Overloads of S8 last 30 s and begin every 95 s, roughly: a short block may have none."""
MEANS = {"S1": 1.03, "S2": 1.03, "S3": 1.03, "S4": 1.03, "S2 at 90 %": 0.90}
"""Most of late_binding's mean over that of expected_delay."""
AGREE = 0.03
"""Two workers against one: goodput and mean."""


def measure(context: BenchContext) -> Sequence[Bar]:
    """All bars (docs/results.md#late-binding); a second run goes on from the blocks that an earlier one ended."""
    bars: list[Bar] = []
    with start_local_testbed(social_network(), LiveOptions(), context.work_dir / "servers", context.seed) as testbed:
        for name in ["S8"] if context.quick else (*GOODPUT_POINTS, *MEANS):
            kept = context.kept / f"{commit()[:9]}-live" / f"{name}.json"
            if context.quick or not kept.exists():
                kept.parent.mkdir(parents=True, exist_ok=True)
                found = _measured(context, testbed, name, kept.with_suffix(".jsonl"))
                write_json(kept, [asdict(bar) for bar in found])
            bars += [Bar(**row) for row in json.loads(kept.read_bytes())]
    return bars


def _measured(context: BenchContext, testbed: LiveTestbed, name: str, blocks: Path) -> list[Bar]:
    played = _scenario(name)
    arms = (NATIVE, LATE, BY_DEADLINE, TWO) if name in GOODPUT_POINTS else (NATIVE, DELAY, LATE)
    due_s = deadlines_s(played, testbed.topology)
    evaluation = _judge(context, testbed, played, arms, due_s, blocks)
    found = list(_overload(name, evaluation, due_s) if name in GOODPUT_POINTS else _ordinary(name, evaluation))
    # A round of a second is too short for learning: no bar is held against it.
    return [replace(bar, limit=None, holds=True) for bar in found] if context.quick else found


def _scenario(name: str) -> StudyScenario:
    named, _, at = name.partition(" at ")
    played = scenario(named, work_scale=LIVE_WORK_SCALE)
    return replace(played, name=name, load=0.9) if at else played


def _judge(
    context: BenchContext, testbed: LiveTestbed, played: StudyScenario, arms: Sequence[str], due_s: FloatArray,
    blocks: Path,
) -> Evaluation:  # fmt: skip
    rounds, seconds = (2, 3.0) if context.quick else BLOCKS.get(played.name, (6, 12.0))
    options = JudgeOptions(
        rounds=rounds, warm_up_s=1.0 if context.quick else 4.0, measure_s=seconds,
        interval_s=0.5 if context.quick else 1.0, repeats=12, seed=context.seed, reference=NATIVE, learned=LATE,
    )  # fmt: skip
    controllers = [_controller(name, testbed.topology, due_s) for name in arms]
    journal, plan = Journal(blocks), plan_blocks(controllers, options)
    finished = [] if context.quick else [block for block in journal.read() if block.planned in plan]
    with contextlib.ExitStack() as stack:
        behind = {}
        for index, name in enumerate(arms):
            workers = 2 if name == TWO else 1
            nginx = NginxOptions(
                method="least_conn" if name == NATIVE else "expected_delay" if name == DELAY else "late_binding",
                actuation="reload" if name == NATIVE else "memory", worker_processes=workers,
            )  # fmt: skip
            own = stack.enter_context(front(testbed.topology, nginx, context.work_dir / f"{played.name}-{index}"))
            collector = stack.enter_context(Collector(own.status_url, testbed.topology))
            behind[name] = testbed.behind(own.address, own, collector)
        return Judge(
            testbed, controllers, Excerpt(played, seconds), due_s, options, arms=behind, kind="live",
            finished=finished, relearn=False, keep=None if context.quick else journal.append,
            progress=lambda now: context.log(f"{played.name} {now.index + 1}/{now.total}: {now.planned.policy}")
            if now.phase == "measure" else None,
        ).run()  # fmt: skip


def _controller(name: str, topology: Topology, due_s: FloatArray) -> Controller:
    if name == NATIVE:
        return FixedController(NATIVE, "least_conn")
    if name == DELAY:
        return EstimatorController(topology, DEFAULT_ESTIMATOR, WORKERS, DELAY)
    numbers = LateBindingNumbers(order=HELD.get(name, HELD[LATE]))
    slots = slots_for(np.full(topology.shape[1], WORKERS), numbers.slots_per_worker)
    holding = LateBinding(topology, due_s, slots, numbers)
    return EstimatorController(topology, DEFAULT_ESTIMATOR, WORKERS, name, holding)


def _goodput(evaluation: Evaluation, arm: str, due_s: FloatArray) -> dict[int, float]:
    """Share of the requests that were answered within their deadline, by round."""
    found = {}
    for block in evaluation.blocks:
        if block.usable and block.planned.policy == arm:
            missed = block.tally.tardiness(due_s)[1].sum()
            found[block.planned.round] = 1.0 - float(missed) / float(block.tally.due.sum())
    return found


def _differences(evaluation: Evaluation, arm: str, base: str, due_s: FloatArray) -> FloatArray:
    """Of the goodput of two arms, in the rounds that both have."""
    ours, theirs = _goodput(evaluation, arm, due_s), _goodput(evaluation, base, due_s)
    return np.array([ours[number] - theirs[number] for number in sorted(ours.keys() & theirs.keys())])


def _overload(name: str, evaluation: Evaluation, due_s: FloatArray) -> Iterator[Bar]:
    shares = {arm: float(np.mean(list(_goodput(evaluation, arm, due_s).values()))) for arm in evaluation.values}
    text = ", ".join(f"{arm} {share:.3f}" for arm, share in shares.items())
    for arm, least in GOODPUT_POINTS[name].items():
        gains = 100 * _differences(evaluation, arm, NATIVE, due_s)
        half = _half_width(gains)
        how = f"{len(gains)} paired rounds, the client's clock"
        value = float(gains.mean()) - (half if least == 0 else 0.0)
        what = "lower end of the interval of the goodput's gain" if least == 0 else "goodput's gain"
        reference = f"{gains.mean():.1f} ± {half:.1f} points; {text}"
        yield at_least(f"{name}: {arm}, {what} over least_conn", value, least, "points", how=how, reference=reference)
    apart = _differences(evaluation, TWO, LATE, due_s)
    mean = evaluation.ratios(TWO, LATE)["mean_ms"]
    how = f"{len(apart)} paired rounds"
    points = 100 * float(apart.mean())
    yield at_most(f"{name}: two workers against one, goodput", abs(points), 100 * AGREE, "points", how=how,
                  reference=f"{points:.1f} ± {_half_width(100 * apart):.1f} points; {text}")  # fmt: skip
    yield at_most(f"{name}: two workers against one, mean", abs(_known(mean.median) - 1), AGREE, "×", how=how)


def _half_width(values: FloatArray) -> float:
    """Of the 95 % interval of their mean; NaN for one."""
    return float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)) if len(values) > 1 else float("nan")


def _ordinary(name: str, evaluation: Evaluation) -> Iterator[Bar]:
    ratio, over_native = (evaluation.ratios(LATE, base)["mean_ms"] for base in (DELAY, NATIVE))
    how = f"median of {ratio.rounds} paired rounds, the client's clock"
    reference = f"{_known(over_native.median):.3f}× least_conn"
    what = f"{name}: late_binding's mean over expected_delay's"
    yield at_most(what, _known(ratio.median), MEANS[name], "×", how=how, reference=reference)


def _known(value: float | None) -> float:
    return float("nan") if value is None else value
