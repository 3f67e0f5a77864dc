"""Bench `residual`: what a learned residual adds to `expected_delay` with learned service times; it must do no harm.

A residual multiplies the service times of the `idle` estimator and is 0 unless fresh episodes have proven a gain
(`tuning.learning.proof`). Settings were chosen on other training and evaluation seeds than those judged here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from envs.environment.actions import ActionOptions
from envs.environment.problem import DecisionOptions
from envs.scenarios.catalogue import STUDY
from envs.study.rules import Learning
from rayjobs.bench.parts.bars import Bar, BenchContext, at_most, figure
from rayjobs.bench.parts.ratios import Ratios
from rayjobs.bench.training import Study
from rayjobs.runs.local_ray import local_ray
from tuning.learning.study import Trained, TrainingArm
from tuning.options import AlgorithmOptions

BASE = Learning("idle")
MOST_HARM = 1.005
_ACTION = ActionOptions(baseline="idle")
_EPISODES_PER_SCENARIO = 24


def residual(
    name: str, scenarios: tuple[str, ...], steps: int, frames: int, algorithm: AlgorithmOptions
) -> TrainingArm:
    """A residual on `idle`, paid for what it changes on the same arrivals, and put to the proof."""
    return TrainingArm(
        name,
        DecisionOptions(observation="posterior+features" if frames == 1 else "features", frames=frames, action=_ACTION),
        "expected_delay",
        scenarios,
        steps,
        algorithm=algorithm,
        paired=True,
        proof_episodes=_EPISODES_PER_SCENARIO * len(scenarios),
    )


GENERALIST = residual(
    "residual, S1-S10", STUDY, 24_000, 1,
    AlgorithmOptions(learning_rate=1.5e-3, discount=0.3, batch_steps=2400, minibatch_steps=600),
)  # fmt: skip
SPECIALISTS = (
    residual("residual, S10", ("S10",), 24_000, 8, AlgorithmOptions(learning_rate=1e-3, discount=0.7)),
    residual("residual, S9", ("S9",), 16_800, 1, AlgorithmOptions(learning_rate=1e-3, discount=0.3)),
    residual("residual, S3", ("S3",), 16_800, 1, AlgorithmOptions(learning_rate=1e-3, discount=0.3)),
)
"""Trained and judged on one scenario: where the study saw room for a gain, and specialised servers
(docs/studies.md#a-residual-on-expected-delay)."""


@dataclass(frozen=True)
class Outcome:
    """One arm: every training's ratios to the plain estimator, and how many residuals were kept."""

    trainings: tuple[Ratios, ...]
    proofs: str


def measure(context: BenchContext) -> Sequence[Bar]:
    """Harm and gain of learned residuals (docs/results.md#bench-residual); a quick run only shows that it works."""
    study = Study(context)
    with local_ray():
        arms = SPECIALISTS[-1:] if context.quick else (GENERALIST, *SPECIALISTS)
        return [bar for arm in arms for bar in _bars(arm, _outcome(study, arm), study)]


def _outcome(study: Study, arm: TrainingArm) -> Outcome:
    played = [one for one in study.played if one.name in arm.scenarios]
    rule, trained = BASE.rule(), study.trained(arm)
    found = [
        study.over(replace(one.rule, name=f"{arm.name} {seed}"), rule, played)
        for one, seed in zip(trained, study.training_seeds, strict=True)
    ]
    return Outcome(tuple(found), _told(trained))


def _told(trained: Sequence[Trained]) -> str:
    proofs = [one.proof for one in trained if one.proof is not None]
    kept = sum(proof.holds for proof in proofs)
    gains = ", ".join(f"{proof.overall.mean:+.2%}" for proof in proofs)
    return f"{kept} of {len(trained)} residuals kept, proof's gains in J {gains}"


def _bars(arm: TrainingArm, outcome: Outcome, study: Study) -> Iterator[Bar]:
    together = Ratios.mean(outcome.trainings)
    worst, where = max(one.worst("index") for one in outcome.trainings)
    name = f"{arm.name}, over expected_delay without"
    yield at_most(
        f"{name}: worst J", worst, MOST_HARM, "×", how=f"the worst scenario of the worst training; {study.how}",
        reference=f"{where}; {outcome.proofs}",
    )  # fmt: skip
    each = ", ".join(f"{one.geometric('index'):.4f}" for one in outcome.trainings)
    yield at_most(
        f"{name}: J", together.geometric("index"), MOST_HARM, "×", how=study.how,
        reference="; ".join(filter(None, (together.interval("index"), f"trainings {each}"))),
    )  # fmt: skip
    for metric, word in (("mean_ms", "mean"), ("p99_ms", "p99")):
        yield figure(
            f"{name}: {word}", together.geometric(metric), "×", how=study.how, reference=together.interval(metric)
        )
