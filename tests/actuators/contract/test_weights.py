"""Weights as people write them, and the walk through all ratios."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actuators.contract.control import Weights
from actuators.contract.topology import Group, Topology, social_network
from actuators.errors import ConfigError, DeepSchedError
from actuators.external.actuator import exploration, parse_weights, ratio_vectors

A, B, SOCKET = "10.0.0.1:80", "10.0.0.2:80", "unix:/run/a.sock"
TOPOLOGY = Topology(
    (Group("reads", "r", "GET", "/r", 2.0, (A, B)), Group("posts", "p", "POST", "/p", 2.0, (B, SOCKET)))
)


def test_distinct_ratios_of_three_servers_are_25() -> None:
    vectors = ratio_vectors(3)
    assert len(vectors) == 25
    assert (1, 1, 1) in vectors
    assert (3, 3, 3) not in vectors
    assert [len(ratio_vectors(3, values)) for values in ((1, 2, 4), (1, 3, 9), (1, 2, 3))] == [19, 19, 25]
    shares = {tuple(np.round(np.array(v) / sum(v), 9)) for v in vectors}
    assert len(shares) == 25
    assert all(math.gcd(*vector) == 1 for vector in vectors)


def test_exploration_walks_all_ratios_once_in_a_seeded_order() -> None:
    topology = social_network()
    walk = [tuple(map(tuple, weights.values)) for weights in exploration(topology, 7)]
    assert len(walk) == 25
    for g in range(3):
        assert len({step[g] for step in walk}) == 25
    assert walk == [tuple(map(tuple, weights.values)) for weights in exploration(topology, 7)]
    assert walk != [tuple(map(tuple, weights.values)) for weights in exploration(topology, 8)]
    assert walk[0][0] != walk[0][1] or walk[1][0] != walk[1][1]


def test_changes_are_applied_to_what_is_in_force() -> None:
    base = Weights.equal(TOPOLOGY, 2)
    weights = parse_weights([f"reads/{A}=5", f"{B}=7", f"posts/{SOCKET}=down"], base)
    assert weights.values.tolist() == [[5, 7, 0], [0, 7, 2]]
    assert weights.down.tolist() == [[False, False, False], [False, False, True]]
    back = parse_weights([f"{SOCKET}=up"], weights)
    assert not back.down.any()
    assert back.values.tolist() == weights.values.tolist()


def test_large_weights_are_scaled_per_group() -> None:
    weights = parse_weights([f"reads/{A}=500", f"reads/{B}=1"], Weights.equal(TOPOLOGY, 3))
    assert weights.values.tolist() == [[100, 1, 0], [0, 3, 3]]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (f"read/{A}=5", "did you mean 'reads'"),
        ("10.0.0.3:80=5", "unknown server"),
        (f"posts/{A}=5", "is not in posts"),
        (f"{A}=0", "not a weight"),
        (f"{A}=-1", "not a weight"),
        (f"{A}=1.5", "not a weight"),
        (f"{A}=9999999999", "not a weight"),
        (f"{A}=²", "not a weight"),
        (f"{A}=5; }}", "not a weight"),
        (A, "invalid change"),
        ("=3", "unknown server"),
    ],
)
def test_wrong_changes_are_named(text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        parse_weights([text], Weights.equal(TOPOLOGY))


def test_a_group_keeps_a_usable_server() -> None:
    with pytest.raises(ConfigError, match="every server is down"):
        parse_weights([f"reads/{A}=down", f"{B}=down"], Weights.equal(TOPOLOGY))


@given(st.lists(st.text(max_size=12) | st.sampled_from([f"{A}=3", f"reads/{B}=down", f"{B}="]), max_size=4))
def test_any_text_is_a_weight_vector_or_an_error_of_ours(texts: list[str]) -> None:
    try:
        weights = parse_weights(texts, Weights.equal(TOPOLOGY))
    except DeepSchedError:
        return
    assert ((weights.values >= 1) & (weights.values <= 100))[TOPOLOGY.mask].all()
