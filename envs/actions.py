"""Policy output ↔ integer weights: a bounded residual on the inverse-latency baseline.

Weight ∝ baseline share × exp(bound × a) with a in [−1, 1]; a = 0 is the baseline itself, so the worst
that a poor policy can do is bounded (shared study, section 6.2).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from actuators.control import MAX_WEIGHT
from actuators.options import Options
from actuators.topology import Topology

FloatArray = NDArray[np.float64]


class ActionOptions(Options):
    """How an action becomes weights."""

    bound: float = 0.7
    """Largest |log| by which the policy may move a weight off the baseline; 0 is the baseline alone."""
    floor: int = 3
    """Smallest weight of a usable server, 1…100: a server must be seen to be judged."""
    dead_band: float = 0.1
    """Relative change below which a group keeps its weights; saves reloads that change nothing."""


class ActionCodec:
    """Actions ``[..., groups * servers]`` in [−1, 1] → weights ``[..., groups, servers]``."""

    def __init__(self, topology: Topology, options: ActionOptions) -> None:
        self.topology, self.options = topology, options
        self.size = topology.shape[0] * topology.shape[1]

    def weights(
        self, action: NDArray[np.floating], base_shares: FloatArray, present: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Integer weights, 1…100, 0 where a group lacks the server.

        Args:
            action: ``[..., groups * servers]``; values beyond ±1 are cut, nan counts as 0.
            base_shares: ``[..., groups, servers]``, the baseline's shares, > 0.
            present: weights in force, same shape; a group whose new weights all lie within the dead
                band of these keeps them.
        """
        action = np.clip(np.nan_to_num(np.asarray(action, dtype=float)), -1.0, 1.0)
        residual = action.reshape(*action.shape[:-1], *self.topology.shape)
        shares = np.where(self.topology.mask, base_shares * np.exp(self.options.bound * residual), 0.0)
        scaled = np.rint(shares / shares.max(axis=-1, keepdims=True) * MAX_WEIGHT)
        new = np.where(self.topology.mask, np.clip(scaled, self.options.floor, MAX_WEIGHT), 0).astype(np.int64)
        return np.where(self._keep(new, present), present, new)

    def _keep(self, new: NDArray[np.int64], present: NDArray[np.int64]) -> NDArray[np.bool_]:
        old = np.maximum(present, 1) / np.maximum(present.max(axis=-1, keepdims=True), 1)
        wanted = np.maximum(new, 1) / np.maximum(new.max(axis=-1, keepdims=True), 1)
        moved = np.abs(np.log(wanted / old)) > np.log1p(self.options.dead_band)
        keep: NDArray[np.bool_] = ~(moved & self.topology.mask).any(axis=-1, keepdims=True)
        return keep
