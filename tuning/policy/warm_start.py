"""Adapts a trained network to a refitted mixture: keeps its parameters and gives new clusters a weight of 0."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from actuators.errors import BundleError
from envs.environment.problem import DecisionProblem
from envs.observation.encoder import Encoder
from envs.observation.features import SERVER_FEATURES
from envs.observation.observer import frame_size
from tuning.options import ModelOptions
from tuning.policy.learned import net_for
from tuning.policy.model import EquivariantNet

_FIRST = "encoder.0.weight"


def widened(net: EquivariantNet, model: ModelOptions, old: DecisionProblem, new: DecisionProblem) -> EquivariantNet:
    """A network for the rows of the new problem; it ignores the new clusters until it is trained.

    Args:
        net: the trained network.
        model: its options.
        old: problem that the network was trained on.
        new: the same problem with another encoder, whose first clusters are those of `old` (`envs.mixture.refit`).

    Raises:
        BundleError: the problems differ in their options or features.
    """
    if old.options != new.options or old.encoder.names != new.encoder.names:
        raise BundleError("the problems differ in more than the mixture", remedy="train a new policy")
    kept = list(_kept_columns(old, new))
    assert len(kept) == old.row_size
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    first = torch.zeros((state[_FIRST].shape[0], new.row_size))
    first[:, kept] = state[_FIRST]
    state[_FIRST] = first
    wide = net_for(new, model)
    wide.load_state_dict(state)
    return wide


def _kept_columns(old: DecisionProblem, new: DecisionProblem) -> Iterator[int]:
    """New index of every column of the old row; a row holds the current frame, the context and earlier frames."""
    groups, name = old.topology.shape[0], old.options.observation
    size = frame_size(new.topology, new.encoder, name)
    yield from _frame(old, new, 0)
    yield from range(size, size + 2 * groups)
    for past in range(old.options.frames - 1):
        yield from _frame(old, new, size + 2 * groups + past * size)


def _frame(old: DecisionProblem, new: DecisionProblem, start: int) -> Iterator[int]:
    groups, at = old.topology.shape[0], start
    for part in old.options.observation.split("+"):
        if part == "features":
            yield from range(at, at + len(SERVER_FEATURES) * groups)
            at += len(SERVER_FEATURES) * groups
            continue
        before, after = (_columns(problem.encoder, part) for problem in (old, new))
        yield from range(at, at + before)
        yield at + after  # the novelty, after the clusters
        at += after + 1
    yield from range(at, at + groups)


def _columns(encoder: Encoder, part: str) -> int:
    return encoder.clusters * (len(encoder.names) if part == "fisher" else 1)
