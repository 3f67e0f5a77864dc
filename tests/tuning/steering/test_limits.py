"""Limits on single changes hold for any shares; the averages over windows are those that the judge reads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from actuators.contract.control import Weights
from actuators.contract.topology import Group, Topology
from tests.support.windows import TOPOLOGY, window
from tuning.steering import limits
from tuning.steering.harm import Reference, Seen, error_ratio, tardiness_per_request
from tuning.steering.options import GuardOptions

RAGGED = Topology(
    (
        Group("a", "a", "GET", "/a", 2.0, ("s1:80", "s2:80", "s3:80", "s4:80")),
        Group("b", "b", "GET", "/b", 2.0, ("s2:80", "s3:80")),
        Group("c", "c", "GET", "/c", 2.0, ("s4:80",)),
    )
)
MASK = RAGGED.mask
DEADLINES_S = np.array([0.05, 0.03, 0.03])

positive = st.floats(1e-3, 1.0)
tables = st.lists(positive, min_size=12, max_size=12).map(lambda values: shares_of(np.array(values).reshape(3, 4)))


def shares_of(values: NDArray[np.float64]) -> NDArray[np.float64]:
    clean = np.where(MASK, values, 0.0)
    result: NDArray[np.float64] = clean / clean.sum(axis=1, keepdims=True)
    return result


def is_a_share(shares: NDArray[np.float64]) -> None:
    assert np.allclose(shares.sum(axis=1), 1.0)
    assert (shares >= 0).all()
    assert (shares[~MASK] == 0).all()


@given(tables, tables, st.floats(1.05, 5.0))
def test_no_share_changes_by_more_than_the_largest_step(
    wanted: NDArray[np.float64], present: NDArray[np.float64], largest: float
) -> None:
    new, spoke = limits.stepped(wanted, present, MASK, largest)
    is_a_share(new)
    ratio = np.where(MASK, new / np.where(MASK, present, 1), 1.0)
    assert ratio[MASK].max() <= largest * (1 + 1e-6)
    assert ratio[MASK].min() >= 1 / largest * (1 - 1e-6)
    assert spoke or np.allclose(new, wanted)


@given(tables, tables)
def test_repeated_steps_arrive(wanted: NDArray[np.float64], present: NDArray[np.float64]) -> None:
    for _ in range(40):
        present, spoke = limits.stepped(wanted, present, MASK, 1.5)
    assert not spoke
    assert np.allclose(present, wanted)


@given(tables, st.integers(1, 50))
def test_no_weight_is_below_the_floor(shares: NDArray[np.float64], floor: int) -> None:
    new, spoke = limits.floored(shares, MASK, floor)
    is_a_share(new)
    relative = new / new.max(axis=1, keepdims=True)
    assert relative[MASK].min() >= floor / 100 - 1e-9
    assert spoke or np.allclose(new, shares)


@given(tables, st.floats(0.5, 1.0))
def test_no_share_is_above_the_cap(shares: NDArray[np.float64], cap: float) -> None:
    new, spoke = limits.capped(shares, MASK, cap)
    is_a_share(new)
    limit = np.maximum(cap, 1 / MASK.sum(axis=1))
    assert (new.max(axis=1) <= limit + 1e-6).all()
    assert spoke or np.allclose(new, shares)


def test_integer_weights_leave_a_server_that_is_down_as_it_was() -> None:
    down = np.zeros(TOPOLOGY.shape, bool)
    down[1, 2] = True
    like = Weights(TOPOLOGY, np.full(TOPOLOGY.shape, 7), down)
    shares = np.tile([0.5, 0.5, 0.0], (3, 1))
    shares[[0, 2]] = [0.6, 0.3, 0.1]
    weights = limits.as_weights(shares, like)
    assert weights.down[1, 2]
    assert weights.values[1].tolist() == [100, 100, 7]
    assert weights.values[0].tolist() == [100, 50, 17]


def test_blending_goes_a_part_of_the_way() -> None:
    policy, base = np.array([[0.8, 0.2]]), np.array([[0.4, 0.6]])
    assert limits.blended(policy, base, 0) == pytest.approx(base)
    assert limits.blended(policy, base, 100) == pytest.approx(policy)
    assert limits.blended(policy, base, 25) == pytest.approx(np.array([[0.5, 0.5]]))


def test_a_group_is_overloaded_when_every_server_is_late() -> None:
    times = np.array([[90.0, 80.0, 70.0], [50.0, 50.0, 10.0], [10.0, 10.0, 10.0]])
    late = limits.overloaded(window(times), DEADLINES_S, 1.0, 10)
    assert late.tolist() == [True, False, False]
    assert not limits.overloaded(window(times, requests=2), DEADLINES_S, 1.0, 10).any()


def test_one_server_alone_is_no_overload() -> None:
    requests = np.zeros(TOPOLOGY.shape, np.int64)
    requests[:, 0] = 100
    assert not limits.overloaded(window(500.0, requests=requests), DEADLINES_S, 1.0, 10).any()


def test_tardiness_and_errors_are_per_request() -> None:
    assert tardiness_per_request(window(1.0), DEADLINES_S) == pytest.approx(0.0, abs=1e-6)
    assert tardiness_per_request(window(200.0), DEADLINES_S) > 2
    assert error_ratio(window(errors=25)) == pytest.approx(0.25)
    assert error_ratio(window(requests=0)) == 0.0


def test_a_reference_averages_its_latest_windows() -> None:
    reference = Reference(4)
    for art in (1.0, 2.0, 3.0):
        reference.add(Seen(art, 0.0, 100.0), 1.0)
        assert not reference.ready
    reference.add(Seen(2.0, 0.4, 100.0), 5.0)
    assert reference.ready
    assert reference.art == pytest.approx(2.0)
    assert reference.errors == pytest.approx(0.1)
    for _ in range(60):
        reference.add(Seen(10.0, 0.0, 100.0), 9.0)
    assert reference.art == pytest.approx(10.0, rel=1e-3)
    assert reference.measured_s == 9.0


@given(
    st.lists(st.integers(1, 100), min_size=2, max_size=8),
    st.lists(st.integers(1, 100), min_size=8, max_size=8),
    st.sampled_from([5.0, 10.0, 50.0]),
)
def test_a_canary_moves_no_share_beyond_its_part_of_the_way(base: list[int], policy: list[int], percent: float) -> None:
    """Whatever floor, cap and whole numbers ask for; the policy that counts is the one within floor and cap."""
    servers = tuple(f"s{index}:1" for index in range(len(base)))
    topology = Topology((Group("g", "t", "GET", "/", 2.0, servers),))
    first, wanted = Weights(topology, np.array([base])), Weights(topology, np.array([policy[: len(base)]]))
    guards = GuardOptions(largest_step=1e9)
    nobody = np.zeros(1, bool)
    whole = limits.limit(wanted, limits.Limits(guards, None, first, first, first, 100.0, nobody, nobody))
    part = limits.limit(wanted, limits.Limits(guards, None, first, first, first, percent, nobody, nobody))
    way = whole.control.as_weights().shares() - first.shares()
    moved = part.control.as_weights().shares() - first.shares()
    # The whole way is rounded to whole weights, up to half a hundredth of the largest.
    most = percent / 100 * (np.abs(way) + 0.01) + limits.GRAIN
    assert (np.abs(moved) <= most).all()
    assert np.abs(moved).max() <= percent / 100 * (np.abs(way).max() + 0.01)
