"""Actions become legal weights, a zero residual is the baseline, and small changes cost no reload."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from actuators.contract.control import Weights
from actuators.contract.topology import social_network
from actuators.errors import ConfigError
from envs.environment.actions import ActionCodec, ActionKind, ActionOptions, ratio_levels
from envs.observation.features import inverse_latency_shares
from tests.support.windows import TOPOLOGY

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


def codec(kind: ActionKind, **more: object) -> ActionCodec:
    return ActionCodec(TOPOLOGY, ActionOptions.model_validate({"kind": kind, "floor": 1, "dead_band": 0.0, **more}))


def test_the_ratio_set_has_25_distinct_vectors_for_three_servers() -> None:
    """Not 27: (1,1,1), (3,3,3) and (5,5,5) are one; the study counted 19 for {1,2,4} and 115 for {1..5}."""
    for ratios, count in (((1, 3, 5), 25), ((1, 2, 4), 19), ((1, 2, 3, 4, 5), 115)):
        assert len(ratio_levels(ratios, 3)) == count
    assert codec("ratios").weights(np.zeros(3, np.int64), EQUAL, 2 * EQUAL).tolist() == [[2] * 3] * 3


def test_too_many_ratio_vectors_are_refused() -> None:
    with pytest.raises(ConfigError, match="for 12 servers"):
        ratio_levels((1, 3, 5), 12)


@pytest.mark.parametrize("kind", ["residual", "continuous", "increments", "ratios"])
def test_an_action_can_be_recovered_from_the_weights_it_gave(kind: ActionKind) -> None:
    generator = np.random.default_rng(0)
    base = generator.uniform(0.3, 1.0, (20, 3, 3))
    present = generator.integers(20, 100, (20, 3, 3))
    made = codec(kind)
    space = made.space
    space.seed(0)
    actions = np.array([space.sample() for _ in range(20)])
    weights = made.weights(actions, base, present)
    again = made.weights(made.action_of(weights.astype(float), base, present), base, present)
    assert np.abs(np.log(again / weights)).max() < 0.12


def test_joint_ratios_are_the_same_choices_in_one_number() -> None:
    single, joint = codec("ratios"), codec("ratios", joint=True)
    chosen = np.random.default_rng(0).integers(0, 25, (10, 3))
    assert joint.space.n == 25**3  # type: ignore[attr-defined]
    number = joint.of_vectors(chosen)
    assert np.array_equal(joint.vectors_of(number), chosen)
    base = np.ones((10, 3, 3))
    present = np.broadcast_to(EQUAL, (10, 3, 3))
    assert np.array_equal(joint.weights(number, base, present), single.weights(chosen, base, present))


def test_increments_start_from_the_weights_in_force() -> None:
    present = np.array([[100, 50, 25]] * 3)
    action = np.array([0.0, 1.0, 0.0] * 3)
    moved = codec("increments").weights(action, np.ones((3, 3)), present)
    assert moved[0].tolist() == [100, 75, 25]


def test_too_many_joint_actions_are_refused() -> None:
    """25 vectors for each of three groups fit; 79 on four servers are 493,039 together, but fit one group at a time."""
    joint = ActionOptions(kind="ratios", joint=True)
    ActionCodec(TOPOLOGY, joint).check()
    four = social_network(tuple(f"server-{number}:80" for number in range(4)))
    for call in (lambda codec: codec.check(), lambda codec: codec.space):
        with pytest.raises(ConfigError, match=r"493,039 joint actions \(decision\.action\.joint\); at most 50,000"):
            call(ActionCodec(four, joint))
    ActionCodec(four, ActionOptions(kind="ratios")).check()
