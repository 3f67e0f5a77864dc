"""Actions become legal weights, a zero residual is the baseline, and small changes cost no reload."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from actuators.control import Weights
from envs.actions import ActionCodec, ActionOptions
from envs.baselines import inverse_latency_shares
from windows import TOPOLOGY

EQUAL = np.ones(TOPOLOGY.shape, dtype=np.int64)
CODEC = ActionCodec(TOPOLOGY, ActionOptions())


def test_zero_is_the_baseline() -> None:
    shares = np.array([[1.0, 0.5, 0.25]] * 3)
    assert CODEC.weights(np.zeros(9), shares, EQUAL).tolist() == [[100, 50, 25]] * 3


def test_the_bound_holds() -> None:
    up = CODEC.weights(np.array([5.0, -5.0, -5.0] * 3), np.full((3, 3), 0.5), EQUAL)
    assert (up[:, 0] == 100).all()
    assert up[:, 1] == pytest.approx(100 * np.exp(-2 * 0.7), abs=1)


@given(
    arrays(np.float64, 9, elements=st.floats(allow_nan=True, allow_infinity=True)),
    arrays(np.float64, (3, 3), elements=st.floats(1e-6, 1.0)),
)
def test_any_action_gives_legal_weights(action: np.ndarray, shares: np.ndarray) -> None:
    weights = CODEC.weights(action, shares, EQUAL)
    Weights(TOPOLOGY, weights)
    changed = (weights != EQUAL).any(axis=1)
    assert (weights[changed] >= ActionOptions().floor).all()


def test_dead_band_keeps_a_group_and_moves_another() -> None:
    present = np.array([[100, 50, 25]] * 3)
    shares = np.array([[1.0, 0.52, 0.26], [1.0, 0.7, 0.25], [1.0, 0.5, 0.25]])
    assert CODEC.weights(np.zeros(9), shares, present).tolist() == [[100, 50, 25], [100, 70, 25], [100, 50, 25]]


def test_a_batch_equals_its_rows() -> None:
    generator = np.random.default_rng(0)
    actions, shares = generator.normal(size=(5, 9)), generator.uniform(0.1, 1, (5, 3, 3))
    together = CODEC.weights(actions, shares, np.broadcast_to(EQUAL, (5, 3, 3)))
    for row in range(5):
        assert np.array_equal(together[row], CODEC.weights(actions[row], shares[row], EQUAL))


def test_inverse_latency_treats_the_unknown_as_average() -> None:
    shares = inverse_latency_shares(np.array([[0.01, 0.02, np.nan], [np.nan] * 3]))
    assert shares[0] == pytest.approx([1.0, 0.5, 0.75])
    assert shares[1].tolist() == [1.0, 1.0, 1.0]
