"""Trains a residual on the calibrated simulator and writes the bundle: the residual where it is proven, else none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from envs.environment.problem import DecisionProblem
from envs.scenarios.calibrated import calibrated
from envs.scenarios.catalogue import randomised
from rayjobs.onboard.fit import Fit
from rayjobs.onboard.system import Way
from rayjobs.onboard.twin import simulation_of
from tuning.options import HeldOutOptions, ModelOptions, TrainingOptions
from tuning.policy.bundle import Bundle
from tuning.policy.network import ArrayNet, expected_shapes

BUNDLE = "bundle"
PROOF_EPISODES = 48


def options_for(way: Way, fitted: Fit, steps: int, interval_s: float) -> TrainingOptions:
    """How the residual is trained: paid for what differs from the heuristic, and proven on fresh episodes."""
    return TrainingOptions(
        steps=steps,
        method=way.steered,
        interval_s=interval_s,
        decision=fitted.problem.options,
        paired=True,
        proof_episodes=PROOF_EPISODES,
        held_out=HeldOutOptions(every_steps=max(steps // 4, 1), patience=4, episodes=12),
        checkpoint_steps=max(steps // 4, 1),
    )


def resting_net(problem: DecisionProblem, model: ModelOptions) -> ArrayNet:
    """A network whose residual is 0, which leaves everything to the heuristic."""
    groups, action = problem.topology.shape[0], problem.options.action
    shapes = expected_shapes(problem.row_size, groups, model.hidden, action)
    zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    return ArrayNet(zeros, groups, model.squashed, action)


def learn(
    fitted: Fit,
    way: Way,
    steps: int,
    interval_s: float,
    seed: int,
    place: Path,
    report: Callable[[str, float], None],
    address: str | None = None,
) -> tuple[Bundle, dict[str, Any] | None]:
    """The bundle, and the proof of its residual; None when nothing was trained. Goes on from its checkpoints.

    Args:
        place: receives checkpoints and the training curve.
        address: of Ray, as `rayjobs.runs.joining.RayOptions` has it.
    """
    if steps == 0:
        model = ModelOptions()
        return Bundle(resting_net(fitted.problem, model), fitted.problem, model, {"seed": seed}), None
    from rayjobs.runs.local_ray import ray_session
    from tuning.learning.trainer import Trainer

    options = options_for(way, fitted, steps, interval_s)
    place.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(ray_session(address=address))
        trainer = Trainer(
            fitted.problem, options, place, seed,
            lambda row, of: report(f"{row.step} of {of} steps, return {row.episode_return:.2f}", row.step / of),
            simulation_of(fitted.calibration.load_balancers, way),
        )  # fmt: skip
        trainer.train_simulated(randomised(calibrated(fitted.calibration), options.script_s))
    proof = trainer.proof.to_json() if trainer.proof is not None else None
    return Bundle(trainer.net(), fitted.problem, trainer.options.model, {"seed": seed, "proof": proof}), proof
