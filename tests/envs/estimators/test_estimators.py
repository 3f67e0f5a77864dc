"""Service-time estimators: what they learn in the simulator, and what must not lead them astray.

Seeds are fixed and the clock plays no part: a comparison with a threshold repeats exactly, its error rate is 0.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
import pytest

from actuators.contract.control import ServiceTimes
from actuators.contract.script import RateStep, Script, ServerProfile, Stream
from actuators.contract.topology import Group, Topology, social_network
from actuators.contract.window import DelayWindow, Fault, Window
from actuators.errors import ConfigError, DataError
from envs.estimators.base import ServiceSamples
from envs.estimators.levelled import levelled
from envs.estimators.registry import ESTIMATORS, estimator_named, first_control
from envs.estimators.workers import CAUTION, WorkersLearner
from envs.heuristics.controllers import EstimatorController, FixedController
from envs.scenarios.lookup import scenario
from envs.scenarios.timeline import true_tau_s
from envs.simulator.batch import SimulatedBatch
from envs.simulator.testbed import SimulatedTestbed, SimulationOptions
from envs.study.judge import judge
from envs.study.rules import RULES, Learning, steering
from tests.support.windows import window as plain_window
from tuning.judging.contenders import Oracle, oracle
from tuning.judging.judge import Judge
from tuning.judging.plan import JudgeOptions

TOPOLOGY = social_network()
SPECIAL = scenario("S3", duration_s=120.0)
LEARNING = ("idle", "inverse_latency", "levelled", "ratio")


def told_window(tau_s: np.ndarray, *, requests: int | np.ndarray = 200, in_force_s: np.ndarray | None = None) -> Window:
    """A window without any queueing: every request took its service time; half found an idle worker."""
    tau = np.broadcast_to(np.asarray(tau_s, float), TOPOLOGY.shape)
    believed = np.broadcast_to(tau if in_force_s is None else in_force_s, TOPOLOGY.shape)
    counts = np.full(TOPOLOGY.shape, requests)
    plain = plain_window(1.0, requests)
    delay = DelayWindow(counts, counts // 2, counts // 2 * tau, 0.0 * tau, counts * believed, believed)
    return replace(plain, response_ms_sum=np.rint(1e3 * counts * tau).astype(np.int64), delay=delay)


@pytest.mark.parametrize(
    ("name", "tolerance"), [("idle", 0.15), ("levelled", 0.15), ("ratio", 0.15), ("inverse_latency", 0.45)]
)
def test_service_times_of_specialised_servers_are_learned_from_statistics_alone(name: str, tolerance: float) -> None:
    controller = EstimatorController(TOPOLOGY, name, workers=4.0)
    with SimulatedTestbed(TOPOLOGY, "expected_delay") as testbed:
        testbed.reset(SPECIAL, 7)
        testbed.apply(controller.begin(TOPOLOGY))
        for _ in range(40):
            window = testbed.advance(1.0)
            control = controller.decide(window)
            assert isinstance(control, ServiceTimes)
            testbed.apply(control)
    found, truth = control.tau_s, true_tau_s(SPECIAL.script(TOPOLOGY, 7), 0.0)
    # What a server is rarely asked for is rarely measured: requests weigh.
    off = np.average(np.abs(np.log(found / truth)), weights=window.requests)
    assert off < tolerance
    assert (found[0].argmin(), found[1].argmin(), found[2].argmin()) == (0, 1, 1), "A composes best, B reads best"


def test_learning_beats_type_means_which_beat_nothing_known() -> None:
    plain = judge(RULES["least_conn"], SPECIAL, TOPOLOGY, (5,))
    mean = {name: judge(Learning(name).rule(), SPECIAL, TOPOLOGY, (5,)).over(plain).mean_ms for name in ESTIMATORS}
    truth = judge(RULES["true_times"], SPECIAL, TOPOLOGY, (5,)).over(plain).mean_ms
    assert all(mean[name] < 0.75 < 0.9 * mean["type_means"] for name in LEARNING)
    assert mean["idle"] < 1.03 * truth


@pytest.mark.parametrize("name", LEARNING)
@pytest.mark.parametrize("late", [0, 3])
def test_estimates_settle_on_the_truth_however_late_they_come_into_force(name: str, late: int) -> None:
    truth = np.outer([0.018, 0.0044, 0.0033], [0.5, 1.0, 3.0])
    estimator = ESTIMATORS[name](TOPOLOGY)
    in_force = deque([np.full(TOPOLOGY.shape, 0.005)] * (late + 1), maxlen=late + 1)
    errors = []
    for _ in range(60):
        in_force.append(estimator.update(ServiceSamples.of(told_window(truth, in_force_s=in_force[0]))))
        errors.append(np.abs(np.log(in_force[-1] / truth)).max())
    assert max(errors[20:]) < 0.12


@pytest.mark.parametrize("name", LEARNING)
def test_a_server_that_becomes_slow_is_noticed_within_seconds(name: str) -> None:
    estimator, tau_s = ESTIMATORS[name](TOPOLOGY), np.full(TOPOLOGY.shape, 0.010)
    for _ in range(30):
        before = estimator.update(ServiceSamples.of(told_window(tau_s)))
    tau_s[:, 1] *= 3
    for _ in range(5):
        after = estimator.update(ServiceSamples.of(told_window(tau_s, in_force_s=before)))
    assert (after[:, 1] > 2.0 * before[:, 1]).all()
    assert (after[:, 0] < 1.5 * before[:, 0]).all()


@pytest.mark.parametrize("name", LEARNING)
def test_without_traffic_a_server_becomes_typical_again(name: str) -> None:
    estimator = ESTIMATORS[name](TOPOLOGY)
    tau_s = np.outer([0.018, 0.0044, 0.0033], [1.0, 1.0, 4.0])
    for _ in range(20):
        before = estimator.update(ServiceSamples.of(told_window(tau_s)))
    silent = told_window(tau_s)
    for array in (silent.requests, silent.response_ms_sum, silent.responses):
        array[:, 2] = 0
    assert silent.delay is not None
    for array in (silent.delay.requests, silent.delay.idle_requests, silent.delay.idle_response_s):
        array[:, 2] = 0
    for _ in range(120):
        after = estimator.update(ServiceSamples.of(silent))
    assert (after[:, 2] < 0.6 * before[:, 2]).all(), "four times the others; now at most twice, the mean of all"


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("extreme_s", [0.0, 1e-9, 1e6])
def test_service_times_stay_positive_finite_and_near_their_type_whatever_is_seen(name: str, extreme_s: float) -> None:
    estimator = ESTIMATORS[name](TOPOLOGY)
    strange = np.full(TOPOLOGY.shape, 0.005)
    strange[:, 0] = extreme_s
    for requests in (0, 1, 100, 0):
        tau_s = estimator.update(ServiceSamples.of(told_window(strange, requests=requests)))
        assert np.isfinite(tau_s).all()
        assert (tau_s > 0).all()
        assert (tau_s.max(axis=1) <= 2500 * tau_s.min(axis=1) * 1.0001).all(), "each within a factor of 50 of the mean"


@pytest.mark.parametrize("name", LEARNING)
def test_a_server_that_fails_fast_does_not_look_fast(name: str) -> None:
    estimator = ESTIMATORS[name](TOPOLOGY)
    for _ in range(10):
        before = estimator.update(ServiceSamples.of(told_window(np.full(TOPOLOGY.shape, 0.010))))
    failing = told_window(np.full(TOPOLOGY.shape, 0.010))
    failing.responses[:, 0] = (0, 100, 0, 0, 100)
    failing.response_ms_sum[:, 0] //= 2
    for _ in range(5):
        after = estimator.update(ServiceSamples.of(failing))
    assert (after[:, 0] > 0.8 * before[:, 0]).all()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_batch_learns_as_each_of_its_rows_would(name: str) -> None:
    windows = [told_window(np.full(TOPOLOGY.shape, tau_s)) for tau_s in (0.004, 0.020)]
    alone = [ESTIMATORS[name](TOPOLOGY).update(ServiceSamples.of(window)) for window in windows]
    samples = [ServiceSamples.of(window) for window in windows]
    delays = [window.delay for window in windows]
    fields = [field for field in DelayWindow.__dataclass_fields__ if field != "by_in_flight"]
    stacked = DelayWindow(*(np.stack([getattr(d, f) for d in delays]) for f in fields))
    both = replace(
        samples[0],
        requests=np.stack([s.requests for s in samples]),
        response_s=np.stack([s.response_s for s in samples]),
        delay=stacked,
    )
    assert np.allclose(ESTIMATORS[name](TOPOLOGY, (2,)).update(both), np.stack(alone))


def test_on_a_plain_nginx_only_inverse_latency_can_learn() -> None:
    samples = ServiceSamples.of(plain_window(np.broadcast_to([5.0, 10.0, 20.0], TOPOLOGY.shape)))
    tau_s = ESTIMATORS["inverse_latency"](TOPOLOGY).update(samples)
    assert (np.diff(tau_s, axis=1) > 0).all()
    for name in ("idle", "ratio"):
        with pytest.raises(DataError, match="expected_delay"):
            ESTIMATORS[name](TOPOLOGY).update(samples)


def test_simulated_windows_tell_what_the_lua_balancer_tells() -> None:
    with SimulatedTestbed(TOPOLOGY, "expected_delay") as testbed:
        testbed.reset(scenario("S7", duration_s=100.0), 3)
        nothing_known = testbed.advance(2.0).delay
        tau_s = np.full(TOPOLOGY.shape, 0.004)
        testbed.apply(ServiceTimes(TOPOLOGY, tau_s, np.full(3, 4.0)))
        testbed.advance(1.0)
        windows = [testbed.advance(1.0) for _ in range(90)]
        testbed.set_method("least_conn")
        assert testbed.advance(1.0).delay is None
    assert nothing_known is not None
    assert nothing_known.predicted_service_s.sum() == 0 == nothing_known.tau_s.sum()
    assert nothing_known.idle_requests.sum() > 0
    for window in windows:
        assert window.delay is not None
        assert (window.delay.requests == window.requests - window.server_errors).all(), "failures do not count"
        assert np.allclose(window.delay.predicted_service_s, 0.004 * window.delay.requests)
    assert sum(window.server_errors.sum() for window in windows) > 0


def test_the_controller_wins_where_judged_like_any_other_policy() -> None:
    controllers = [
        FixedController("least_conn", "least_conn"),
        EstimatorController(TOPOLOGY, workers=4.0),
        EstimatorController(TOPOLOGY, "type_means", workers=4.0),
    ]
    with SimulatedTestbed(TOPOLOGY) as testbed:
        options = JudgeOptions(rounds=3, warm_up_s=15.0, measure_s=20.0)
        result = Judge(testbed, controllers, SPECIAL, np.array([0.06, 0.02, 0.015]), options).run()
    ratio = result.ratios("expected_delay", "least_conn")["mean_ms"].value
    assert ratio is not None
    assert ratio < 0.8
    assert "expected_delay_static" in result.policies


def test_the_oracle_follows_what_happens_to_the_servers() -> None:
    script = scenario("S10", duration_s=40.0).script(TOPOLOGY, 1)
    controller = oracle("true_times")
    assert isinstance(controller, Oracle)
    controller.inform(script)
    first = controller.begin(TOPOLOGY)
    later = controller.decide(replace(told_window(np.full(TOPOLOGY.shape, 0.01)), start_s=7.0, end_s=8.0))
    assert isinstance(first, ServiceTimes)
    assert isinstance(later, ServiceTimes)
    assert first.tau_s[0].argmax() == 0
    assert later.tau_s[0].argmax() == 1
    assert later.workers.tolist() == [4.0, 4.0, 4.0]


def test_windows_that_are_not_usable_or_empty_teach_nothing() -> None:
    controller = EstimatorController(TOPOLOGY)
    good = told_window(np.full(TOPOLOGY.shape, 0.01))
    assert controller.decide(replace(good, faults=(Fault("restart", "NGINX was restarted"),))) is None
    assert controller.decide(told_window(np.full(TOPOLOGY.shape, 0.01), requests=0)) is None
    assert controller.begin(TOPOLOGY) is controller.begin(TOPOLOGY)
    control = controller.decide(good)
    assert controller.begin(TOPOLOGY) is control, "a new block begins with what was learned"


def test_an_unknown_estimator_is_one_line_with_the_closest_match() -> None:
    with pytest.raises(ConfigError, match="idle"):
        estimator_named("idel")


@pytest.mark.parametrize("name", ["S1", "S3"])
def test_workers_are_learned_from_how_response_times_grow_with_requests_in_flight(name: str) -> None:
    estimator, learner = estimator_named("idle")(TOPOLOGY), WorkersLearner(TOPOLOGY)
    first = control = first_control(TOPOLOGY, learner.update(None, 0.0))
    with SimulatedTestbed(TOPOLOGY, "expected_delay", options=SimulationOptions(count_by_in_flight=True)) as testbed:
        testbed.reset(scenario(name), 5)
        for _ in range(40):
            testbed.apply(control)
            samples = ServiceSamples.of(testbed.advance(1.0))
            workers = learner.update(samples.seen().by_in_flight, samples.duration_s)
            control = ServiceTimes(TOPOLOGY, estimator.update(samples), workers)
    assert first.workers.tolist() == [1.0, 1.0, 1.0]
    assert control.workers.tolist() == [4.0, 4.0, 4.0]


def test_nothing_is_learned_of_workers_from_windows_that_do_not_tell() -> None:
    learner = WorkersLearner(TOPOLOGY, start=3.0)
    assert learner.update(None, 1.0).tolist() == [3.0, 3.0, 3.0]
    few = np.zeros((3, 25, 6))
    few[:, 10] = (5.0, 5.0, 5.0, 500.0, 5e4, 500.0)
    assert learner.update(few, 1.0).tolist() == [3.0, 3.0, 3.0]


def test_learned_workers_cost_little_and_can_be_taken_with_caution() -> None:
    plain = judge(RULES["least_conn"], SPECIAL, TOPOLOGY, (5,))
    known, learned, cautious = (
        judge(learning.rule(), SPECIAL, TOPOLOGY, (5,)).over(plain).mean_ms
        for learning in (
            Learning("idle"), Learning("idle", first_workers=1.0), Learning("idle", 0, CAUTION, first_workers=1.0)
        )
    )  # fmt: skip
    assert learned < 1.03 * known
    assert cautious < 0.85


def test_servers_that_differ_by_chance_are_equal_and_others_keep_their_values() -> None:
    """Ten equal servers are told apart in at most one of fifty draws: three standard errors; the seed is fixed."""
    generator = np.random.default_rng(1)
    requests = np.full(10, 150.0)
    apart = 0
    for _ in range(500):
        values = 1 + generator.standard_normal(10) / np.sqrt(requests)
        apart += len(set(levelled(values, requests))) > 1
    assert apart < 25
    speeds = np.array([1.43, 0.77, 1.0])
    assert levelled(speeds, np.full(3, 300.0)) == pytest.approx(speeds)
    pairs = levelled(np.array([1.0, 0.5, 2.0, 0.52, 1.02]), np.full(5, 200.0))
    assert pairs == pytest.approx([1.01, 0.51, 2.0, 0.51, 1.01])
    assert levelled(np.ones((4, 2, 1)), np.ones((4, 2, 1))).shape == (4, 2, 1)
    # Of a server with few requests too little is known to call it equal to one that is twice as fast.
    few = levelled(np.array([1.0, 1.4]), np.array([300.0, 21.0]))
    assert few == pytest.approx([1.0, 1.4])


def test_slow_services_are_remembered_as_many_requests_as_fast_ones() -> None:
    """Ten times slower services answer a tenth of the requests: as many requests show a change of theirs."""

    def seen_after(requests: int, answered: int) -> float:
        """τ of a server that has become three times slower, over its former one, after so many answers."""
        estimator, tau_s = ESTIMATORS["levelled"](TOPOLOGY), np.full(TOPOLOGY.shape, 0.01)
        before = [estimator.update(ServiceSamples.of(told_window(tau_s, requests=requests))) for _ in range(100)][-1]
        tau_s[:, 1] *= 3
        for _ in range(answered // requests):
            after = estimator.update(ServiceSamples.of(told_window(tau_s, requests=requests)))
        return float(after[0, 1] / before[0, 1])

    few, many = seen_after(20, 400), seen_after(100, 400)
    assert few == pytest.approx(many, abs=0.5)
    assert few > 2.0
    assert seen_after(1000, 1000) > 1.6, "with much traffic 40 % is forgotten within a second"


def test_with_little_traffic_more_requests_are_remembered_so_that_noise_decides_less() -> None:
    """Windows of equal service times whose means are noisy: the spread of what is learned. Fixed seed."""

    def spread(requests: int) -> float:
        estimator, generator = ESTIMATORS["levelled"](TOPOLOGY), np.random.default_rng(1)
        learned = []
        for _ in range(20_000 // requests):
            noise = generator.gamma(requests / 2, 2 / requests, TOPOLOGY.shape)
            window = told_window(0.01 * noise, requests=requests)
            learned.append(estimator.update(ServiceSamples.of(window)).mean(axis=1))
        return float(np.std(np.log(learned[len(learned) // 4 :]), axis=0).max())

    assert spread(10) < 0.8 * spread(100)


def test_ten_equal_servers_get_equal_shares() -> None:
    """Simulated as in the contract of any proxy, with a fixed seed; the noise of `idle` starves some of them."""
    types = {"short": (0.5, 0.010), "medium": (0.35, 0.020), "long": (0.15, 0.060)}
    servers = tuple(f"server-{number}:80" for number in range(10))
    topology = Topology(tuple(Group(name, name, "GET", f"/{name}", 2.0, servers) for name in types))
    script = Script(
        "equal", 1, 40.0, tuple(Stream(name, (RateStep(0.0, 1111 * share),)) for name, (share, _) in types.items()),
        (ServerProfile((1.0, 1.0, 1.0)),) * 10, tuple(mean_s for _, mean_s in types.values()), service_cv=0.5,
    )  # fmt: skip
    least = {}
    for name in ("idle", "levelled"):
        batch, steer, window = SimulatedBatch(topology, 1, "expected_delay"), steering(Learning(name))(), None
        batch.reset(0, script)
        counts = np.zeros(10, np.int64)
        for second in range(35):
            steer(batch, [script], window)
            window = batch.advance(1.0)
            counts += window.requests[0].sum(axis=0) * (second >= 3)
        least[name] = counts.min() / counts.mean()
    assert least["levelled"] > 0.95
    assert least["idle"] < 0.9
