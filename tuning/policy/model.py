"""The policy network: all servers share one encoder, so it takes any number of servers in any order.

Plain torch, for learning; `tuning.learning.rl_module` wraps it for RLlib. `tuning.policy.network.ArrayNet` acts with
its parameters where there is no torch. Source: Deep Sets (Zaheer et al., 2017), permuting the
servers permutes the outputs.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from envs.environment.actions import ActionOptions, ratio_levels
from envs.environment.problem import DecisionProblem
from tuning.options import ModelOptions
from tuning.policy.network import Network


class EquivariantNet(nn.Module):
    """Rows of servers → distribution of the action, and state value.

    Args:
        row_size: number of features per server.
        groups: number of groups; outputs per server (times the number of ratio levels).
        options: size of the layers and initial deviation.
        action: kind of the action; `ratios` gives logits, the others a mean and a log deviation.
    """

    def __init__(self, row_size: int, groups: int, options: ModelOptions, action: ActionOptions | None = None) -> None:
        super().__init__()
        hidden = options.hidden
        kind = action or ActionOptions()
        self.groups, self.squashed = groups, options.squashed
        self.ratios = kind.ratios if kind.kind == "ratios" else ()
        self.encoder = nn.Sequential(nn.Linear(row_size, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh())
        outputs = groups * max(len(self.ratios), 1)
        self.action = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.Tanh(), nn.Linear(hidden, outputs))
        self.value = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 1))
        self.log_std = nn.Parameter(torch.full((groups,), options.initial_log_std))
        # A residual policy starts at its baseline: every mean is exactly 0.
        last = self.action[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``[..., servers, row_size]`` → means and log deviations, each ``[..., groups * servers]``."""
        return self.distribution(self.encoder(rows))

    def distribution(self, encoded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`forward` of what the encoder has made of the rows, ``[..., servers, hidden]``."""
        mean = self._outputs(encoded).transpose(-1, -2)
        log_std = self.log_std[:, None].expand_as(mean)
        return mean.flatten(-2), log_std.flatten(-2)

    def logits(self, encoded: torch.Tensor) -> torch.Tensor:
        """Encoded rows ``[..., servers, hidden]`` → ``[..., groups, vectors]``, one logit per ratio vector.

        A vector's logit is the sum over the servers of the score of the level that it assigns to the server. Permuting
        the servers therefore permutes the logits in the same way.
        """
        return self.vector_scores(self._outputs(encoded))

    def vector_scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """``[..., servers, groups * levels]`` scores → ``[..., groups, vectors]``."""
        scores = outputs.unflatten(-1, (self.groups, len(self.ratios)))
        return torch.einsum("...sgl,vsl->...gv", scores, _one_hot_levels(self.ratios, outputs.shape[-2]))

    def outputs(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs of the last layer without exploration (`tuning.policy.network.Network`)."""
        with torch.inference_mode():
            outputs: NDArray[np.float32] = self._outputs(self.encoder(torch.from_numpy(rows))).numpy()
        return outputs

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Copies of all parameters by name."""
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in self.state_dict().items()}

    def values(self, encoded: torch.Tensor) -> torch.Tensor:
        """Encoded rows ``[..., servers, hidden]`` → state values ``[...]``."""
        value: torch.Tensor = self.value(encoded.mean(dim=-2)).squeeze(-1)
        return value

    def _outputs(self, encoded: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.action(with_pooled(encoded))
        return outputs


def net_for(problem: DecisionProblem, options: ModelOptions) -> EquivariantNet:
    """An untrained network for this problem."""
    return EquivariantNet(problem.row_size, problem.topology.shape[0], options, problem.options.action)


def learning_net(network: Network, problem: DecisionProblem, options: ModelOptions) -> EquivariantNet:
    """A torch network with copies of the parameters of a bundle's network, for this problem."""
    net = net_for(problem, options)
    net.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in network.arrays().items()})
    return net


def with_pooled(encoded: torch.Tensor) -> torch.Tensor:
    """``[..., servers, hidden]`` → each server's encoding and the mean of all, ``[..., servers, 2 * hidden]``."""
    return torch.cat([encoded, encoded.mean(dim=-2, keepdim=True).expand_as(encoded)], dim=-1)


@lru_cache(maxsize=32)
def _one_hot_levels(ratios: tuple[int, ...], servers: int) -> torch.Tensor:
    levels = torch.from_numpy(ratio_levels(ratios, servers))
    return nn.functional.one_hot(levels, len(ratios)).float()
