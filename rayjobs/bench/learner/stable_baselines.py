"""PPO and SAC of Stable-Baselines3 on the same vector environment, episodes and hyperparameters as RLlib's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from actuators.contract.topology import Topology
from actuators.errors import MissingToolError
from envs.environment.problem import DecisionProblem
from envs.environment.vector_env import SimulatedVectorEnv
from envs.observation.observer import Observation
from envs.scenarios.lookup import training_mixture
from envs.study.rules import Rule, policy_steering
from tuning.learning.scripts import ScriptSource
from tuning.learning.study import TrainingArm, study_problem
from tuning.options import AlgorithmOptions

ENVIRONMENTS, EPISODE_STEPS = 24, 100
_REPLAY_BATCH = 256


def trained(arm: TrainingArm, topology: Topology, seed: int) -> Rule:
    """The arm, trained by the algorithm of that name with its default network. Raises MissingToolError."""
    try:
        import stable_baselines3

        from rayjobs.bench.learner.shared_env import SharedEnv
    except ImportError as error:
        what = "stable-baselines3 is not installed"
        raise MissingToolError(what, where="bench learner", remedy="pip install stable-baselines3") from error
    import torch

    torch.set_num_threads(1)
    problem = study_problem(arm, topology, seed)
    source = ScriptSource(training_mixture(arm.scenarios, duration_s=EPISODE_STEPS + 10.0), topology)
    vector = SimulatedVectorEnv(
        problem, ENVIRONMENTS, source, method=arm.method, episode_steps=EPISODE_STEPS, seed=seed,
        simulation=arm.simulation, flat=True, autoreset_mode=AutoresetMode.SAME_STEP,
    )  # fmt: skip
    kind = {"ppo": stable_baselines3.PPO, "sac": stable_baselines3.SAC}[arm.algorithm.name]
    model: Any = kind("MlpPolicy", SharedEnv(vector), seed=seed, device="cpu", **_settings(arm.algorithm))
    model.learn(arm.steps)
    policy = _Policy(model, problem)
    return Rule(arm.name, arm.method, lambda: policy_steering(policy, problem), arm.simulation)


def _settings(options: AlgorithmOptions) -> dict[str, Any]:
    """The hyperparameters of our options by the names of Stable-Baselines3."""
    own = {"learning_rate": options.learning_rate, "gamma": options.discount}
    if options.name == "sac":
        steps = max(round(options.updates_per_step * ENVIRONMENTS), 1)
        return {**own, "batch_size": _REPLAY_BATCH, "learning_starts": options.learning_starts_steps, "train_freq": 1,
                "gradient_steps": steps, "buffer_size": options.replay_steps}  # fmt: skip
    return {
        **own, "n_steps": options.batch_steps // ENVIRONMENTS, "batch_size": options.minibatch_steps,
        "n_epochs": options.epochs, "gae_lambda": options.gae_lambda, "clip_range": options.clip,
        "ent_coef": options.entropy_coefficient, "max_grad_norm": 1.0, "policy_kwargs": {"log_std_init": -1.0},
    }  # fmt: skip


class _Policy:
    """A model as the simulated testbeds are steered by; without exploration."""

    def __init__(self, model: Any, problem: DecisionProblem) -> None:
        self._model, self._problem = model, problem

    def weights(self, observation: Observation) -> NDArray[np.int64]:
        return self._problem.weights(self._action(observation), observation)

    def service_times(self, observation: Observation) -> NDArray[np.float64]:
        return self._problem.service_times(self._action(observation), observation)

    def _action(self, observation: Observation) -> NDArray[Any]:
        rows = self._problem.array(observation)
        leading: Sequence[int] = rows.shape[:-2]
        flat = rows.reshape(-1, rows.shape[-2] * rows.shape[-1])
        action: NDArray[Any] = self._model.predict(flat, deterministic=True)[0]
        return action.reshape(*leading, -1)
