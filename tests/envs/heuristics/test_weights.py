"""Heuristics on weights: valid whatever they see, and pushing in the right direction.

Seeds are fixed and the clock plays no part: a comparison with a threshold repeats exactly, its error rate is 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from actuators.contract.control import Weights
from actuators.contract.topology import social_network
from actuators.contract.window import Window
from envs.environment.actions import ActionCodec, ActionOptions
from envs.heuristics.controllers import Controller, PolicyController
from envs.heuristics.knapsack import Knapsack, best_split
from envs.heuristics.queueing_model import ModelBased, UtilisationPid, number_in_system, offered_load
from envs.heuristics.weights import (
    Aimd,
    Equal,
    Equaliser,
    InverseLatency,
    Little,
    Policy,
    WeightPolicy,
    rates_rps,
)
from envs.observation.observer import Observer
from envs.scenarios.lookup import scenario
from envs.study.judge import judge
from envs.study.rules import RULES
from tests.support.simulated import controller_rule
from tests.support.windows import window

TOPOLOGY = social_network()
DEADLINES_S = np.array([0.06, 0.02, 0.015])
CODEC = ActionCodec(TOPOLOGY, ActionOptions())
POLICIES: tuple[Policy, ...] = (
    Equal(), InverseLatency(CODEC), Little(CODEC), Equaliser(CODEC), Aimd(CODEC),
    ModelBased(CODEC, 4.0),
)  # fmt: skip
FEEDBACK = [policy for policy in POLICIES if isinstance(policy, WeightPolicy)]
UNEQUAL_MS = np.broadcast_to([5.0, 10.0, 30.0], TOPOLOGY.shape)


def controller_of(policy: Policy, method: str = "least_conn") -> PolicyController:
    return PolicyController(policy.name, method, policy, Observer(TOPOLOGY, DEADLINES_S, None))  # type: ignore[arg-type]


def decided(controller: Controller, seen: Window) -> Weights:
    control = controller.decide(seen)
    assert isinstance(control, Weights)
    return control


CONTROLLERS: dict[str, Callable[[], Controller]] = {
    **{policy.name: (lambda policy=policy: controller_of(policy)) for policy in POLICIES},  # type: ignore[misc]
    "pid": lambda: UtilisationPid("least_conn", CODEC, Observer(TOPOLOGY, DEADLINES_S, None), 4.0),
    "knapsack": lambda: Knapsack("least_conn", CODEC),
}


@pytest.mark.parametrize("name", CONTROLLERS)
def test_weights_are_valid_whatever_is_seen(name: str) -> None:
    controller = CONTROLLERS[name]()
    weights = controller.begin(TOPOLOGY)
    one_silent = np.array([[0, 100, 100]] * 3)
    one_type = np.array([[0, 0, 0], [5, 5, 5], [0, 0, 0]])
    for latency_ms, requests, errors in (
        (0.0, 1, 0), (UNEQUAL_MS, 100, 0), (5.0, one_silent, 0), (5.0, one_type, 0), (1.0, 200, 100),
        (60_000.0, 50, 50), (5.0, 0, 0), (UNEQUAL_MS, 3, 3),
    ) * 3:  # fmt: skip
        assert isinstance(weights, Weights)
        seen = window(latency_ms, requests, errors=errors, weight=weights.values)
        weights = controller.decide(seen) or weights
    assert isinstance(weights, Weights), "Weights check their own range"


@pytest.mark.parametrize("policy", FEEDBACK, ids=lambda policy: policy.name)
def test_a_slow_server_is_given_less(policy: WeightPolicy) -> None:
    controller, weights = controller_of(policy), Weights.equal(TOPOLOGY, 100)
    for _ in range(5):
        weights = decided(controller, window(UNEQUAL_MS, 100, weight=weights.values, spread=0.1))
    assert (weights.values[:, 0] > weights.values[:, 2]).all()


@pytest.mark.parametrize("policy", FEEDBACK, ids=lambda policy: policy.name)
def test_a_batch_is_weighted_as_each_of_its_rows(policy: WeightPolicy) -> None:
    windows = [window(UNEQUAL_MS * factor, 100, seed=seed) for seed, factor in enumerate((1.0, 3.0))]
    rows = [Observer(TOPOLOGY, DEADLINES_S, None).observe_window(seen) for seen in windows]
    fields = ("features", "groups", "posterior", "novelty", "latency_s", "weights")
    batch = replace(rows[0], **{field: np.stack([getattr(row, field) for row in rows]) for field in fields})
    assert (policy.weights(batch) == np.stack([policy.weights(row) for row in rows])).all()


def test_rates_come_back_from_the_observation() -> None:
    seen = window(5.0, np.array([[100, 200, 300], [1, 0, 0], [50, 50, 0]]))
    assert np.allclose(rates_rps(Observer(TOPOLOGY, DEADLINES_S, None).observe_window(seen)), seen.requests)


def test_little_counts_what_is_in_flight_when_the_balancer_tells() -> None:
    seen = replace(window(10.0, 100), active=np.array([[1, 1, 19]] * 3))
    values = decided(controller_of(Little(CODEC)), seen).values
    assert (values == [[100, 100, 10]] * 3).all()


def test_the_queueing_model_agrees_with_theory_and_with_its_inverse() -> None:
    load = np.array([0.1, 0.5, 0.9])
    assert np.allclose(number_in_system(load, np.ones(3)), load / (1 - load)), "M/M/1"
    assert np.allclose(number_in_system(load, np.ones(3), 0.0), load + load**2 / (1 - load) / 2), "M/D/1"
    assert number_in_system(np.array(2.4), np.array(3.0)) == pytest.approx(2.4 + 0.6472 * 4, rel=1e-3), "Erlang C"
    workers = np.array([1.0, 4.0, 16.0])
    assert np.allclose(offered_load(number_in_system(0.8 * workers, workers), workers), 0.8 * workers)
    assert offered_load(np.array(1e9), np.array(4.0)) < 4.0


def test_the_model_sees_speed_through_queues() -> None:
    """Equal traffic; the slow server's long response times are mostly waiting, so its weight is not their inverse."""
    in_system = number_in_system(np.array([1.6, 2.0, 3.2]), np.full(3, 4.0))
    seen = window(np.broadcast_to(in_system / 300 * 1e3, TOPOLOGY.shape), 100, spread=0.01)
    values = decided(controller_of(ModelBased(CODEC, 4.0)), seen).values[0]
    assert np.allclose(values / 100, [1.0, 0.8, 0.5], atol=0.06)


def test_the_best_split_is_the_best_of_all() -> None:
    cost = np.random.default_rng(3).random((4, 9))
    cost[2, 5:] = np.inf
    found = best_split(cost)
    assert found is not None
    assert found.sum() == 8
    splits = (parts for parts in itertools.product(range(9), repeat=4) if sum(parts) == 8)
    least = min(sum(cost[s, k] for s, k in enumerate(parts)) for parts in splits)
    assert sum(cost[s, k] for s, k in enumerate(found)) == pytest.approx(least)
    assert best_split(np.full((2, 5), np.inf)) is None


def test_a_dead_server_does_not_wind_up_the_pid() -> None:
    controller = UtilisationPid("least_conn", CODEC, Observer(TOPOLOGY, DEADLINES_S, None), 4.0)
    for _ in range(60):
        weights = decided(controller, window(10.0, np.array([[0, 100, 100]] * 3), spread=0.01))
    assert weights.values[0, 0] <= 1.1 * weights.values[0, 1]


@pytest.mark.parametrize(
    ("name", "where", "limit"),
    [("inverse_latency", "S3", 0.95), ("pid", "S2b", 0.95), ("knapsack", "S3", 0.95), ("model_based", "S2b", 0.92)],
)
def test_they_beat_plain_least_conn_where_servers_differ(name: str, where: str, limit: float) -> None:
    played = scenario(where, duration_s=150.0)
    plain = judge(RULES["least_conn"], played, TOPOLOGY, (11,))
    assert judge(controller_rule(name, CONTROLLERS[name]), played, TOPOLOGY, (11,)).over(plain).mean_ms < limit
