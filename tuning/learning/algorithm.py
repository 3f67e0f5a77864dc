"""Options → RLlib's configuration of the algorithm, with timeouts derived from the control interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
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

from actuators.errors import CapacityError, ConfigError
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
from tuning.learning.stall import WatchedAPPO, WatchedDQN, WatchedPPO, WatchedSAC
from tuning.options import ON_POLICY, AlgorithmName, AlgorithmOptions, ModelOptions, RunnerOptions


class ConservativeLearner(CQLTorchLearner):
    """CQL that imitates for `bc_iters` gradient steps, counted over all training iterations.

    RLlib 2.60 compares `bc_iters` with a metric that restarts from 0 in every iteration of 20 gradient steps: with
    more steps to imitate than that, its CQL never stops imitating.
    """

    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        super().before_gradient_based_update(timesteps=timesteps)
        # Checkpoints of the learner contain the number of updates.
        done = self._weights_seq_no * self.config.dataset_num_iters_per_learner
        self.metrics.log_value((ALL_MODULES, TRAINING_ITERATION), done, reduce="sum")


TIMEOUT_SLACK_S = 60.0
SIMULATED_SECOND_S = 0.5
"""Real seconds that an env runner may take for a simulated second of one testbed: some hundred times the usual, for
large systems, busy machines and the compilation of the simulator on a new node."""
REPLAY_BATCH = 256
BATCH_TOLERANCE = 0.1
"""How far RLlib lets a collected batch differ from the wanted one."""


@dataclass(frozen=True)
class Setting:
    """The environment that an algorithm learns in, and its network's starting point.

    Attributes:
        environment: name registered with `ray.tune.register_env`.
        env_config: configuration of that environment.
        interval_s: real seconds per step, 0 for simulated testbeds; the sample timeout is derived from it,
            because RLlib silently discards late samples.
        simulated_s: simulated seconds per step, 0 for live testbeds; the sample timeout is derived from it, too.
        load_module: checkpoint folder of an RLModule to start from.
        runners: further processes; with env runners each has `num_envs` environments.
        problem: the decision problem; offline algorithms take their spaces from it, as they have no environment.
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
    runners: RunnerOptions = field(default_factory=RunnerOptions)
    simulated_s: float = 0.0

    @property
    def environments(self) -> int:
        """Of all env runners together."""
        return self.num_envs * max(self.runners.num_env_runners, 1)

    @property
    def step_limit_s(self) -> float:
        """Real seconds that a step of all environments of an env runner may take."""
        return 2 * self.interval_s + self.num_envs * self.simulated_s * SIMULATED_SECOND_S


def rllib_seed(seed: int, env_runners: int) -> int:
    """The run's seed; with env runners a seed derived from it. RLlib adds the index of each env runner: without the
    derivation, runner 2 of seed 1 and runner 1 of seed 2 would play the same episodes."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0]) >> 1 if env_runners else seed


def check(options: AlgorithmOptions, action: ActionOptions) -> None:
    """Raises ConfigError when the algorithm does not support this action kind or has no recorded transitions."""
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
            remedy="give a folder written by tuning.learning.recordings",
        )


def algorithm_config(options: AlgorithmOptions, model: ModelOptions, setting: Setting) -> AlgorithmConfig:
    """Configuration of an algorithm; by default it samples in the calling process, as an env runner starts in 10 s.

    Raises:
        ConfigError: see `check`; or the batches are no multiples of the environments.
    """
    check(options, setting.action)
    make, module = _BUILDERS[options.name]
    runners = setting.runners
    fragment = max(options.batch_steps // setting.environments, 1)
    if options.name in ON_POLICY and abs(fragment * setting.environments / options.batch_steps - 1) > BATCH_TOLERANCE:
        raise ConfigError(
            f"{setting.environments} environments cannot collect a batch of {options.batch_steps} steps in whole steps",
            where="training.algorithm.batch_steps",
            remedy="set a multiple of training.environments",
        )
    config = (
        make(options)
        .environment(setting.environment, env_config=setting.env_config)
        .env_runners(
            num_env_runners=runners.num_env_runners,
            num_cpus_per_env_runner=runners.num_cpus_per_env_runner,
            num_envs_per_env_runner=setting.num_envs,
            gym_env_vectorize_mode="vector_entry_point" if setting.native_vector else "sync",
            sample_timeout_s=fragment * setting.step_limit_s + TIMEOUT_SLACK_S,
        )
        .learners(num_learners=runners.num_learners, num_gpus_per_learner=runners.num_gpus_per_learner)
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
        .debugging(seed=rllib_seed(setting.seed, runners.num_env_runners), log_level="ERROR")
    )
    if options.name in ("ppo", "appo"):
        config.env_runners(rollout_fragment_length=fragment)
        if setting.native_vector and options.array_runner:
            config.env_runners(env_runner_cls=ArrayEnvRunner)
    if options.offline and setting.problem is not None:
        spaces = {"observation_space": setting.problem.observation_space, "action_space": setting.problem.action_space}
        config.environment(**spaces)
    return config


def check_room(runners: RunnerOptions, where: str = "training.runners") -> None:
    """Raises CapacityError when the cluster cannot start these processes at once: RLlib would wait for ever."""
    cpus = runners.num_env_runners * runners.num_cpus_per_env_runner + runners.num_learners
    gpus = max(runners.num_learners, 1) * runners.num_gpus_per_learner
    for name, needed in (("CPU", cpus), ("GPU", gpus)):
        if needed and needed > (there := ray.cluster_resources().get(name, 0.0)):
            raise CapacityError(
                f"env runners and learners need {needed:g} {name}s, the cluster has {there:g}",
                where=where,
                remedy="ask for fewer of them, or add nodes",
            )


def module_path(checkpoint: Path) -> Path:
    """Folder of the policy's RLModule inside a checkpoint of an Algorithm."""
    return checkpoint / "learner_group" / "learner" / "rl_module" / "default_policy"


def _ppo(options: AlgorithmOptions) -> AlgorithmConfig:
    return PPOConfig(WatchedPPO).training(
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
        APPOConfig(WatchedAPPO)
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
    return SACConfig(WatchedSAC).training(
        **_three_rates(options),
        gamma=options.discount,
        **_replay(options),
        replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": options.replay_steps},
    )


def _dqn(options: AlgorithmOptions) -> AlgorithmConfig:
    return DQNConfig(WatchedDQN).training(
        lr=options.learning_rate,
        gamma=options.discount,
        double_q=True,
        dueling=False,
        epsilon=[(0, 1.0), (options.exploring_steps, 0.05)],
        target_network_update_freq=500,
        **_replay(options),
        replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": options.replay_steps},
    )


def _bc(options: AlgorithmOptions) -> AlgorithmConfig:
    return _recorded(BCConfig(), options).training(lr=options.learning_rate)


def _marwil(options: AlgorithmOptions) -> AlgorithmConfig:
    config = _recorded(MARWILConfig(), options).training(lr=options.learning_rate, gamma=options.discount)
    config.lambda_ = options.gae_lambda  # not an argument of MARWIL's `training`
    # RLlib's default (100, updated very slowly) scales advantages of our rewards to almost 0: that is plain BC.
    return config.training(
        beta=options.advantage_exponent,
        moving_average_sqd_adv_norm_start=1.0,
        moving_average_sqd_adv_norm_update_rate=0.01,
    )


def _cql(options: AlgorithmOptions) -> AlgorithmConfig:
    config = _recorded(CQLConfig(), options).training(**_three_rates(options), gamma=options.discount)
    # RLlib's default of 20 000 imitated gradient steps exceeds a whole training here. RLlib updates the target networks
    # once per offline training iteration instead of after every gradient step, so tau covers a whole iteration.
    return (
        config.training(
            bc_iters=options.imitated_updates,
            min_q_weight=options.conservatism,
            tau=1.0 - (1.0 - _TARGET_STEP) ** UPDATES_PER_ITERATION,
        )
        .learners(learner_class=ConservativeLearner)
        .reporting(min_time_s_per_iteration=None, min_train_timesteps_per_iteration=0)
    )


UPDATES_PER_ITERATION = 20
"""Offline algorithms: gradient steps per training iteration."""
_TARGET_STEP = 5e-3
"""CQL: share of the difference that a target network moves per gradient step; RLlib's default of SAC."""

_BUILDERS: dict[AlgorithmName, tuple[Callable[[AlgorithmOptions], Any], type]] = {
    "ppo": (_ppo, EquivariantModule),
    "appo": (_appo, EquivariantTargetModule),
    "sac": (_sac, EquivariantSAC),
    "dqn": (_dqn, EquivariantDQN),
    "bc": (_bc, EquivariantModule),
    "marwil": (_marwil, EquivariantModule),
    "cql": (_cql, EquivariantCQL),
}


def _auto_includes(config_class: Any) -> dict[str, Any]:
    # A custom model_config replaces the entries that RLlib passes to its default modules.
    return dict(config_class._model_config_auto_includes)


def _replay(options: AlgorithmOptions) -> dict[str, Any]:
    return {
        "train_batch_size_per_learner": REPLAY_BATCH,
        "training_intensity": REPLAY_BATCH * options.updates_per_step,
        "num_steps_sampled_before_learning_starts": options.learning_starts_steps,
    }


def _three_rates(options: AlgorithmOptions) -> dict[str, Any]:
    rate = options.learning_rate
    return {"lr": None, "actor_lr": rate, "critic_lr": rate, "alpha_lr": rate}


def _recorded(config: Any, options: AlgorithmOptions) -> Any:
    return config.training(train_batch_size_per_learner=options.batch_steps).offline_data(
        input_=[str(options.transitions)],
        offline_data_class=RecordedData,
        dataset_num_iters_per_learner=UPDATES_PER_ITERATION,
    )
