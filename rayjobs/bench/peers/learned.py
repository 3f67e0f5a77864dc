"""Weights on least_conn that PPO learns in a run of the bench, as in bench `training`, to stand beside the others."""

from __future__ import annotations

from dataclasses import replace

from actuators.contract.topology import social_network
from rayjobs.bench.parts.bars import BenchContext
from rayjobs.bench.parts.ratios import GENERALIST
from rayjobs.runs.local_ray import local_ray
from tuning.learning.study import Trained, train

LEARNED = "learned"


def train_weights(context: BenchContext, work_scale: float | None = None) -> Trained:
    """Trained once, with the bench's seed; a quick run shows only that it works.

    Args:
        work_scale: factor on the work of every request; None for the scenarios' own.
    """
    arm = replace(GENERALIST, work_scale=work_scale)
    arm = replace(arm, steps=2 * arm.algorithm.batch_steps) if context.quick else arm
    context.log(f"training {arm.name}: {arm.steps} steps")
    with local_ray():
        return train(arm, social_network(), context.seed, context.work_dir / LEARNED, held_out=not context.quick)
