"""Options → RLlib's PPO configuration, with timeouts derived from the control interval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from tuning.options import AlgorithmOptions, ModelOptions
from tuning.rl_module import EquivariantModule

TIMEOUT_SLACK_S = 60.0


def ppo_config(
    options: AlgorithmOptions,
    model: ModelOptions,
    *,
    environment: str,
    env_config: dict[str, Any],
    groups: int,
    num_envs: int,
    native_vector: bool,
    interval_s: float,
    seed: int,
    load_module: Path | None = None,
) -> PPOConfig:
    """A PPO that samples in the calling process (no env runner of its own: start-up costs 10 s each).

    Args:
        environment: name registered with `ray.tune.register_env`.
        interval_s: real seconds per step, 0 for simulated testbeds; sample timeouts follow from it,
            because RLlib discards late samples in silence.
        load_module: checkpoint folder of an RLModule to start from.
    """
    fragment = max(options.batch_steps // num_envs, 1)
    config = (
        PPOConfig()
        .environment(environment, env_config=env_config)
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=num_envs,
            gym_env_vectorize_mode="vector_entry_point" if native_vector else "sync",
            rollout_fragment_length=fragment,
            sample_timeout_s=fragment * interval_s * 2 + TIMEOUT_SLACK_S,
        )
        .training(
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
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=EquivariantModule,
                model_config={"groups": groups, "net": model.model_dump()},
                load_state_path=None if load_module is None else str(load_module),
            )
        )
        .fault_tolerance(restart_failed_sub_environments=True)
        .debugging(seed=seed, log_level="ERROR")
    )
    return config


def module_path(checkpoint: Path) -> Path:
    """Where RLlib keeps the policy's RLModule inside an Algorithm checkpoint."""
    return checkpoint / "learner_group" / "learner" / "rl_module" / "default_policy"
