"""RLlib's view of the policy network: exploration, training and values of `EquivariantNet`."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule

from tuning.model import EquivariantNet
from tuning.options import ModelOptions


class EquivariantModule(TorchRLModule, ValueFunctionAPI):
    """Needs `model_config = {"groups": …, "net": ModelOptions as a dict}`; takes 2-D Box observations as they are."""

    def setup(self) -> None:
        options = ModelOptions.model_validate(self.model_config["net"])
        self.net = EquivariantNet(self.observation_space.shape[-1], int(self.model_config["groups"]), options)

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        mean, log_std = self.net(batch[Columns.OBS])
        return {Columns.ACTION_DIST_INPUTS: torch.cat([mean, log_std], dim=-1)}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> torch.Tensor:
        return self.net.values(batch[Columns.OBS])
