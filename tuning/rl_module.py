"""RLlib's view of the policy network: exploration, training and values of `EquivariantNet`."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule

from tuning.model import EquivariantNet, ModelOptions


class EquivariantModule(TorchRLModule, ValueFunctionAPI):
    """Needs `model_config = {"groups": …, **ModelOptions}`; takes 2-D Box observations as they are."""

    def setup(self) -> None:
        config = dict(self.model_config)
        groups = int(config.pop("groups"))
        self.net = EquivariantNet(self.observation_space.shape[-1], groups, ModelOptions(**config))

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401 - RLlib's signature
        mean, log_std = self.net(batch[Columns.OBS])
        return {Columns.ACTION_DIST_INPUTS: torch.cat([mean, log_std], dim=-1)}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> torch.Tensor:  # noqa: ANN401
        return self.net.values(batch[Columns.OBS])
