"""Trains a small network that is shared by all types of requests with PPO, and keeps the best one on the way: what
learned admission and learned late binding have in common (`envs.environment.windowed_env`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.tune.registry import register_env

from actuators.contract.arrays import FloatArray
from envs.environment.actions import ActionOptions
from envs.environment.windowed_env import WindowedVectorEnv
from tuning.learning.algorithm import Setting, algorithm_config
from tuning.learning.curve import CurveRow, row_of
from tuning.learning.scoring import Best
from tuning.learning.trainer import read_net
from tuning.options import AlgorithmOptions, ModelOptions
from tuning.policy.model import EquivariantNet

ENVIRONMENTS, EPISODE_STEPS = 64, 99
_MODEL = ModelOptions(hidden=16, initial_log_std=-1.4)
_ALGORITHM = AlgorithmOptions(
    learning_rate=2e-3, discount=0.95, gae_lambda=0.9, epochs=4, batch_steps=ENVIRONMENTS * EPISODE_STEPS,
    minibatch_steps=1056,
)  # fmt: skip


@dataclass(frozen=True)
class WindowedTraining:
    """How long is trained, and on how many episodes it is judged.

    Attributes:
        iterations: of 64 episodes each.
        look_every: iterations between two plays of the `look_episodes`; the best network on them is kept.
        proof_episodes: shared equally by the kinds of episodes.
    """

    iterations: int = 50
    look_every: int = 10
    look_episodes: int = 96
    proof_episodes: int = 1600
    threads: int = 1


class NetPolicy:
    """A network without exploration."""

    def __init__(self, net: EquivariantNet) -> None:
        self._net = net

    def actions(self, rows: NDArray[np.float32]) -> FloatArray:
        """Rows ``[n, types, row]`` → actions ``[n, outputs * types]``, one output of all types after the other."""
        outputs = self._net.outputs(rows).astype(np.float64)
        return outputs.swapaxes(-1, -2).reshape(len(rows), -1)


def untrained_net(row: int, outputs: int, seed: int = 0) -> EquivariantNet:
    """A network for rows of this size whose actions are all 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return EquivariantNet(row, outputs, _MODEL)


def train_net(
    net: EquivariantNet, name: str, make: Callable[..., WindowedVectorEnv], env_config: dict[str, Any],
    score: Callable[[EquivariantNet], float], training: WindowedTraining, seed: int,
    report: Callable[[CurveRow], None] = lambda row: None,
) -> EquivariantNet:  # fmt: skip
    """The best network of a training.

    Args:
        net: an untrained one, which becomes it.
        name: under which the environment is known to RLlib.
        make: the environment from `env_config` and `num_envs`, `seed`, `episode_steps` and `threads`.
        score: the larger, the better.
    """
    register_env(name, lambda context: make(**context))
    config = {**env_config, "seed": seed, "episode_steps": EPISODE_STEPS, "threads": training.threads}
    setting = Setting(
        environment=name, env_config=config, groups=net.groups, num_envs=ENVIRONMENTS, native_vector=True,
        interval_s=0.0, seed=seed, action=ActionOptions(),
    )  # fmt: skip
    # The network is tiny: a second thread does not help, and on a busy machine it is ten times slower.
    torch.set_num_threads(1)
    algo = algorithm_config(_ALGORITHM, _MODEL, setting).build_algo()
    try:
        return _best(algo, net, score, training, report)
    finally:
        algo.stop()


def _best(
    algo: Algorithm, net: EquivariantNet, score: Callable[[EquivariantNet], float], training: WindowedTraining,
    report: Callable[[CurveRow], None],
) -> EquivariantNet:  # fmt: skip
    best, last = Best(), np.nan
    for number in range(training.iterations + 1):
        if number % training.look_every == 0:
            last = score(read_net(algo, net))
            best.offer(last, net)
        if number < training.iterations:
            result = algo.train()
            report(row_of("simulated", int(result["num_env_steps_sampled_lifetime"]), result, last))
    net.load_state_dict(best.state)
    return net
