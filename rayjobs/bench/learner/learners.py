"""Learners × scenarios × training seeds beside the heuristics, all with the same steps, episodes and evaluation.

Every training is kept in a file, so that an interrupted run goes on; the table is printed from the files.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from actuators.contract.control import BalancingMethod
from actuators.contract.topology import social_network
from actuators.files import write_atomic, write_json
from envs.environment.actions import ActionOptions
from envs.environment.problem import DecisionOptions
from envs.scenarios.lookup import scenario
from envs.study.judge import Score, judge_each
from envs.study.rules import RULES, Rule
from rayjobs.bench.learner import stable_baselines
from rayjobs.bench.parts.bars import Bar, BenchContext, figure
from rayjobs.bench.parts.ratios import FULL, PUBLISHED_SEEDS
from tuning.learning.study import TrainingArm, train
from tuning.options import AlgorithmOptions

TOPOLOGY = social_network()
SCENARIOS = ("S2", "S3", "S9", "S10")
HEURISTICS = ("inverse_latency", "expected_delay")
REFERENCE: BalancingMethod = "least_conn"
TRAININGS, STEPS, PLAYED_S = 5, 12_000, 200.0
_RATIOS = ActionOptions(kind="ratios", joint=True, floor=FULL.floor, dead_band=FULL.dead_band)


@dataclass(frozen=True)
class Learner:
    """One way to learn: whose program, and the algorithm's options, which are equal where two have the same."""

    name: str
    algorithm: AlgorithmOptions
    action: ActionOptions = FULL
    by_rllib: bool = True

    def arm(self, played: str, steps: int) -> TrainingArm:
        """What is trained: weights on least_conn, in randomised episodes of one scenario."""
        decision = DecisionOptions(action=self.action)
        return TrainingArm(self.name, decision, REFERENCE, (played,), steps, algorithm=self.algorithm)


LEARNERS = (
    Learner("RLlib PPO", AlgorithmOptions()),
    Learner("RLlib SAC", AlgorithmOptions(name="sac")),
    Learner("RLlib DQN", AlgorithmOptions(name="dqn"), _RATIOS),
    Learner("SB3 PPO", AlgorithmOptions(), by_rllib=False),
    Learner("SB3 SAC", AlgorithmOptions(name="sac"), by_rllib=False),
)


@dataclass(frozen=True)
class Found:
    """What one training, or a heuristic, reached: a score per evaluation seed, and the seconds that training took."""

    scores: tuple[Score, ...]
    seconds: float = 0.0

    @classmethod
    def read(cls, path: Path) -> Found:
        """From a file that `write` wrote."""
        found = json.loads(path.read_bytes())
        return cls(tuple(Score(**score) for score in found["scores"]), found["seconds"])

    def write(self, path: Path) -> None:
        write_json(path, {"scores": [asdict(score) for score in self.scores], "seconds": self.seconds})


def measure(context: BenchContext) -> Sequence[Bar]:
    """A figure per learner and heuristic: its J over `least_conn`; the table is in `learners.md` beside the files."""
    scenarios, trainings, steps = (SCENARIOS[:1], 1, 2400) if context.quick else (SCENARIOS, TRAININGS, STEPS)
    folder = context.kept / f"{steps}"
    folder.mkdir(parents=True, exist_ok=True)
    _train_missing(context, folder, scenarios, trainings, steps)
    found = {
        learner.name: {
            name: [Found.read(_path(folder, learner.name, name, seed)) for seed in range(1, trainings + 1)]
            for name in scenarios
        }
        for learner in LEARNERS
    }
    rules = {
        rule: {name: [_judged(RULES[rule], name, context.quick)] for name in scenarios}
        for rule in (REFERENCE, *HEURISTICS)
    }
    base = {name: rules[REFERENCE][name][0] for name in scenarios}
    table = markdown({**{rule: rules[rule] for rule in HEURISTICS}, **found}, base)
    write_atomic(folder / "learners.md", table.encode())
    context.log(f"table: {folder / 'learners.md'}\n{table}")
    how = f"{steps} steps, {trainings} trainings, evaluation seeds {PUBLISHED_SEEDS}, {', '.join(scenarios)}"
    return [
        figure(f"{name}: J over {REFERENCE}", over.middle, "×", how=how, reference=over.interval)
        for name, rows in {**{rule: rules[rule] for rule in HEURISTICS}, **found}.items()
        for over in [Over.of(list(rows.values()), list(base.values()), "index")]
    ]


def _train_missing(context: BenchContext, folder: Path, scenarios: Sequence[str], trainings: int, steps: int) -> None:
    wanted = [(learner, name, seed) for seed in range(1, trainings + 1) for name in scenarios for learner in LEARNERS]
    missing = [one for one in wanted if not _path(folder, one[0].name, one[1], one[2]).exists()]
    if not missing:
        return
    from rayjobs.runs.local_ray import local_ray

    with local_ray() if any(learner.by_rllib for learner, _, _ in missing) else contextlib.nullcontext():
        for number, (learner, name, seed) in enumerate(missing):
            context.log(f"{number + 1} of {len(missing)}: {learner.name} on {name}, seed {seed}")
            began_s = time.perf_counter()
            rule = _trained(learner, name, seed, steps, context.work_dir / f"training-{number}")
            took_s = time.perf_counter() - began_s
            scores = _judged(rule, name, context.quick).scores
            Found(scores, took_s).write(_path(folder, learner.name, name, seed))


def _trained(learner: Learner, name: str, seed: int, steps: int, folder: Path) -> Rule:
    arm = learner.arm(name, steps)
    if learner.by_rllib:
        return train(arm, TOPOLOGY, seed, folder, held_out=False).rule
    return stable_baselines.trained(arm, TOPOLOGY, seed)


def _judged(rule: Rule, name: str, quick: bool) -> Found:
    played = scenario(name, 60.0 if quick else PLAYED_S)
    return Found(judge_each(rule, played, TOPOLOGY, PUBLISHED_SEEDS))


def _path(folder: Path, learner: str, name: str, seed: int) -> Path:
    return folder / f"{learner.replace(' ', '-')}-{name}-{seed}.json"


@dataclass(frozen=True)
class Over:
    """Geometric mean of the ratios to the reference, over trainings, with its 95 % interval (Student's t); nan without.

    The ratio of one training is that of its evaluation seeds and scenarios together.
    """

    middle: float
    low: float = math.nan
    high: float = math.nan

    @classmethod
    def of(cls, rows: Sequence[Sequence[Found]], base: Sequence[Found], metric: str) -> Over:
        """Of the trainings of each scenario; the reference has one row per scenario."""
        logs = np.array([
            [np.log(_values(one, metric) / _values(below, metric)).mean() for one in trainings]
            for trainings, below in zip(rows, base, strict=True)
        ]).mean(axis=0)  # fmt: skip
        middle = float(logs.mean())
        if len(logs) < 2:
            return cls(math.exp(middle))
        half = float(stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs)))
        return cls(math.exp(middle), math.exp(middle - half), math.exp(middle + half))

    @property
    def interval(self) -> str:
        """As text; empty without one."""
        return "" if math.isnan(self.low) else f"95 %: {self.low:.3f} to {self.high:.3f}"

    def __str__(self) -> str:
        return f"{self.middle:.3f}" + ("" if math.isnan(self.low) else f" ({self.low:.3f} to {self.high:.3f})")


def _values(found: Found, metric: str) -> Any:
    return np.array([getattr(score, metric) for score in found.scores])


def markdown(found: Mapping[str, Mapping[str, Sequence[Found]]], base: Mapping[str, Found]) -> str:
    """The table: J over the reference by scenario, all together with mean and p99, and the time of a training."""
    scenarios = list(base)
    lines = [
        f"| policy | {' | '.join(scenarios)} | J, all | mean, all | p99, all | seconds of a training |",
        "|---" * (len(scenarios) + 5) + "|",
    ]
    whole: Callable[[Mapping[str, Sequence[Found]], str], Over] = lambda rows, metric: Over.of(  # noqa: E731
        [rows[name] for name in scenarios], [base[name] for name in scenarios], metric
    )
    for policy, rows in found.items():
        cells = [str(Over.of([rows[name]], [base[name]], "index")) for name in scenarios]
        cells += [str(whole(rows, metric)) for metric in ("index", "mean_ms", "p99_ms")]
        took = [one.seconds for name in scenarios for one in rows[name]]
        cells.append(f"{np.median(took):.0f}" if any(took) else "")
        lines.append(f"| {policy} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
