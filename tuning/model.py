"""The policy network: one encoder shared by all servers, so it fits any number of them in any order.

`EquivariantNet` is plain torch and all that a served policy needs; `tuning.rl_module` wraps it for RLlib.
Idea: Deep Sets (Zaheer et al., 2017): permuting the servers permutes the outputs.
"""

from __future__ import annotations

import torch
from torch import nn

from tuning.options import ModelOptions


class EquivariantNet(nn.Module):
    """Rows of servers → residual per group and server, and a value.

    Args:
        row_size: features of a server's row.
        groups: outputs per server.
    """

    def __init__(self, row_size: int, groups: int, options: ModelOptions) -> None:
        super().__init__()
        hidden = options.hidden
        self.encoder = nn.Sequential(nn.Linear(row_size, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh())
        self.action = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.Tanh(), nn.Linear(hidden, groups))
        self.value = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 1))
        self.log_std = nn.Parameter(torch.full((groups,), options.initial_log_std))
        # A residual policy starts at its baseline: every mean is exactly 0.
        last = self.action[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``[..., servers, row_size]`` → means and log deviations, each ``[..., groups * servers]``."""
        encoded = self.encoder(rows)
        pooled = encoded.mean(dim=-2, keepdim=True).expand_as(encoded)
        mean = self.action(torch.cat([encoded, pooled], dim=-1)).transpose(-1, -2)
        log_std = self.log_std[:, None].expand_as(mean)
        return mean.flatten(-2), log_std.flatten(-2)

    def values(self, rows: torch.Tensor) -> torch.Tensor:
        """``[..., servers, row_size]`` → state values ``[...]``."""
        value: torch.Tensor = self.value(self.encoder(rows).mean(dim=-2)).squeeze(-1)
        return value
