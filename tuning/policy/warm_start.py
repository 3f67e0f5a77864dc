"""Adapts a trained network to a refitted mixture: keeps its parameters and gives new clusters a weight of 0."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from actuators.errors import BundleError
from envs.environment.problem import DecisionProblem
from envs.observation.encoder import Encoder
from envs.observation.features import SERVER_FEATURES
from envs.observation.observer import frame_size
from tuning.options import ModelOptions
from tuning.policy.network import ArrayNet, Network

_FIRST = "encoder.0.weight"


def widened(net: Network, model: ModelOptions, old: DecisionProblem, new: DecisionProblem) -> ArrayNet:
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
    arrays = net.arrays()
    first = np.zeros((len(arrays[_FIRST]), new.row_size), np.float32)
    first[:, kept] = arrays[_FIRST]
    return ArrayNet({**arrays, _FIRST: first}, net.groups, model.squashed, new.options.action)


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
