"""Imitation before reinforcement learning: fits the network to the actions of the inverse-latency baseline.

Plain torch on simulated steps; takes a few seconds. RLlib's BC (`training.algorithm.name=bc`) imitates recorded files.
"""

from __future__ import annotations

import numpy as np
import torch

from envs.environment.problem import DecisionProblem
from envs.environment.rollout import explore_baseline
from envs.environment.vector_env import NextScript
from tuning.options import TrainingOptions
from tuning.policy.model import EquivariantNet

_LEARNING_RATE = 3e-3
_BATCH = 256
_DEVIATION = 0.3
"""Standard deviation of the log weights around the baseline's, so that the rows include the effects of bad weights."""


def imitate(
    net: EquivariantNet,
    problem: DecisionProblem,
    next_script: NextScript,
    options: TrainingOptions,
    seed: int,
) -> float:
    """Fits the network to the baseline's actions and returns the mean loss of the last epoch."""
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
    problem: DecisionProblem, next_script: NextScript, options: TrainingOptions, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Observed rows ``[n, servers, row_size]`` and the baseline's actions on them; n >= `options.imitation.steps`."""
    steps = list(
        explore_baseline(
            problem, next_script, options.environments, options.imitation.steps, deviation=_DEVIATION,
            method=options.method, interval_s=options.interval_s, episode_steps=options.episode_steps, seed=seed,
        )
    )  # fmt: skip
    actions = [problem.action_codec.vectors_of(step.baseline) for step in steps]
    return torch.from_numpy(np.concatenate([step.rows for step in steps])), torch.from_numpy(np.concatenate(actions))


def _loss(net: EquivariantNet, rows: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    if net.ratios:
        return torch.nn.functional.cross_entropy(net.logits(net.encoder(rows)).flatten(0, 1), actions.flatten())
    mean, _ = net(rows)
    return torch.nn.functional.mse_loss(torch.tanh(mean) if net.squashed else mean, actions)
