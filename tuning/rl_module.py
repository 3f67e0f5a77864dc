"""RLlib's views of the policy network for algorithms that learn a policy and a value: PPO, APPO, BC, MARWIL."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchMultiCategorical
from ray.rllib.core.learner.utils import make_target_network
from ray.rllib.core.rl_module.apis.target_network_api import TARGET_NETWORK_ACTION_DIST_INPUTS, TargetNetworkAPI
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule

from envs.actions import ActionOptions
from tuning.model import EquivariantNet
from tuning.options import ModelOptions


def net_of(module: Any) -> EquivariantNet:
    """The network that `model_config` describes: `groups`, and the options `net` and `action` as dicts."""
    options = ModelOptions.model_validate(module.model_config["net"])
    action = ActionOptions.model_validate(module.model_config["action"])
    row_size = module.observation_space.shape[-1]
    return EquivariantNet(row_size, int(module.model_config["groups"]), options, action)


def distribution_inputs(net: EquivariantNet, rows: torch.Tensor) -> torch.Tensor:
    """Logits of all groups side by side for ratios, else means and log deviations."""
    rows = rows.float()  # records come as doubles
    return net.logits(rows).flatten(-2) if net.ratios else torch.cat(net(rows), dim=-1)


class EquivariantModule(TorchRLModule, ValueFunctionAPI):
    """Takes 2-D Box observations as they are; see `net_of` for its configuration."""

    def setup(self) -> None:
        self.net = net_of(self)
        if self.net.ratios:
            self.action_dist_cls = TorchMultiCategorical.get_partial_dist_cls(
                space=self.action_space, input_lens=list(self.action_space.nvec)
            )

    def policy_net(self) -> EquivariantNet:
        """The network to export."""
        return self.net

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: distribution_inputs(self.net, batch[Columns.OBS])}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> torch.Tensor:
        return self.net.values(batch[Columns.OBS].float())


class EquivariantTargetModule(EquivariantModule, TargetNetworkAPI):
    """With the slowly following copy that APPO compares the policy with."""

    def make_target_networks(self) -> None:
        self._old_net = make_target_network(self.net)

    def get_target_network_pairs(self) -> list[tuple[Any, Any]]:
        return [(self.net, self._old_net)]

    def forward_target(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {TARGET_NETWORK_ACTION_DIST_INPUTS: distribution_inputs(self._old_net, batch[Columns.OBS])}
