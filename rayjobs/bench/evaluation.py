"""Bench `evaluation`: is the judge to be trusted? A/A, a planted slowdown, reproduction, interruption.

Testbeds that put a judge on trial: one draws anew at every reset, one is slower by a known factor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from actuators.contract.script import Scenario, Script
from actuators.contract.topology import Topology, social_network
from actuators.contract.window import Window
from actuators.errors import DataError, TestbedError
from envs.heuristics.controllers import FixedController
from envs.scenarios.lookup import scenario
from envs.simulator.testbed import SimulatedTestbed
from rayjobs.bench.parts.bars import Bar, BenchContext, at_least, at_most, figure
from tuning.judging.agreement import agreement
from tuning.judging.blocks import Journal
from tuning.judging.evaluation import Evaluation
from tuning.judging.judge import Judge
from tuning.judging.plan import JudgeOptions


class FreshDraws(SimulatedTestbed):
    """Arrivals and work are drawn anew at every reset, so that equal policies differ by chance, as live ones do."""

    resets = 0

    def reset(self, scenario: Scenario, seed: int) -> None:
        self.resets += 1
        super().reset(scenario, int(np.random.SeedSequence([seed, self.resets]).generate_state(1)[0]))


@dataclass(frozen=True)
class Slowed:
    """A scenario in which the same arrivals bring `factor` times the work."""

    scenario: Scenario
    factor: float

    @property
    def name(self) -> str:
        return self.scenario.name

    def script(self, topology: Topology, seed: int) -> Script:
        script = self.scenario.script(topology, seed)
        return replace(script, mean_service_s=tuple(self.factor * mean_s for mean_s in script.mean_service_s))


class SlowedTestbed(SimulatedTestbed):
    """Every request takes `factor` times as long: a planted slowdown."""

    factor = 1.05

    def reset(self, scenario: Scenario, seed: int) -> None:
        super().reset(Slowed(scenario, self.factor), seed)


DEADLINES_S = np.array([0.06, 0.025, 0.02])
REPEATS = 20


def measure(context: BenchContext) -> Sequence[Bar]:
    """Judging on simulated testbeds (docs/results.md#bench-evaluation); for live ones see `evaluation_live`."""
    return [*_same(context), *_planted(context), *_again(context), *_interrupted(context)]


def options(seed: int, rounds: int = 8, measure_s: float = 20.0) -> JudgeOptions:
    """Short simulated blocks at the control interval of docs/studies.md#interval."""
    return JudgeOptions(rounds=rounds, warm_up_s=2.0, measure_s=measure_s, interval_s=1.0, seed=seed)


def _pair() -> list[FixedController]:
    return [FixedController("least_conn", "least_conn"), FixedController("again", "least_conn")]


def _same(context: BenchContext) -> Iterator[Bar]:
    covered = {"mean_ms": 0, "p99_ms": 0}
    for repeat in range(REPEATS):
        seed = context.seed + 1000 * repeat
        judge = Judge(FreshDraws(social_network()), _pair(), scenario("S1"), DEADLINES_S, options(seed))
        ratios = judge.run().ratios("again", "least_conn")
        for metric in covered:
            low, high = ratios[metric].low, ratios[metric].high
            covered[metric] += low is not None and high is not None and low <= 1 <= high
        context.log(f"A/A {repeat + 1} of {REPEATS}: mean {ratios['mean_ms'].value:.3f}×")
    for metric, times in covered.items():
        how = f"S1, least_conn against itself {REPEATS} times, 8 rounds, arrivals and work drawn anew for every block"
        yield at_least(f"A/A: intervals of {metric} that cover 1", times, 17, f"of {REPEATS}", how=how)


def _planted(context: BenchContext) -> Iterator[Bar]:
    found, blocks = 0, []
    repeats = 5 if context.quick else REPEATS
    for repeat in range(repeats):
        topology = social_network()
        judge = Judge(SimulatedTestbed(topology), _pair(), scenario("S1"), DEADLINES_S,
                      options(context.seed + 1000 * repeat), peers={"again": SlowedTestbed(topology)})  # fmt: skip
        evaluation = judge.run()
        ratio = evaluation.ratios("again", "least_conn")["mean_ms"]
        found += ratio.verdict == "worse"
        blocks.append(len(evaluation.blocks))
    how = f"S1, work × 1.05 in one of two equal policies, {max(blocks)} blocks of 20 s, mean; {repeats} repeats"
    yield at_least("planted slowdown of 5 % found", found / repeats, 1.0, "of the repeats", how=how)


def _again(context: BenchContext) -> Iterator[Bar]:
    def once(seed: int) -> Evaluation:
        return Judge(SimulatedTestbed(social_network()), _pair(), scenario("S4"), DEADLINES_S,
                     options(seed, 3, 10.0), kind="simulated").run()  # fmt: skip

    first, second, other = (once(seed).to_json() for seed in (context.seed, context.seed, context.seed + 1))
    same = agreement("S4", first, second)
    how = f"S4 twice on one seed, {same.compared} numbers, as `deepsched reproduce` compares them"
    yield at_most("numbers that differ when reproduced", len(same.differences), 0, "", how=how)
    changed = len(agreement("S4", first, other).differences)
    yield at_least("numbers that differ on another seed", changed, 1, "", how="the same on the next seed")


class _Dying(SimulatedTestbed):
    """Breaks as a whole at the given number of windows."""

    windows = 0
    last = 25

    def advance(self, interval_s: float) -> Window:
        self.windows += 1
        if self.windows > self.last:
            raise TestbedError("the servers are gone", remedy="build a new testbed")
        return super().advance(interval_s)


def _interrupted(context: BenchContext) -> Iterator[Bar]:
    """A testbed that dies, then a disk that is full (/dev/full), then the rest: as if nothing had happened."""
    whole = _judge(Path(context.work_dir, "whole.jsonl"), SimulatedTestbed(social_network()))
    path = Path(context.work_dir, "broken.jsonl")
    lines = []
    for testbed, target in ((_Dying(social_network()), path), (SimulatedTestbed(social_network()), Path("/dev/full"))):
        try:
            _judge(target, testbed, finished=path)
        except (TestbedError, DataError) as error:
            lines.append(str(error))
    kept = len(Journal(path).read())
    yield at_least("clear lines for a dead testbed and a full disk", len(lines), 2, "", how="; ".join(lines))
    resumed = _judge(path, SimulatedTestbed(social_network()))
    differences = len(agreement("S1", whole.to_json(), resumed.to_json()).differences)
    how = f"{kept} of {len(whole.blocks)} blocks were kept over a dead testbed and a full disk; then resumed"
    yield at_most("numbers that differ after resuming", differences, 0, "", how=how)
    yield figure("blocks run again needlessly", len(resumed.blocks) - len(whole.blocks), "", how="after resuming")


def _judge(path: Path, testbed: SimulatedTestbed, finished: Path | None = None) -> Evaluation:
    journal = Journal(path)
    return Judge(testbed, _pair(), scenario("S1"), DEADLINES_S, options(7, 4, 5.0), kind="simulated",
                 finished=Journal(finished or path).read(), keep=journal.append).run()  # fmt: skip
