"""The first lesson: learn to do what the inverse-latency baseline does, before improving on it.

Plain torch on recorded steps, a few seconds; RLlib's BC (`training.algorithm.name=bc`) does the same from files.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from actuators.contract.script import Script
from envs.environment.problem import DecisionProblem
from envs.environment.vector_env import SimulatedVectorEnv
from tuning.options import TrainingOptions
from tuning.policy.model import EquivariantNet

_LEARNING_RATE = 3e-3
_BATCH = 256
_WANDERING = 0.3
"""Log deviation of the weights around the baseline's, so that the pupil also sees where mistakes lead."""


def imitate(
    net: EquivariantNet,
    problem: DecisionProblem,
    next_script: Callable[[np.random.Generator], Script],
    options: TrainingOptions,
    seed: int,
) -> float:
    """Fits the network to the baseline's actions; the mean loss of the last pass."""
    rows, actions = lessons(problem, next_script, options, seed)
    optimiser = torch.optim.Adam(net.parameters(), lr=_LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    for _ in range(options.imitation.epochs):
        losses = []
        for chosen in torch.randperm(len(rows), generator=generator).split(_BATCH):
            loss = _loss(net, rows[chosen], actions[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
    return float(np.mean(losses))


def lessons(
    problem: DecisionProblem,
    next_script: Callable[[np.random.Generator], Script],
    options: TrainingOptions,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Observed rows ``[n, servers, row_size]`` and the baseline's actions there, `options.imitation.steps` of them."""
    env = SimulatedVectorEnv(
        problem, options.environments, next_script, method=options.method, interval_s=options.interval_s,
        episode_steps=options.episode_steps, seed=seed,
    )  # fmt: skip
    generator = np.random.default_rng(seed)
    array, _ = env.reset(seed=seed)
    rows: list[NDArray[np.float32]] = []
    actions: list[NDArray[np.int64] | NDArray[np.float32]] = []
    while len(rows) * options.environments < options.imitation.steps:
        wanted = env.baseline_shares()
        rows.append(array)
        actions.append(problem.action_codec.vectors_of(env.action_for(wanted)))
        wandering = wanted * np.exp(generator.normal(0.0, _WANDERING, wanted.shape))
        array, *_ = env.step(env.action_for(wandering))
    return torch.from_numpy(np.concatenate(rows)), torch.from_numpy(np.concatenate(actions))


def _loss(net: EquivariantNet, rows: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    if net.ratios:
        return torch.nn.functional.cross_entropy(net.logits(rows).flatten(0, 1), actions.flatten())
    mean, _ = net(rows)
    return torch.nn.functional.mse_loss(torch.tanh(mean) if net.squashed else mean, actions)
