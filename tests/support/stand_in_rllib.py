"""A stand-in for RLlib's algorithms: configured by the real options, it takes one step in place of all, and learns
nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.tune.registry import ENV_CREATOR, _global_registry

from envs.environment.actions import ActionOptions
from tuning.options import ModelOptions
from tuning.policy.model import EquivariantNet

STEPS_PER_ITERATION = 500


class _StandIn:
    """As much of `ray.rllib.algorithms.Algorithm` as our trainings use."""

    def __init__(self, config: AlgorithmConfig) -> None:
        self.config = config
        spec: Any = config.rl_module_spec
        options = ModelOptions.model_validate(spec.model_config["net"])
        action = ActionOptions.model_validate(spec.model_config["action"])
        self._env = None if "leaser" in config.env_config else _environment(config)
        space = config.env_config["problem"].observation_space if self._env is None else self._env.observation_space
        module = _Module(EquivariantNet(space.shape[-1], spec.model_config["groups"], options, action))
        learner = SimpleNamespace(module={"default_policy": module})
        self.learner_group = SimpleNamespace(foreach_learner=lambda call: [_Result(call(learner))], _learner=learner)
        self.env_runner_group = SimpleNamespace(sync_weights=lambda **arguments: None)
        self.get_module: Callable[[], _Module] = lambda: module
        self.local_replay_buffer = SimpleNamespace(get_state=dict)
        self._steps = 0

    def train(self) -> dict[str, Any]:
        if self._steps == 0 and self._env is not None and self.config.input_ == "sampler":
            self._env.reset(seed=1)
            self._env.step(self._env.action_space.sample())
        self._steps += STEPS_PER_ITERATION
        return {"num_env_steps_sampled_lifetime": self._steps}

    def save_to_path(self, path: str) -> None:
        Path(path).mkdir(parents=True, exist_ok=True)

    def restore_from_path(self, path: str) -> None:
        assert Path(path).is_dir()

    def stop(self) -> None:
        pass


def _environment(config: AlgorithmConfig) -> Any:
    make = _global_registry.get(ENV_CREATOR, config.env)
    return make({**config.env_config, "num_envs": config.num_envs_per_env_runner})


class _Result:
    def __init__(self, value: Any) -> None:
        self._value = value

    def get(self) -> Any:
        return self._value


class _Module:
    def __init__(self, net: EquivariantNet) -> None:
        self._net = net

    def unwrapped(self) -> _Module:
        return self

    def policy_net(self) -> EquivariantNet:
        return self._net


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every algorithm that is built from now on is a stand-in."""

    def build(config: AlgorithmConfig) -> _StandIn:
        return _StandIn(config)

    monkeypatch.setattr(AlgorithmConfig, "build_algo", build)
