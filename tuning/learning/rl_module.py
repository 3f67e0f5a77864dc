"""RLModules of RLlib around `EquivariantNet`: for policy and value (PPO, APPO, BC, MARWIL) and for action values
(SAC, CQL, DQN). They replace RLlib's default networks and keep its losses.
"""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.algorithms.cql.torch.default_cql_torch_rl_module import DefaultCQLTorchRLModule
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from ray.rllib.algorithms.sac.torch.default_sac_torch_rl_module import DefaultSACTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchMultiCategorical, TorchSquashedGaussian
from ray.rllib.core.learner.utils import make_target_network
from ray.rllib.core.models.base import ENCODER_OUT
from ray.rllib.core.rl_module.apis.target_network_api import TARGET_NETWORK_ACTION_DIST_INPUTS, TargetNetworkAPI
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.utils.schedules.scheduler import Scheduler
from torch import nn

from envs.environment.actions import ActionOptions
from tuning.options import ModelOptions
from tuning.policy.model import EquivariantNet, with_pooled


def net_of(module: Any) -> EquivariantNet:
    """Builds the network from the module's `model_config`: `groups`, and the options `net` and `action` as dicts."""
    options = ModelOptions.model_validate(module.model_config["net"])
    action = ActionOptions.model_validate(module.model_config["action"])
    row_size = module.observation_space.shape[-1]
    return EquivariantNet(row_size, int(module.model_config["groups"]), options, action)


def encoded_rows(net: EquivariantNet, batch: dict[str, Any]) -> torch.Tensor:
    """What the policy and the value have in common, ``[..., servers, hidden]``."""
    encoded: torch.Tensor = net.encoder(batch[Columns.OBS].float())  # recorded rows are float64
    return encoded


def distribution_inputs(net: EquivariantNet, encoded: torch.Tensor) -> torch.Tensor:
    """Logits of all groups, concatenated, for ratios; otherwise means and log deviations."""
    return net.logits(encoded).flatten(-2) if net.ratios else torch.cat(net.distribution(encoded), dim=-1)


class EquivariantModule(TorchRLModule, ValueFunctionAPI):
    """Takes 2-D Box observations without flattening; see `net_of` for its configuration."""

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
        return {Columns.ACTION_DIST_INPUTS: distribution_inputs(self.net, encoded_rows(self.net, batch))}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        # RLlib's losses hand the embeddings on to `compute_values`, which saves a second pass, forth and back.
        encoded = encoded_rows(self.net, batch)
        return {Columns.ACTION_DIST_INPUTS: distribution_inputs(self.net, encoded), Columns.EMBEDDINGS: encoded}

    def compute_values(self, batch: dict[str, Any], embeddings: torch.Tensor | None = None) -> torch.Tensor:
        return self.net.values(encoded_rows(self.net, batch) if embeddings is None else embeddings)


class EquivariantTargetModule(EquivariantModule, TargetNetworkAPI):
    """With the target network that APPO compares the policy with."""

    def make_target_networks(self) -> None:
        self._old_net = make_target_network(self.net)

    def get_target_network_pairs(self) -> list[tuple[Any, Any]]:
        return [(self.net, self._old_net)]

    def forward_target(self, batch: dict[str, Any]) -> dict[str, Any]:
        old = self._old_net
        return {TARGET_NETWORK_ACTION_DIST_INPUTS: distribution_inputs(old, encoded_rows(old, batch))}


class _SACNetworks:
    """Builds SAC's networks; encoder and action layers of an `EquivariantNet` form the policy."""

    def setup(self: Any) -> None:
        self.action_dist_cls = TorchSquashedGaussian.get_partial_dist_cls(low=-1.0, high=1.0)
        self.twin_q = self.model_config["twin_q"]
        net = net_of(self)
        self._nets = [net]  # in a list, so that torch does not register its parameters twice
        hidden, groups = self.model_config["net"]["hidden"], net.groups
        row_size = self.observation_space.shape[-1] + groups
        self.pi_encoder = _Encoder(net.encoder)
        self.pi = _Policy(net.action, 2 * hidden, groups, self.model_config["net"]["initial_log_std"])
        for name in ("qf", "qf_twin") if self.twin_q else ("qf",):
            layers = nn.Sequential(nn.Linear(row_size, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh())
            setattr(self, f"{name}_encoder", _Encoder(layers, groups))
            setattr(self, name, _Value(2 * hidden, hidden))

    def policy_net(self: Any) -> EquivariantNet:
        """The network to export; tanh is applied to its mean."""
        net: EquivariantNet = self._nets[0]
        return net


class EquivariantSAC(_SACNetworks, DefaultSACTorchRLModule):
    """SAC; Box actions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Skips the parent's constructor: its catalog does not support 2-D observations.
        TorchRLModule.__init__(self, *args, **{**kwargs, "catalog_class": None})


class EquivariantCQL(_SACNetworks, DefaultCQLTorchRLModule):
    """CQL; Box actions, offline."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        TorchRLModule.__init__(self, *args, **{**kwargs, "catalog_class": None})


class EquivariantDQN(DefaultDQNTorchRLModule):
    """DQN with additive values over groups; joint ratio actions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        TorchRLModule.__init__(self, *args, **{**kwargs, "catalog_class": None})

    def setup(self) -> None:
        self.uses_dueling, self.uses_double_q, self.num_atoms = False, True, 1
        self.epsilon_schedule = Scheduler(
            fixed_value_or_schedule=self.model_config["epsilon"], framework=self.framework
        )
        net = net_of(self)
        self._nets = [net]
        # RLlib excludes actions whose value is exactly 0 from exploration.
        for parameter in net.action[-1].parameters():
            nn.init.normal_(parameter, std=0.01)
        self.encoder, self.af = _Encoder(net.encoder), _JointValues(net)

    def policy_net(self) -> EquivariantNet:
        """The network to export."""
        return self._nets[0]


class _Encoder(nn.Module):
    """Rows (for a Q network with each server's entries of the action appended) → encodings and their mean."""

    def __init__(self, layers: nn.Module, groups: int = 0) -> None:
        super().__init__()
        self.layers, self._groups = layers, groups

    def forward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        rows = batch[Columns.OBS].float()  # recorded rows are float64
        if self._groups:
            action = batch[Columns.ACTIONS].float().unflatten(-1, (self._groups, rows.shape[-2])).transpose(-1, -2)
            rows = torch.cat([rows, action], dim=-1)
        return {ENCODER_OUT: with_pooled(self.layers(rows))}


class _Policy(nn.Module):
    """Encodings → means and log deviations, group by group; here the deviations depend on the state."""

    def __init__(self, mean: nn.Sequential, size: int, groups: int, initial_log_std: float) -> None:
        super().__init__()
        self.mean = mean
        self.log_std = nn.Linear(size, groups)
        nn.init.zeros_(self.log_std.weight)
        nn.init.constant_(self.log_std.bias, initial_log_std)

    def forward(self, encoded: torch.Tensor) -> torch.Tensor:
        means, deviations = self.mean(encoded), self.log_std(encoded).clamp(-5.0, 1.0)
        return torch.cat([means.transpose(-1, -2).flatten(-2), deviations.transpose(-1, -2).flatten(-2)], dim=-1)


class _Value(nn.Module):
    """Encodings → one value, computed from their mean over servers."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(size, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    def forward(self, encoded: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.layers(encoded.mean(dim=-2))
        return value


class _JointValues(nn.Module):
    """Encodings → one value per combination of the groups' ratio vectors: the sum of the groups' values.

    The best combination therefore consists of the best vector of every group, which the exported network chooses.
    """

    def __init__(self, net: EquivariantNet) -> None:
        super().__init__()
        self.action = net.action
        self._net = [net]

    def forward(self, encoded: torch.Tensor) -> torch.Tensor:
        parts = self._net[0].vector_scores(self.action(encoded))
        total = parts[..., 0, :]
        for group in range(1, parts.shape[-2]):
            total = (total[..., :, None] + parts[..., group, None, :]).flatten(-2)
        return total
