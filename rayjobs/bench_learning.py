"""What reinforcement learning wins in simulation: on least_conn, on round robin, and what the encoding costs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from actuators.topology import social_network
from envs.actions import ActionOptions
from envs.decision import DecisionOptions
from envs.observation import ObservationName
from envs.rules import RULES, Rule
from envs.scenarios import STUDY, scenario
from envs.study import Score, judge
from rayjobs.bench import Bar, BenchContext, at_least, at_most, figure
from rayjobs.bench_headline import SEEDS, TOPOLOGY
from tuning.options import AlgorithmOptions
from tuning.study_training import Arm, Trained, train

FULL = ActionOptions(floor=1, dead_band=0.0)
"""The study's baselines know no floor and no dead band; the learned policies here have none either."""

GENERALIST = Arm(
    "generalist",
    DecisionOptions(action=FULL),
    "least_conn",
    # Where weights have authority (many contexts, specialists) is a small part of the suite: it comes more often.
    scenarios=(*STUDY, *("S9",) * 6, *("S3",) * 2),
    steps=40_000,
    # Over a good balancing method weights work at once: what they do later is noise in the credit they get.
    algorithm=AlgorithmOptions(learning_rate=1.5e-3, discount=0.3, batch_steps=2400, minibatch_steps=600),
)
SPECIALIST = Arm(
    "S3 on round robin",
    DecisionOptions(action=FULL.model_copy(update={"kind": "increments"})),
    "round_robin",
    ("S3",),
    20_000,
    algorithm=AlgorithmOptions(learning_rate=1e-3, discount=0.7),
)
ANTICIPATING = Arm(
    "S10 on round robin",
    DecisionOptions(observation="features", frames=8, action=FULL.model_copy(update={"kind": "continuous"})),
    "round_robin",
    ("S10",),
    60_000,
    algorithm=AlgorithmOptions(learning_rate=1e-3, discount=0.8),
)
CLUSTERS = (4, 8, 16, 27, 64)
ENCODINGS: tuple[ObservationName, ...] = ("posterior", "label", "fisher")
PAIR = ("least_conn", "inverse_latency")


class Study:
    """Trains arms and judges them; the scores of a rule on a scenario are taken once."""

    def __init__(self, context: BenchContext) -> None:
        self._context = context
        self.quick = context.quick
        self.seeds = SEEDS[:1] if context.quick else SEEDS
        self.duration_s = 120.0 if context.quick else 600.0
        self._scores: dict[tuple[str, str, str], Score] = {}
        self.seconds: dict[str, float] = {}

    @property
    def how(self) -> str:
        return f"seeds {self.seeds[0]}-{self.seeds[-1]}, {self.duration_s:g} s, paired"

    def train(self, arm: Arm) -> Trained:
        """The trained arm; quick runs get a tenth of the steps."""
        chosen = replace(arm, steps=max(arm.steps // 10, 2400)) if self.quick else arm
        self._context.log(f"training {arm.name}: {chosen.steps} steps")
        started = time.monotonic()
        folder = self._context.work_dir / "learning" / arm.name.replace(" ", "-")
        trained = train(chosen, TOPOLOGY, self._context.seed, folder)
        self.seconds[arm.name] = time.monotonic() - started
        return trained

    def score(self, rule: Rule, name: str) -> Score:
        """One rule on one scenario (S6 is played 2.5 times as long)."""
        key = (rule.name, rule.method, name)
        if key not in self._scores:
            played = scenario(name, self.duration_s * (2.5 if name == "S6" else 1.0))
            self._scores[key] = judge(rule, played, TOPOLOGY, self.seeds)
        return self._scores[key]

    def over(self, rule: Rule, base: Rule, names: Sequence[str]) -> dict[str, Score]:
        """Scenario → ratios of the two rules' figures."""
        self._context.log(f"{rule.name} over {base.name} on {len(names)} scenarios")
        return {name: self.score(rule, name).over(self.score(base, name)) for name in names}


def learning(context: BenchContext) -> Iterator[Bar]:
    """Bars 1 (training), 4, 6, 7 and 8 of issue 5."""
    from rayjobs.local_ray import local_ray

    study = Study(context)
    with local_ray():
        yield _speed(study, context)
        yield from _generalist(study)
        if not context.quick:
            yield from _round_robin(study)
            yield from _encodings(study)
    total = sum(study.seconds.values())
    longest = max(study.seconds, key=lambda name: study.seconds[name])
    yield at_most(
        "longest training", study.seconds[longest] / 60, 30, "min", how="wall time, start and observation included",
        reference=f"{longest}; all {len(study.seconds)} trainings {total / 60:.1f} min",
    )  # fmt: skip


def _speed(study: Study, context: BenchContext) -> Bar:
    # S2 randomised asks for about 1300 requests/s.
    arm = Arm("speed", DecisionOptions(action=FULL), "least_conn", ("S2",), steps=24_000)
    marks: list[tuple[float, int]] = []
    folder = context.work_dir / "learning" / "speed"
    train(
        replace(arm, steps=6000 if study.quick else arm.steps), TOPOLOGY, context.seed, folder,
        report=lambda row, steps: marks.append((time.perf_counter(), row.step)), held_out=False,
    )  # fmt: skip
    rates = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(marks)]
    return at_least(
        "PPO end to end, 24 environments at 1 s", max(rates), 1500, "steps/s",
        how=f"best of {len(rates)} iterations of 1200 steps, about 1300 requests/s per environment",
        reference=f"median {np.median(rates):.0f}",
    )  # fmt: skip


def _generalist(study: Study) -> Iterator[Bar]:
    trained = study.train(GENERALIST)
    plain = study.over(trained.rule, RULES["least_conn"], STUDY)
    simple = study.over(trained.rule, RULES["inverse_latency"], STUDY)
    for metric, word, limit in (("mean_ms", "mean", 0.955), ("p99_ms", "p99", 0.945), ("art", "ART", 0.80)):
        own = _geometric(plain, metric)
        beside = own / _geometric(simple, metric)
        yield at_most(
            f"learned on least_conn over least_conn: {word}", own, limit, "×", how=f"S1-S10, {study.how}",
            reference=f"inverse latency {beside:.3f}",
        )  # fmt: skip
    for found, base, limit in ((plain, "least_conn", 1.02), (simple, "inverse latency", 1.01)):
        for metric, word in (("mean_ms", "mean"), ("p99_ms", "p99")):
            worst = max(found, key=lambda name: getattr(found[name], metric))
            yield at_most(
                f"learned on least_conn over {base}: worst {word}", getattr(found[worst], metric), limit, "×",
                how=study.how, reference=worst,
            )  # fmt: skip
    yield at_most("learned on least_conn over inverse latency: J on S9", simple["S9"].index, 0.98, "×", how=study.how)
    yield from _more_servers(study, trained)
    best = min(simple, key=lambda name: simple[name].index)
    yield figure(
        "learned on least_conn over inverse latency: best J", simple[best].index, "×", how=study.how, reference=best
    )


def _more_servers(study: Study, trained: Trained) -> Iterator[Bar]:
    """Trained with three servers, judged with more."""
    for servers in (5, 12):
        topology = social_network(tuple(f"server-{number}:80" for number in range(1, servers + 1)))
        names = ("S2", "S3", "S4") if not study.quick else ("S2",)
        ratios = {}
        for name in names:
            played = scenario(name, min(study.duration_s, 200.0))
            own, simple = (
                judge(rule, played, topology, study.seeds[:2])
                for rule in (trained.rule_on(topology), RULES["inverse_latency"])
            )
            ratios[name] = own.over(simple)
        worst = max(ratios, key=lambda name: ratios[name].mean_ms)
        yield at_most(
            f"trained on 3 servers, on {servers}, over inverse latency: worst mean", ratios[worst].mean_ms, 1.01, "×",
            how=f"{', '.join(names)}, {len(study.seeds[:2])} seeds, 200 s, paired", reference=worst,
        )  # fmt: skip


def _round_robin(study: Study) -> Iterator[Bar]:
    heuristic = replace(RULES["inverse_latency"], method="round_robin")
    for arm, name, limit in ((SPECIALIST, "S3", 0.85), (ANTICIPATING, "S10", 0.5)):
        trained = study.train(arm)
        ratio = study.over(trained.rule, heuristic, (name,))[name]
        of_plain = study.over(trained.rule, RULES["least_conn"], (name,))[name]
        yield at_most(
            f"learned over inverse latency, both on round robin: J on {name}", ratio.index, limit, "×", how=study.how,
            reference=f"{of_plain.index:.2f} of plain least_conn: least_conn is the better base",
        )  # fmt: skip


def _encodings(study: Study) -> Iterator[Bar]:
    """J over all scenarios of policies that differ in what they see only; on round robin, where weights matter."""
    found: dict[str, float] = {}

    def index(observation: ObservationName, clusters: int, label: str) -> float:
        action = FULL.model_copy(update={"kind": "continuous"})
        decision = DecisionOptions(observation=observation, action=action)
        arm = Arm(label, decision, "round_robin", STUDY, 20_000, clusters, algorithm=SPECIALIST.algorithm)
        trained = study.train(arm)
        return _geometric(study.over(trained.rule, RULES["least_conn"], STUDY), "index")

    plain = index("features", 8, "features")
    for observation in ENCODINGS:
        for clusters in CLUSTERS:
            label = f"{observation}, K = {clusters}"
            found[label] = index(observation, clusters, label) / plain
            yield figure(
                f"J, {label}, over features", found[label], "×", how=f"{study.how}, 20 000 steps each, one seed"
            )
    found["posterior+features, K = 8"] = index("posterior+features", 8, "posterior+features") / plain
    best = min(found, key=lambda label: found[label])
    yield at_most(
        "J, best observation through the mixture, over features", found[best], 1.02, "×", how=study.how, reference=best
    )


def _geometric(ratios: dict[str, Score], metric: str) -> float:
    return float(np.exp(np.mean([np.log(getattr(ratio, metric)) for ratio in ratios.values()])))
