"""Bench `admission_rl`: what reinforcement learning adds to admission (docs/admission-learning.md)."""

from __future__ import annotations

from collections.abc import Sequence

from rayjobs.bench.admission_rl.experiment import Experiment
from rayjobs.bench.admission_rl.picture import picture
from rayjobs.bench.admission_rl.tell import bars
from rayjobs.bench.parts.bars import Bar, BenchContext
from rayjobs.runs.local_ray import local_ray


def measure(context: BenchContext) -> Sequence[Bar]:
    """Learned factors on the limits of `aimd_thresh`, and learned rates of token buckets, beside what is not learned.

    Trainings are kept beside the figures, with the picture `admission-learning.svg`; a repeated run goes on from them.
    """
    context.kept.mkdir(parents=True, exist_ok=True)
    with local_ray():
        found = Experiment(context).run()
    (context.kept / "admission-learning.svg").write_text(picture(found), encoding="utf-8")
    return bars(found)
