"""Requests that differ in cost: the law is what is played, a model of it is learned, and late binding gains by it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from actuators.contract.late_binding import LateBindingNumbers
from actuators.contract.request_cost import RequestCost, RequestKind, SeenRequest, oracle_r2
from actuators.contract.script import RateStep, Script, ServerProfile, Stream
from actuators.contract.topology import Topology, social_network
from actuators.errors import ConfigError
from actuators.social_network.costs import KINDS, NOISE_CV
from envs.environment.study_setup import SHARED_MEMORY
from envs.estimators.registry import DEFAULT_ESTIMATOR
from envs.scenarios.catalogue import VARYING
from envs.simulator.batch import SimulatedBatch
from envs.study.judge import deadlines_s, judge
from envs.study.request_cost import explained_by, observed_costs
from envs.study.rules import Learning, late_binding

TOPOLOGY = social_network(("a:80", "b:80", "c:80"))
S11 = replace(VARYING["S11"], duration_s=60.0)
ONE = Topology((replace(TOPOLOGY.groups[1], servers=("a:80",)),))


def one_server(kinds: tuple[RequestKind, ...], cv: float = 0.0) -> Script:
    stream = Stream(ONE.request_types[0], (RateStep(0.0, 20.0, "fixed"),))
    return Script("kinds", 5, 400.0, (stream,), (ServerProfile((1.0,), 64),), (0.01,), service_cv=cv, kinds=(kinds,))


def test_kinds_come_by_their_shares_and_cost_their_work() -> None:
    kinds = (RequestKind(0.75, 0.4, SeenRequest("/a")), RequestKind(0.25, 2.8, SeenRequest("/b")))
    batch = SimulatedBatch(ONE, 1, "expected_delay")
    batch.reset(0, one_server(kinds))
    batch.set_service_times(np.full((1, 1, 1), 0.01), np.full((1, 1), 64.0))
    window = batch.advance(400.0)
    (((first, second),),) = window.costs
    assert first[0] + second[0] == pytest.approx(8000, abs=1)
    # Binomial with 8000 draws: five standard deviations are 194.
    assert second[0] == pytest.approx(2000, abs=194)
    assert first[1] / first[0] == pytest.approx(0.4)
    assert second[2] / second[0] == pytest.approx(2.8**2)


def test_a_script_with_kinds_survives_its_json_and_is_checked() -> None:
    script = one_server((RequestKind(1.0, 1.0, SeenRequest("/a", {"n": 1.0}, 3, "POST")),))
    assert Script.from_json(script.to_json()) == script
    for kinds, named in (
        ((RequestKind(0.5, 1.0, SeenRequest()),), "shares of kinds is 0.5"),
        ((RequestKind(1.0, 2.0, SeenRequest()),), "mean work of kinds is 2"),
        ((RequestKind(-1.0, 1.0, SeenRequest()),), "share of a kind"),
    ):
        with pytest.raises(ConfigError, match=named):
            SimulatedBatch(ONE, 1).reset(0, one_server(kinds))


def test_what_requests_cost_is_learned_and_shortens_the_mean() -> None:
    costs = observed_costs(replace(S11, load=0.6), TOPOLOGY, 7, 60.0)
    # A quarter of the variance of posts, half of that of reads: the rest is the service times'.
    assert 0.4 <= oracle_r2(KINDS["home_read"], NOISE_CV) <= 0.5
    assert costs.groups["home_read_backend"].counts
    found = explained_by(costs, S11.script(TOPOLOGY, 8), TOPOLOGY, 30.0)
    oracle = np.average([oracle_r2(KINDS[name], NOISE_CV) for name in ("home_read", "user_read")], weights=(2, 1))
    assert found > 0.7 * oracle
    limits_s = deadlines_s(S11, TOPOLOGY)
    how, numbers = Learning(DEFAULT_ESTIMATOR), LateBindingNumbers()
    alike, known = (
        judge(late_binding(limits_s, numbers, how, SHARED_MEMORY, given), S11, TOPOLOGY, (11, 12))
        for given in (RequestCost(), costs)
    )
    assert known.mean_ms < alike.mean_ms
