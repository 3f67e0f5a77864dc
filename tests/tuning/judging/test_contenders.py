"""Policies by name: every name makes a controller, a typo gets the closest match, oracles know the script.

Seeds are fixed and the clock plays no part: a comparison with a threshold repeats exactly, its error rate is 0.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from actuators.contract.control import ServiceTimes, Weights
from actuators.contract.topology import social_network
from actuators.errors import ConfigError
from envs.environment.actions import ActionOptions
from envs.environment.phase import ObserveOptions, watch
from envs.environment.problem import DecisionOptions, DecisionProblem
from envs.estimators.registry import estimator_named
from envs.heuristics.names import ESTIMATED, HELD
from envs.heuristics.weights import Equal
from envs.mixture.fit import fit_from_windows
from envs.observation.encoder import EncoderOptions
from envs.scenarios.calibrated import Today
from envs.scenarios.lookup import scenario
from envs.simulator.rivals import RIVAL_CODES
from envs.simulator.testbed import SimulatedTestbed
from tuning.judging.contenders import (
    BASELINES,
    NATIVE,
    ORACLES,
    STEERED,
    Arena,
    contender,
    contender_names,
    contenders,
    parse_policies,
)
from tuning.judging.judge import Informed, Judge, Stateless
from tuning.judging.plan import JudgeOptions

DEADLINES_S = np.array([0.06, 0.025, 0.02])
NAMES = (
    *NATIVE,
    *BASELINES,
    *STEERED,
    *ESTIMATED,
    *HELD,
    *ORACLES,
    *RIVAL_CODES,
    "inverse_latency@expected_delay",
    "little@round_robin",
)


@pytest.fixture(scope="module")
def arena() -> Arena:
    topology = social_network()
    with SimulatedTestbed(topology) as testbed:
        seen = watch(testbed, scenario("S3"), "least_conn", ObserveOptions(explore_s=5), 1)
    encoder = fit_from_windows([*seen.equal, *seen.exploring], topology, DEADLINES_S, EncoderOptions(), 1)
    problem = DecisionProblem(topology, DEADLINES_S, encoder, DecisionOptions())
    return Arena(problem, "least_conn", np.full(3, 4.0))


def test_every_policy_can_be_judged_beside_the_others_on_the_same_arrivals(arena: Arena) -> None:
    policies = [contender(spec, arena) for spec in parse_policies(NAMES)]
    assert [policy.name for policy in policies] == list(NAMES)
    options = JudgeOptions(rounds=1, warm_up_s=2, measure_s=4, interval_s=1, seed=2)
    with SimulatedTestbed(social_network()) as testbed:
        evaluation = Judge(testbed, policies, scenario("S3"), DEADLINES_S, options).run()
    assert all(block.usable for block in evaluation.blocks)
    assert len({tuple(block.tally.sent) for block in evaluation.blocks}) == 1
    means = {name: values["mean_ms"] for name, values in evaluation.values.items()}
    assert means["true_times"] < means["least_conn"] < means["round_robin"]
    assert means["shortest_delay"] < means["least_conn"]
    methods = {name: policy["method"] for name, policy in evaluation.to_json()["policies"].items()}
    assert methods["true_times"] == "expected_delay"
    assert methods["late_binding"] == methods["earliest_deadline"] == "late_binding"
    assert means["least_time"] < means["least_conn"] < means["least_request"]
    assert "proxy_cpu_us" not in evaluation.to_json()["policies"]["least_time"]
    kinds = {spec.name: spec.kind for spec in parse_policies(tuple(RIVAL_CODES))}
    assert kinds.pop("shared_least_conn") == "any"
    assert set(kinds.values()) == {"simulated"}


def test_policies_that_hold_requests_have_twice_as_many_slots_as_workers_and_an_order(arena: Arena) -> None:
    for name, order in HELD.items():
        control = contender(parse_policies([name])[0], arena).begin(arena.problem.topology)
        assert isinstance(control, ServiceTimes)
        assert control.holding is not None
        assert (control.holding.numbers.order, control.holding.slots.tolist()) == (order, [8, 8, 8])
        assert (control.holding.deadlines_s == DEADLINES_S).all()
        one_of_eight = contender(parse_policies([name])[0], replace(arena, balancers=8)).begin(arena.problem.topology)
        assert isinstance(one_of_eight, ServiceTimes)
        assert one_of_eight.holding is not None
        assert one_of_eight.holding.slots.tolist() == [2, 2, 2]


def test_heuristics_of_weights_are_the_same_beside_a_residual_on_service_times(arena: Arena) -> None:
    """A problem with an estimator observes service times, which methods that take weights do not measure."""
    action = ActionOptions(baseline="idle")
    beside = replace(arena, problem=replace(arena.problem, options=DecisionOptions(action=action)))
    options = JudgeOptions(rounds=1, warm_up_s=0, measure_s=5, interval_s=1, seed=2)
    values = []
    for each in (arena, beside):
        policies = [contender(spec, each) for spec in parse_policies(("least_conn", "inverse_latency", "knapsack"))]
        with SimulatedTestbed(social_network()) as testbed:
            values.append(Judge(testbed, policies, scenario("S3"), DEADLINES_S, options).run().values)
    assert values[0] == values[1]


def test_an_oracle_is_told_the_script_of_each_phase(arena: Arena) -> None:
    topology = social_network()
    (spec,) = parse_policies(["best=true_times"])
    oracle = contender(spec, arena)
    assert oracle.name == "best"
    assert isinstance(oracle, Informed)
    assert isinstance(oracle.begin(topology), Weights)
    oracle.inform(scenario("S2b").script(topology, 1))
    control = oracle.begin(topology)
    assert isinstance(control, ServiceTimes)
    assert control.tau_s[0, 2] / control.tau_s[0, 0] == pytest.approx(1.6 / 0.4)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("least_con", "did you mean 'least_conn'"),
        ("inverse_latency@leastconn", "did you mean 'least_conn'"),
        ("round_robin@least_conn", "brings its own method"),
        ("knapsack@expected_delay", "estimates no service times"),
        ("idle@late_binding", "unknown balancing method 'late_binding'"),
    ],
)
def test_a_wrong_entry_is_explained(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_policies([text])


def test_a_name_is_given_once_and_can_be_another() -> None:
    with pytest.raises(ConfigError, match="given twice"):
        parse_policies(["expected_delay", "idle"])
    again, learned, own = parse_policies(["again=least_conn", "learned=runs/x/bundle", "nginx:/etc/my.conf"])
    assert (again.name, again.base, again.kind) == ("again", "least_conn", "any")
    assert (learned.name, learned.base, learned.is_bundle) == ("learned", "runs/x/bundle", True)
    assert (own.name, own.kind) == ("nginx:my.conf", "live")


@pytest.mark.parametrize(
    ("text", "name", "estimator"),
    [
        ("expected_delay", "expected_delay", "levelled"),
        ("idle", "expected_delay", "levelled"),
        ("levelled@expected_delay", "expected_delay", "levelled"),
        ("unlevelled", "unlevelled", "idle"),
        ("type_means", "expected_delay_static", "type_means"),
        ("ratio", "ratio", "ratio"),
        ("inverse_latency@expected_delay", "inverse_latency@expected_delay", "inverse_latency"),
    ],
)
def test_a_policy_on_expected_delay_has_one_name_and_its_estimator(
    arena: Arena, monkeypatch: pytest.MonkeyPatch, text: str, name: str, estimator: str
) -> None:
    taken: list[str] = []
    monkeypatch.setattr(
        "envs.heuristics.controllers.estimator_named", lambda known: taken.append(known) or estimator_named(known)
    )
    (spec,) = parse_policies([text])
    made = contender(spec, arena)
    assert (spec.name, made.name, made.method, taken) == (name, name, "expected_delay", [estimator])


@pytest.mark.parametrize("text", ["expected_delay@least_conn", "idle@round_robin"])
def test_a_rule_with_service_times_is_on_no_other_method(text: str) -> None:
    with pytest.raises(ConfigError, match="brings its own method"):
        parse_policies([text])


def test_a_former_name_cannot_be_given_to_another_policy() -> None:
    with pytest.raises(ConfigError, match="'idle' is the former name of 'expected_delay'"):
        parse_policies(["idle=least_conn"])


def test_only_what_forgets_after_a_block_says_so(arena: Arena) -> None:
    names = ("least_conn", "true_times", "peak_ewma", "nginx_fair", "expected_delay", "inverse_latency",
             "haproxy_steered", "envoy_steered")  # fmt: skip
    made = {spec.name: contender(spec, arena) for spec in parse_policies(names)}
    forget = {name for name, each in made.items() if isinstance(each, Stateless) and each.stateless}
    assert forget == {"least_conn", "true_times", "peak_ewma", "nginx_fair"}


@pytest.mark.parametrize("baseline", ["inverse_latency", "levelled", "idle"])
@pytest.mark.parametrize("today", [False, True])
def test_names_are_known_before_there_is_a_policy(arena: Arena, baseline: str, today: bool) -> None:
    chosen = DecisionOptions(action=ActionOptions.model_validate({"baseline": baseline}))
    problem = replace(arena.problem, options=chosen)
    balances = Today("least_conn", Weights.equal(problem.topology)) if today else None
    made = contenders(problem, "least_conn", Equal(), balances)
    assert contender_names(chosen.action.estimator, today=today) == [each.name for each in made]
