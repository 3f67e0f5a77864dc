"""Options → RLlib's configuration of the algorithm, with timeouts derived from the control interval.

RLlib's CQL learner with a count of gradient steps that outlives a training iteration.

RLlib 2.60 keeps what `bc_iters` is compared with as a metric that starts again in every iteration of 20 gradient
steps: with more to imitate than that, its CQL imitates for ever and never heeds a value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.bc import BCConfig
from ray.rllib.algorithms.cql import CQLConfig
from ray.rllib.algorithms.cql.torch.cql_torch_learner import CQLTorchLearner
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.marwil import MARWILConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.metrics import ALL_MODULES
from ray.tune.result import TRAINING_ITERATION

from actuators.errors import ConfigError
from envs.environment.actions import ActionOptions
from envs.environment.problem import DecisionProblem
from tuning.learning.curve import LedgerCallback
from tuning.learning.env_runner import ArrayEnvRunner
from tuning.learning.recordings import RecordedData
from tuning.learning.rl_module import (
    EquivariantCQL,
    EquivariantDQN,
    EquivariantModule,
    EquivariantSAC,
    EquivariantTargetModule,
)
from tuning.options import AlgorithmName, AlgorithmOptions, ModelOptions


class ConservativeLearner(CQLTorchLearner):
    """Imitates for `bc_iters` gradient steps, in however many iterations, and then heeds values."""

    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        super().before_gradient_based_update(timesteps=timesteps)
        # The number of updates is in the learner's checkpoints, too.
        done = self._weights_seq_no * self.config.dataset_num_iters_per_learner
        self.metrics.log_value((ALL_MODULES, TRAINING_ITERATION), done, reduce="sum")


TIMEOUT_SLACK_S = 60.0
REPLAY_BATCH = 256


@dataclass(frozen=True)
class Setting:
    """Where an algorithm learns.

    Attributes:
        environment: name registered with `ray.tune.register_env`; env_config goes with it.
        interval_s: real seconds per step, 0 for simulated testbeds; sample timeouts follow from it,
            because RLlib discards late samples in silence.
        load_module: checkpoint folder of an RLModule to start from.
        problem: what is decided; offline algorithms need it, for they look at no environment.
    """

    environment: str
    env_config: dict[str, Any]
    groups: int
    num_envs: int
    native_vector: bool
    interval_s: float
    seed: int
    action: ActionOptions
    load_module: Path | None = None
    problem: DecisionProblem | None = None


def check(options: AlgorithmOptions, action: ActionOptions) -> None:
    """Raises ConfigError when the algorithm cannot take this action kind or lacks its records."""
    box, joint = action.kind != "ratios", action.kind == "ratios" and action.joint
    if options.name == "dqn" and not joint:
        raise ConfigError(
            "dqn needs joint ratio actions",
            where="training.algorithm.name",
            remedy="set decision.action.kind=ratios and decision.action.joint=true",
        )
    if options.name in ("sac", "cql") and not box:
        raise ConfigError(
            f"{options.name} cannot choose among ratios",
            where="decision.action.kind",
            remedy="use residual, continuous or increments, or another algorithm",
        )
    if joint and options.name != "dqn":
        raise ConfigError(
            f"{options.name} does not take joint ratios", where="decision.action.joint", remedy="only dqn needs them"
        )
    if options.offline and options.transitions is None:
        raise ConfigError(
            f"{options.name} needs recorded transitions",
            where="training.algorithm.transitions",
            remedy="give a folder that tuning.learning.recordings wrote",
        )


def algorithm_config(options: AlgorithmOptions, model: ModelOptions, setting: Setting) -> AlgorithmConfig:
    """An algorithm that samples in the calling process (no env runner of its own: start-up costs 10 s each).

    Raises ConfigError as `check` does.
    """
    check(options, setting.action)
    make, module = _BUILDERS[options.name]
    fragment = max(options.batch_steps // setting.num_envs, 1)
    config = (
        make(options)
        .environment(setting.environment, env_config=setting.env_config)
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=setting.num_envs,
            gym_env_vectorize_mode="vector_entry_point" if setting.native_vector else "sync",
            sample_timeout_s=fragment * setting.interval_s * 2 + TIMEOUT_SLACK_S,
        )
        .callbacks(LedgerCallback)
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=module,
                model_config={
                    "groups": setting.groups,
                    "net": model.model_dump(),
                    "action": setting.action.model_dump(),
                    **_auto_includes(config_class=make(options)),
                },
                load_state_path=None if setting.load_module is None else str(setting.load_module),
            )
        )
        .fault_tolerance(restart_failed_sub_environments=True)
        .debugging(seed=setting.seed, log_level="ERROR")
    )
    if options.name in ("ppo", "appo"):
        config.env_runners(rollout_fragment_length=fragment)
        if setting.native_vector and options.array_runner:
            config.env_runners(env_runner_cls=ArrayEnvRunner)
    if options.offline and setting.problem is not None:
        spaces = {"observation_space": setting.problem.observation_space, "action_space": setting.problem.action_space}
        config.environment(**spaces)
    return config


def module_path(checkpoint: Path) -> Path:
    """Where RLlib keeps the policy's RLModule inside an Algorithm checkpoint."""
    return checkpoint / "learner_group" / "learner" / "rl_module" / "default_policy"


def _auto_includes(config_class: Any) -> dict[str, Any]:
    # A model_config of our own takes the place of what RLlib would tell its default modules.
    return dict(config_class._model_config_auto_includes)


def _ppo(options: AlgorithmOptions) -> AlgorithmConfig:
    return PPOConfig().training(
        lr=options.learning_rate,
        gamma=options.discount,
        lambda_=options.gae_lambda,
        clip_param=options.clip,
        entropy_coeff=options.entropy_coefficient,
        num_epochs=options.epochs,
        minibatch_size=min(options.minibatch_steps, options.batch_steps),
        train_batch_size_per_learner=options.batch_steps,
        grad_clip=1.0,
        use_kl_loss=False,
    )


def _appo(options: AlgorithmOptions) -> AlgorithmConfig:
    return (
        APPOConfig()
        .env_runners(use_env_runner_state_server=False)
        .training(
            lr=options.learning_rate,
            gamma=options.discount,
            lambda_=options.gae_lambda,
            clip_param=options.clip,
            entropy_coeff=options.entropy_coefficient,
            train_batch_size_per_learner=options.batch_steps,
            grad_clip=1.0,
            use_kl_loss=False,
        )
    )


def _sac(options: AlgorithmOptions) -> AlgorithmConfig:
    return SACConfig().training(
        **_three_rates(options),
        gamma=options.discount,
        **_replay(options),
        replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": options.replay_steps},
    )


def _dqn(options: AlgorithmOptions) -> AlgorithmConfig:
    return DQNConfig().training(
        lr=options.learning_rate,
        gamma=options.discount,
        double_q=True,
        dueling=False,
        epsilon=[(0, 1.0), (options.exploring_steps, 0.05)],
        target_network_update_freq=500,
        **_replay(options),
        replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": options.replay_steps},
    )


def _replay(options: AlgorithmOptions) -> dict[str, Any]:
    return {
        "train_batch_size_per_learner": REPLAY_BATCH,
        "training_intensity": REPLAY_BATCH * options.updates_per_step,
        "num_steps_sampled_before_learning_starts": options.learning_starts_steps,
    }


def _three_rates(options: AlgorithmOptions) -> dict[str, Any]:
    rate = options.learning_rate
    return {"lr": None, "actor_lr": rate, "critic_lr": rate, "alpha_lr": rate}


def _bc(options: AlgorithmOptions) -> AlgorithmConfig:
    return _recorded(BCConfig(), options).training(lr=options.learning_rate)


def _marwil(options: AlgorithmOptions) -> AlgorithmConfig:
    config = _recorded(MARWILConfig(), options).training(lr=options.learning_rate, gamma=options.discount)
    config.lambda_ = options.gae_lambda  # MARWIL's own, but no argument of its `training`
    # RLlib's own start (100, as good as never updated) makes every advantage 0 for rewards of our size: plain BC.
    return config.training(
        beta=options.advantage_exponent,
        moving_average_sqd_adv_norm_start=1.0,
        moving_average_sqd_adv_norm_update_rate=0.01,
    )


def _cql(options: AlgorithmOptions) -> AlgorithmConfig:
    config = _recorded(CQLConfig(), options).training(**_three_rates(options), gamma=options.discount)
    # RLlib's own 20 000 gradient steps of imitation would be all that our trainings do. It moves the target networks
    # once per iteration of offline training instead of after every gradient step.
    return (
        config.training(
            bc_iters=options.imitated_updates,
            min_q_weight=options.conservatism,
            tau=1.0 - (1.0 - _TARGET_STEP) ** UPDATES_PER_ITERATION,
        )
        .learners(learner_class=ConservativeLearner)
        .reporting(min_time_s_per_iteration=None, min_train_timesteps_per_iteration=0)
    )


def _recorded(config: Any, options: AlgorithmOptions) -> Any:
    return config.training(train_batch_size_per_learner=options.batch_steps).offline_data(
        input_=[str(options.transitions)],
        offline_data_class=RecordedData,
        dataset_num_iters_per_learner=UPDATES_PER_ITERATION,
    )


UPDATES_PER_ITERATION = 20
"""Offline algorithms: gradient steps per training iteration."""
_TARGET_STEP = 5e-3
"""CQL: part of the way that its target networks go after the others in a gradient step; RLlib's own for SAC."""

_BUILDERS: dict[AlgorithmName, tuple[Callable[[AlgorithmOptions], Any], type]] = {
    "ppo": (_ppo, EquivariantModule),
    "appo": (_appo, EquivariantTargetModule),
    "sac": (_sac, EquivariantSAC),
    "dqn": (_dqn, EquivariantDQN),
    "bc": (_bc, EquivariantModule),
    "marwil": (_marwil, EquivariantModule),
    "cql": (_cql, EquivariantCQL),
}
