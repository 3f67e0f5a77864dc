"""A stand-in for RLlib's algorithms: configured by the real options, it steps nothing and learns nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from envs.environment.problem import DecisionProblem
from tuning.options import ModelOptions
from tuning.policy.learned import net_for
from tuning.policy.model import EquivariantNet

STEPS_PER_ITERATION = 500


class _StandIn:
    """As much of `ray.rllib.algorithms.Algorithm` as our trainings use."""

    def __init__(self, config: AlgorithmConfig) -> None:
        self.config = config
        problem: DecisionProblem = config.env_config["problem"]
        spec: Any = config.rl_module_spec
        net = net_for(problem, ModelOptions.model_validate(spec.model_config["net"]))
        module = _Module(net)
        learner = SimpleNamespace(module={"default_policy": module})
        self.learner_group = SimpleNamespace(foreach_learner=lambda call: [_Result(call(learner))], _learner=learner)
        self.env_runner_group = SimpleNamespace(sync_weights=lambda **arguments: None)
        self.get_module: Callable[[], _Module] = lambda: module
        self._steps = 0

    def train(self) -> dict[str, Any]:
        self._steps += STEPS_PER_ITERATION
        return {"num_env_steps_sampled_lifetime": self._steps}

    def save_to_path(self, path: str) -> None:
        Path(path).mkdir(parents=True, exist_ok=True)

    def restore_from_path(self, path: str) -> None:
        assert Path(path).is_dir()

    def stop(self) -> None:
        pass


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
