"""Bench `training`: what PPO learns in simulation on least_conn, on round robin and with more servers; its pace."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from actuators.contract.topology import Topology, social_network
from envs.scenarios.catalogue import STUDY, StudyScenario
from envs.scenarios.lookup import scenario
from envs.study.rules import RULES, Rule
from rayjobs.bench.parts.bars import Bar, BenchContext, at_least, at_most, figure
from rayjobs.bench.parts.ratios import ANTICIPATING, GENERALIST, SPECIALIST, SPEED, Judged, Ratios, evaluation_seeds
from rayjobs.runs.local_ray import local_ray
from tuning.learning.study import Trained, TrainingArm, train

TOPOLOGY = social_network()
PLAIN, SIMPLE = RULES["least_conn"], RULES["inverse_latency"]
_WORDS = {"mean_ms": "mean", "p99_ms": "p99", "art": "ART", "index": "J"}
_QUICK_SCENARIOS = ("S2", "S3", "S9")


@dataclass(frozen=True)
class Cost:
    """What one training took, from its first observation to its network."""

    name: str
    wall_s: float
    cpu_s: float


class Study:
    """Trains arms and judges them; the scores of a rule on a scenario are taken once.

    Attributes:
        training_seeds: three, drawn from the bench's seed, so that no setting was chosen by looking at them.
        seeds: of the evaluation: 101 to 104, as in docs/studies.md, and drawn ones.
        played: S1-S10, `duration_s` each (S6 2.5 times that); three of them and 60 s when quick.
    """

    def __init__(self, context: BenchContext, duration_s: float = 600.0, drawn_seeds: int = 4) -> None:
        self._context, self.quick = context, context.quick
        self._duration_s = 60.0 if self.quick else duration_s
        drawn = np.random.default_rng([context.seed, 6]).choice(90_000, 3, replace=False) + 1000
        self.training_seeds = tuple(int(seed) for seed in drawn[: 1 if self.quick else 3])
        self.seeds = evaluation_seeds(context.seed, drawn_seeds)[: 1 if self.quick else None]
        self.played = [self.scenario(name) for name in (_QUICK_SCENARIOS if self.quick else STUDY)]
        self.judged = Judged(TOPOLOGY, self.seeds)
        self.costs: list[Cost] = []

    @property
    def how(self) -> str:
        return (
            f"{len(self.training_seeds)} training seeds {self.training_seeds}, evaluation seeds {self.seeds}, "
            f"{self.played[0].duration_s:g} s (S6 × 2.5), paired"
        )

    def scenario(self, name: str) -> StudyScenario:
        """As long as this run plays it."""
        return scenario(name, self._duration_s * (2.5 if name == "S6" else 1.0))

    def train(self, arm: TrainingArm, seed: int, *, held_out: bool = True) -> Trained:
        """The trained arm; quick runs train for two iterations, which teaches nothing but shows that it works."""
        chosen = replace(arm, steps=2 * arm.algorithm.batch_steps) if self.quick else arm
        self._context.log(f"training {arm.name}: {chosen.steps} steps, seed {seed}")
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        folder = self._context.work_dir / f"{arm.name.replace(' ', '-')}-{seed}-{len(self.costs)}"
        trained = train(chosen, TOPOLOGY, seed, folder, held_out=held_out and not self.quick)
        self.costs.append(Cost(arm.name, time.perf_counter() - wall_s, time.process_time() - cpu_s))
        return trained

    def trained(self, arm: TrainingArm) -> list[Trained]:
        """The arm, once per training seed."""
        return [self.train(arm, seed) for seed in self.training_seeds]

    def over(self, own: Rule, base: Rule, played: Sequence[StudyScenario]) -> Ratios:
        """Seed by seed, on the same arrivals."""
        self._context.log(f"{own.name} over {base.name} on {', '.join(one.name for one in played)}")
        return self.judged.over(own, base, played)


def measure(context: BenchContext) -> Sequence[Bar]:
    """Pace, gain and repeatability of training (docs/results.md#bench-training)."""
    study = Study(context)
    with local_ray():
        bars = [_speed(context)]
        if context.quick:
            bars += map(_unjudged, _generalist(study))
        else:
            bars += [*_generalist(study), *_round_robin(study)]
        bars.append(_repeats(study))
    longest = max(study.costs, key=lambda cost: cost.wall_s)
    bar = at_most(
        "longest training", longest.wall_s / 60, 30, "min", how="wall time, observation and held-out episodes included",
        reference=f"{longest.name}: {longest.cpu_s / 60:.1f} min of CPU, {len(study.costs)} trainings",
    )  # fmt: skip
    return [*bars, bar]


def _unjudged(bar: Bar) -> Bar:
    return replace(bar, limit=None, holds=True, how=f"hardly trained, so not judged; {bar.how}")


def _speed(context: BenchContext) -> Bar:
    marks: list[tuple[float, float, int]] = []
    arm = replace(SPEED, steps=4800) if context.quick else SPEED
    train(
        arm, TOPOLOGY, context.seed, context.work_dir / "speed",
        report=lambda row, steps: marks.append((time.perf_counter(), time.process_time(), row.step)),
        held_out=False,
    )  # fmt: skip
    rates = [(b[2] - a[2]) / (b[0] - a[0]) for a, b in pairwise(marks)]
    per_cpu_second = (marks[-1][2] - marks[0][2]) / (marks[-1][1] - marks[0][1])
    return at_least(
        "PPO end to end, 24 environments at 1 s", float(np.median(rates)), 1500, "steps/s",
        how=f"median of {len(rates)} iterations of 1200 steps, about 1300 requests/s per environment",
        reference=f"slowest {min(rates):.0f}, fastest {max(rates):.0f}; {per_cpu_second:.0f} per CPU second",
    )  # fmt: skip


def _generalist(study: Study) -> Iterator[Bar]:
    trained = study.trained(GENERALIST)
    rules = [
        replace(one.rule, name=f"generalist {seed}") for one, seed in zip(trained, study.training_seeds, strict=True)
    ]
    plain = [study.over(rule, PLAIN, study.played) for rule in rules]
    simple = [study.over(rule, SIMPLE, study.played) for rule in rules]
    heuristic = study.over(SIMPLE, PLAIN, study.played)
    for metric, limit in (("mean_ms", 0.955), ("p99_ms", 0.945), ("art", 0.80)):
        yield _judged(f"learned on least_conn over least_conn: {_WORDS[metric]}", plain, metric, limit, study,
                      f"inverse latency {heuristic.geometric(metric):.3f}")  # fmt: skip
    for found, base, limit in ((plain, "least_conn", 1.02), (simple, "inverse latency", 1.01)):
        for metric in ("mean_ms", "p99_ms"):
            worst, where = max(one.worst(metric) for one in found)
            yield at_most(
                f"learned on least_conn over {base}: worst {_WORDS[metric]}", worst, limit, "×",
                how=f"the worst scenario of the worst training; {study.how}",
                reference=f"{where}; trainings together {Ratios.mean(found).worst(metric)[0]:.3f}",
            )  # fmt: skip
    yield _judged("learned on least_conn over inverse latency: J on S9", simple, "index", 0.98, study, "", ("S9",))
    best, where = Ratios.mean(simple).best("index")
    yield figure("learned on least_conn over inverse latency: best J", best, "×", how=study.how, reference=where)
    yield from _more_servers(study, trained)


def _judged(
    bar: str, trainings: Sequence[Ratios], metric: str, limit: float, study: Study, beside: str,
    names: Sequence[str] | None = None,
) -> Bar:  # fmt: skip
    """The trainings' geometric mean; each training's own figure and the interval over evaluation seeds beside it."""
    together = Ratios.mean(trainings)
    each = ", ".join(f"{one.geometric(metric, names):.3f}" for one in trainings)
    reference = "; ".join(filter(None, (together.interval(metric, names), f"trainings {each}", beside)))
    return at_most(bar, together.geometric(metric, names), limit, "×", how=study.how, reference=reference)


def _more_servers(study: Study, trained: Sequence[Trained]) -> Iterator[Bar]:
    """Trained with three servers, judged with more."""
    names = ("S2", "S3", "S4") if not study.quick else ("S2",)
    for servers in (5, 12):
        judged = Judged(_servers(servers), study.seeds[:2])
        played = [
            replace(study.scenario(name), duration_s=min(study.scenario(name).duration_s, 200.0)) for name in names
        ]
        found = [
            judged.over(replace(one.rule_on(_servers(servers)), name=f"generalist {index}"), SIMPLE, played)
            for index, one in enumerate(trained)
        ]
        worst, where = max(one.worst("mean_ms") for one in found)
        yield at_most(
            f"trained on 3 servers, on {servers}, over inverse latency: worst mean", worst, 1.01, "×",
            how=f"the worst training; {', '.join(names)}, evaluation seeds {study.seeds[:2]}, 200 s, paired",
            reference=where,
        )  # fmt: skip


def _servers(count: int) -> Topology:
    return social_network(tuple(f"server-{number}:80" for number in range(1, count + 1)))


def _round_robin(study: Study) -> Iterator[Bar]:
    heuristic = replace(SIMPLE, method="round_robin")
    for arm, name, limit in ((SPECIALIST, "S3", 0.85), (ANTICIPATING, "S10", 0.5)):
        played = [study.scenario(name)]
        trained = [
            replace(one.rule, name=f"{arm.name} {seed}")
            for one, seed in zip(study.trained(arm), study.training_seeds, strict=True)
        ]
        ratios = [study.over(rule, heuristic, played) for rule in trained]
        of_plain = Ratios.mean([study.over(rule, PLAIN, played) for rule in trained]).geometric("index")
        simple = study.over(SIMPLE, PLAIN, played).geometric("index")
        yield _judged(
            f"learned over inverse latency, both on round robin: J on {name}", ratios, "index", limit, study,
            f"J over plain least_conn {of_plain:.2f}, inverse latency on least_conn {simple:.2f}",
        )  # fmt: skip


def _repeats(study: Study) -> Bar:
    """Trains the same short arm twice."""
    arm = replace(SPECIALIST, steps=2400)
    first, second = (study.train(arm, study.training_seeds[0]).net.state_dict() for _ in range(2))
    apart = max(float((first[name] - second[name]).abs().max()) for name in first)
    return at_most(
        "two trainings with one seed: largest difference of a weight", apart, 0.0, "",
        how=f"{arm.name}, 2400 steps; tests/integration/test_training.py does it from a saved config.yaml",
    )  # fmt: skip
