"""Bench `encodings`: the loss of a policy that sees clusters of the Gaussian mixture instead of features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from envs.observation.observer import ObservationName
from rayjobs.bench.parts.bars import Bar, BenchContext, at_most, figure
from rayjobs.bench.parts.ratios import Ratios, seeing
from rayjobs.bench.training import PLAIN, Study
from rayjobs.runs.local_ray import local_ray
from tuning.learning.study import TrainingArm

CLUSTERS = (4, 8, 16, 27, 64)
OBSERVATIONS: tuple[ObservationName, ...] = ("posterior", "label", "fisher")
DURATION_S = 100.0
"""Seventeen observations and seven more trainings take their time."""


def measure(context: BenchContext) -> Sequence[Bar]:
    """J over all scenarios of policies that differ only in their observation (docs/results.md#bench-encodings)."""
    study = Study(context, DURATION_S, drawn_seeds=2)
    with local_ray():
        return list(_bars(study))


def _bars(study: Study) -> Iterator[Bar]:
    candidates = [seeing(o, k) for o in OBSERVATIONS for k in (CLUSTERS[:1] if study.quick else CLUSTERS)]
    usual = seeing("posterior+features", 8)
    first, *others = study.training_seeds
    plain = {seed: _judged(study, seeing("features", 8), seed) for seed in study.training_seeds}
    found = {arm.name: _judged(study, arm, first) for arm in (*candidates, usual)}
    how = f"on round robin, {usual.steps} steps each, {DURATION_S:g} s, evaluation seeds {study.seeds}, paired"
    for name, ratios in found.items():
        yield figure(
            f"J, {name}, over features", _index(ratios) / _index(plain[first]), "×",
            how=f"{how}; training seed {first}", reference=f"over least_conn {_index(ratios):.2f}",
        )  # fmt: skip
    best = min(found, key=lambda name: _index(found[name]))
    # Chosen for its luck with the first training seed, too: it must prove itself with others.
    for arm in (arm for arm in (*candidates, usual) if others and arm.name in (best, usual.name)):
        ratios = Ratios.mean([_judged(study, arm, seed) for seed in others])
        base = Ratios.mean([plain[seed] for seed in others])
        value, reference = _index(ratios) / _index(base), f"over least_conn {_index(ratios):.2f}"
        told = f"{how}; training seeds {tuple(others)}, which the choice did not see"
        name = f"J, {arm.name}, over features, trained anew"
        if arm.name == best:
            yield at_most(name, value, 1.02, "×", how=f"the best observation of training seed {first}; {told}",
                          reference=reference)  # fmt: skip
        else:
            yield figure(name, value, "×", how=told, reference=reference)


def _judged(study: Study, arm: TrainingArm, seed: int) -> Ratios:
    """Over least_conn; the last network of a training, so that no arm is lucky in what is held out."""
    trained = study.train(arm, seed, held_out=False)
    return study.over(replace(trained.rule, name=f"{arm.name} {seed}"), PLAIN, study.played)


def _index(ratios: Ratios) -> float:
    return ratios.geometric("index")
