"""Ratios of one rule to another under the same arrivals: geometric means over scenarios and seeds, with intervals.

The policies that the benches train: what each sees and does, and its hyperparameters.

Frozen on 2026-11-22. The first values were found while looking at the published evaluation seeds, so figures on
those alone prove little: benches add seeds that are drawn from another range. Choose a new value on training seeds and
on evaluation seeds 201 to 204 only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from actuators.contract.topology import Topology
from envs.environment.actions import ActionOptions
from envs.environment.problem import DecisionOptions
from envs.observation.observer import ObservationName
from envs.scenarios.catalogue import STUDY, StudyScenario
from envs.study.judge import Score, judge_each
from envs.study.rules import Rule
from tuning.learning.study import TrainingArm
from tuning.options import AlgorithmOptions

Metric = str

PUBLISHED_SEEDS = (101, 102, 103, 104)
"""Evaluation seeds of the study; nothing is chosen by looking at them."""


def evaluation_seeds(seed: int, drawn: int) -> tuple[int, ...]:
    """The study's evaluation seeds and `drawn` others that follow from a run's seed and stand in no file."""
    others = 100_000 + np.random.default_rng([seed, 4]).choice(900_000, drawn, replace=False)
    return (*PUBLISHED_SEEDS, *map(int, others))


@dataclass(frozen=True, eq=False)
class Ratios:
    """One rule over another under the same arrivals: per scenario and seed.

    Attributes:
        scores: scenario → a score per seed, each divided by the base's.
    """

    scores: Mapping[str, Sequence[Score]]

    @classmethod
    def of(cls, own: Mapping[str, Sequence[Score]], base: Mapping[str, Sequence[Score]]) -> Ratios:
        """Seed by seed; both must hold the same scenarios and seeds."""
        return cls({name: [a.over(b) for a, b in zip(own[name], base[name], strict=True)] for name in own})

    @classmethod
    def mean(cls, several: Sequence[Ratios]) -> Ratios:
        """Geometric mean, cell by cell: of several trainings."""
        first = several[0].scores
        return cls({name: [_mean([one.scores[name][i] for one in several]) for i in range(len(first[name]))]
                    for name in first})  # fmt: skip

    def geometric(self, metric: Metric, names: Sequence[str] | None = None) -> float:
        """Geometric mean over scenarios and seeds."""
        return float(np.exp(self._logs(metric, names).mean()))

    def interval(self, metric: Metric, names: Sequence[str] | None = None) -> str:
        """95 % interval of `geometric` over seeds (Student's t), as text; empty from one seed."""
        of_seeds = self._logs(metric, names).mean(axis=0)
        if len(of_seeds) < 2:
            return ""
        half = stats.t.ppf(0.975, len(of_seeds) - 1) * of_seeds.std(ddof=1) / np.sqrt(len(of_seeds))
        return f"95 %: {np.exp(of_seeds.mean() - half):.3f} to {np.exp(of_seeds.mean() + half):.3f}"

    def worst(self, metric: Metric) -> tuple[float, str]:
        """The largest ratio of all scenarios, seeds averaged, and where."""
        rows = np.exp(self._logs(metric).mean(axis=1))
        return float(rows.max()), tuple(self.scores)[int(rows.argmax())]

    def best(self, metric: Metric) -> tuple[float, str]:
        """The smallest ratio of all scenarios, seeds averaged, and where."""
        rows = np.exp(self._logs(metric).mean(axis=1))
        return float(rows.min()), tuple(self.scores)[int(rows.argmin())]

    def _logs(self, metric: Metric, names: Sequence[str] | None = None) -> NDArray[np.float64]:
        chosen = self.scores if names is None else names
        return np.log([[getattr(score, metric) for score in self.scores[name]] for name in chosen])


class Judged:
    """Scores of rules per scenario and seed, each taken once.

    Args:
        rule names must differ between rules of one method.
    """

    def __init__(self, topology: Topology, seeds: Sequence[int]) -> None:
        self._topology, self.seeds = topology, tuple(seeds)
        self._scores: dict[tuple[str, str, str], tuple[Score, ...]] = {}

    def over(self, own: Rule, base: Rule, played: Sequence[StudyScenario]) -> Ratios:
        """One rule over the other on these scenarios, seed by seed."""
        return Ratios.of(self._of(own, played), self._of(base, played))

    def _of(self, rule: Rule, played: Sequence[StudyScenario]) -> dict[str, Sequence[Score]]:
        for one in played:
            key = (rule.name, rule.method, one.name)
            if key not in self._scores:
                self._scores[key] = judge_each(rule, one, self._topology, self.seeds)
        return {one.name: self._scores[rule.name, rule.method, one.name] for one in played}


def _mean(scores: Sequence[Score]) -> Score:
    def mean(metric: Metric) -> float:
        return float(np.exp(np.mean(np.log([getattr(score, metric) for score in scores]))))

    return Score(
        mean("mean_ms"), mean("p99_ms"), mean("art"), mean("index"),
        float(np.mean([score.error_ratio for score in scores])), scores[0].requests,
    )  # fmt: skip


FULL = ActionOptions(floor=1, dead_band=0.0)
"""The study's baselines know no floor and no dead band; the learned policies here have none either."""

GENERALIST = TrainingArm(
    "generalist",
    DecisionOptions(action=FULL),
    "least_conn",
    # Where weights have authority (many contexts, specialists) is a small part of the suite: it comes more often.
    scenarios=(*STUDY, *("S9",) * 6, *("S3",) * 2),
    steps=40_000,
    # Over a good balancing method weights work at once: what they do later is noise in the credit they get.
    algorithm=AlgorithmOptions(learning_rate=1.5e-3, discount=0.3, batch_steps=2400, minibatch_steps=600),
)
SPECIALIST = TrainingArm(
    "S3 on round robin",
    DecisionOptions(action=FULL.model_copy(update={"kind": "increments"})),
    "round_robin",
    ("S3",),
    20_000,
    algorithm=AlgorithmOptions(learning_rate=1e-3, discount=0.7),
)
ANTICIPATING = TrainingArm(
    "S10 on round robin",
    DecisionOptions(observation="features", frames=8, action=FULL.model_copy(update={"kind": "continuous"})),
    "round_robin",
    ("S10",),
    60_000,
    algorithm=AlgorithmOptions(learning_rate=1e-3, discount=0.8),
)
SPEED = TrainingArm("speed", DecisionOptions(action=FULL), "least_conn", ("S2",), 24_000)
"""For timing: S2 randomised asks for about 1300 requests/s."""


def seeing(observation: ObservationName, clusters: int) -> TrainingArm:
    """A generalist on round robin, where weights matter most, that sees this; all else is equal for all."""
    decision = DecisionOptions(observation=observation, action=FULL.model_copy(update={"kind": "continuous"}))
    name = observation if observation == "features" else f"{observation}, K = {clusters}"
    return TrainingArm(name, decision, "round_robin", STUDY, 24_000, clusters, algorithm=SPECIALIST.algorithm)
