"""The trained network when it acts: plain arrays, so that steering needs neither torch nor Ray.

The same layers as `tuning.policy.model.EquivariantNet`, which learns; the outputs of both differ by rounding only.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from envs.environment.actions import ActionOptions, ratio_levels

Array = NDArray[np.float32]


class Network(Protocol):
    """What a policy acts with: an `EquivariantNet` or an `ArrayNet`.

    Attributes:
        groups: number of groups.
        ratios: levels of ratio vectors; empty for actions of other kinds.
        squashed: whether the mean goes through tanh.
    """

    groups: int
    ratios: tuple[int, ...]
    squashed: bool

    def arrays(self) -> dict[str, Array]:
        """All parameters by name, as `policy.safetensors` holds them."""
        ...

    def outputs(self, rows: Array) -> Array:
        """Last layer's outputs: ``[..., servers, row_size]`` → ``[..., servers, groups]``, × levels for ratios."""
        ...


class ArrayNet:
    """A network made of the arrays of `policy.safetensors`.

    Args:
        arrays: every parameter by name; raises KeyError when one is missing.
    """

    def __init__(self, arrays: Mapping[str, Array], groups: int, squashed: bool, action: ActionOptions) -> None:
        self.groups, self.squashed = groups, squashed
        self.ratios = action.ratios if action.kind == "ratios" else ()
        self._arrays = {name: np.asarray(array, dtype=np.float32) for name, array in arrays.items()}
        self._encoder = [self._layer("encoder.0"), self._layer("encoder.2")]
        self._action = [self._layer("action.0"), self._layer("action.2")]

    def arrays(self) -> dict[str, Array]:
        return dict(self._arrays)

    def outputs(self, rows: Array) -> Array:
        encoded = np.asarray(rows, dtype=np.float32)
        for weight, bias in self._encoder:
            encoded = np.tanh(encoded @ weight + bias)
        pooled = np.broadcast_to(encoded.mean(axis=-2, keepdims=True), encoded.shape)
        (weight, bias), (last_weight, last_bias) = self._action
        hidden = np.tanh(np.concatenate([encoded, pooled], axis=-1) @ weight + bias)
        outputs: Array = hidden @ last_weight + last_bias
        return outputs

    def _layer(self, name: str) -> tuple[Array, Array]:
        return self._arrays[f"{name}.weight"].T, self._arrays[f"{name}.bias"]


def expected_shapes(row_size: int, groups: int, hidden: int, action: ActionOptions) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of the network by name."""
    outputs = groups * (len(action.ratios) if action.kind == "ratios" else 1)
    layers = {
        "encoder.0": (hidden, row_size), "encoder.2": (hidden, hidden),
        "action.0": (hidden, 2 * hidden), "action.2": (outputs, hidden),
        "value.0": (hidden, hidden), "value.2": (1, hidden),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"log_std": (groups,)}
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def best_action(network: Network, outputs: Array) -> NDArray[Any]:
    """The action without exploration: means ``[..., groups * servers]``, or indices of ratio vectors ``[..., groups]``.

    A vector's score is the sum over the servers of the score of the level that it assigns to the server.
    """
    if network.ratios:
        scores = outputs.reshape(*outputs.shape[:-1], network.groups, len(network.ratios))
        totals = np.einsum("...sgl,vsl->...gv", scores, _one_hot_levels(network.ratios, outputs.shape[-2]))
        best: NDArray[np.int64] = np.nan_to_num(totals, nan=0.0).argmax(axis=-1)
        return best
    mean = np.swapaxes(outputs, -1, -2)
    flat = mean.reshape(*mean.shape[:-2], -1)
    return np.tanh(flat) if network.squashed else flat


@lru_cache(maxsize=32)
def _one_hot_levels(ratios: tuple[int, ...], servers: int) -> Array:
    """``[vectors, servers, levels]``."""
    return np.eye(len(ratios), dtype=np.float32)[ratio_levels(ratios, servers)]
