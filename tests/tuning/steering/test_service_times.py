"""Steering the service times of expected_delay: limits, records, replay and a Serve in between, without an NGINX."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actuators.contract.control import Control, ServiceTimes, Weights
from actuators.errors import DataError
from envs.heuristics.controllers import EstimatorController
from envs.simulator.testbed import SimulatedTestbed
from rayjobs.serve.answers import advise, read_body
from rayjobs.serve.bundles import LoadedBundle
from rayjobs.steer.advisers import ServeAdviser
from tests.support.problems import TOPOLOGY, demo_scenario
from tests.support.steering_cases import DEADLINES_S, EQUAL, Run, advice, options, times_bundle
from tests.support.windows import window
from tuning.policy.adviser import Advice, Adviser, Recent
from tuning.steering import audit
from tuning.steering.audit import AuditLog, replay
from tuning.steering.control_json import from_json, to_json
from tuning.steering.limits import differ
from tuning.steering.options import GuardOptions

WORKERS = 4.0


def times(*rows: tuple[float, float, float]) -> ServiceTimes:
    return ServiceTimes(TOPOLOGY, np.array(rows) / 1e3, np.full(3, WORKERS))


MEASURED = times((10, 20, 40), (4, 4, 8), (3, 6, 3))


def given(policy: ServiceTimes | None, baseline: Control = MEASURED) -> Advice:
    return replace(advice(None), policy=policy, baseline=baseline)


def steered(**guards: Any) -> Run:
    run = Run(options(guards=guards))
    run.until_steering(window(), given(MEASURED))
    return run


def in_force(run: Run) -> np.ndarray:
    control = run.steering.in_force
    assert isinstance(control, ServiceTimes)
    return control.tau_s


def test_it_goes_from_weights_to_service_times_in_limited_steps_and_arrives() -> None:
    run = steered(largest_step=1.5)
    first = in_force(run)
    # Weights know no times: the first step begins where all servers of a group are alike.
    mean = np.exp(np.log(MEASURED.tau_s).mean(axis=1, keepdims=True))
    assert first == pytest.approx(np.clip(MEASURED.tau_s, mean / 1.5, mean * 1.5))
    assert "step" in run.decisions[-1].guards
    before = first
    for _ in range(5):
        run.step(window(), given(MEASURED))
        assert (np.abs(np.log(in_force(run) / before)) <= np.log(1.5) + 1e-9).all()
        before = in_force(run)
    assert in_force(run) == pytest.approx(MEASURED.tau_s)
    assert not run.decisions[-1].change


def test_shadow_decides_times_and_changes_nothing() -> None:
    run = Run(options(mode="shadow"))
    decision = run.step(window(), given(MEASURED))
    assert isinstance(decision.control, ServiceTimes)
    assert not decision.change
    assert run.steering.in_force == EQUAL


def test_floor_and_cap_hold_for_service_times() -> None:
    wild = times((1, 1000, 1000), (4, 4, 8), (3, 3, 500))
    run = steered(largest_step=1e9, floor=5, cap_share=0.8)
    run.step(window(), given(wild))
    tau = in_force(run)
    speeds = 1 / tau
    assert (tau.max(axis=1) / tau.min(axis=1) <= 100 / 5 + 1e-9).all()
    assert ((speeds / speeds.sum(axis=1, keepdims=True)).max(axis=1) <= 0.8 + 1e-9).all()
    assert {"floor", "cap"} <= set(run.decisions[-1].guards)


def test_a_revert_puts_back_the_weights_and_pausing_keeps_the_times() -> None:
    run = steered()
    held = run.steering.in_force
    run.steering.override = "paused"
    assert run.step(window(), given(times((1, 1, 1), (1, 1, 1), (1, 1, 1)))).control is held
    run.steering.override = "reverted"
    decision = run.step(window(), given(MEASURED))
    assert decision.change
    assert decision.control == EQUAL
    assert not run.step(window(), given(MEASURED)).change


def test_the_estimator_may_stand_in_for_the_policy() -> None:
    run = Run(options(baseline="estimator"))
    decision = run.step(window(), given(None))
    assert decision.source == "baseline"
    assert not differ(decision.control, MEASURED)


def test_a_server_out_of_rotation_stays_out_and_limits_no_other() -> None:
    down = np.zeros(TOPOLOGY.shape, bool)
    down[:, 2] = True
    run = steered(largest_step=1e9, floor=5, cap_share=0.8)
    run.steering.adopt(replace(MEASURED, down=down), external=True, original=replace(EQUAL, down=down))
    run.until_steering(window(), given(times((1, 1.2, 1000), (4, 4, 8), (3, 3, 500))))
    control = run.steering.in_force
    assert isinstance(control, ServiceTimes)
    assert control.down.tolist() == down.tolist()
    # Of the two that are left neither is too fast; the third one's time waits for its return.
    assert control.tau_s == pytest.approx(np.array([[1, 1.2, 1000], [4, 4, 8], [3, 3, 500]]) / 1e3)
    assert not {"floor", "cap"} & set(run.decisions[-1].guards)
    again = from_json(to_json(control), TOPOLOGY)
    assert not differ(again, control)
    assert differ(again, replace(control, down=np.zeros(TOPOLOGY.shape, bool)))


def test_all_late_goes_to_what_is_measured_not_to_equal() -> None:
    run = Run(options(guards={"overload_pull": 1.0, "largest_step": 1e9, "art_margin": 1e9}))
    late = window(latency_ms=5000.0)
    run.until_steering(late, given(times((40, 20, 10), (8, 4, 4), (3, 6, 3))))
    assert in_force(run) == pytest.approx(MEASURED.tau_s)
    assert "overload" in run.decisions[-1].alarms


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("times") / "audit.jsonl"
    adviser, run = Adviser(times_bundle(), WORKERS), Run(options(guards={"novel_above": 1e9}))
    recent, record = Recent(1), AuditLog(path, audit.header(run.steering, DEADLINES_S, run.now_s, {}))
    for seen in simulated(run):
        before = run.steering.in_force
        asked = recent.ask(adviser, seen)
        run.step(seen, asked)
        record.write(audit.decision_line(run.steering, before, seen, asked, run.decisions[-1], run.now_s))
    return path


def simulated(run: Run) -> Iterator[Any]:
    """Windows of a simulated testbed that follows the controller."""
    with SimulatedTestbed(TOPOLOGY, "expected_delay") as testbed:
        testbed.reset(demo_scenario(), 1)
        for _ in range(12):
            if isinstance(run.steering.in_force, ServiceTimes):
                testbed.apply(run.steering.in_force)
            yield replace(testbed.advance(1.0), weight=run.steering.in_force.as_weights().values)


def test_a_record_of_service_times_is_decided_alike(log: Path) -> None:
    adviser = Adviser(times_bundle(), WORKERS)
    for again in (list(replay(log)), list(replay(log, adviser))):
        assert len(again) == 12
        assert [one.line["reason"] for one in again if not one.same] == []
        assert all(one.intact for one in again)
    lines = [json.loads(line) for line in log.read_text().splitlines()][1:]
    assert "tau_s" in lines[-1]["exact"]["weights"]
    # Readers that know nothing of service times see weights.
    assert all(1 <= weight <= 100 for row in lines[-1]["weights"] for weight in row)
    other = Adviser(times_bundle(trained=False), WORKERS)
    assert any(not one.same for one in replay(log, other))


@pytest.mark.parametrize("name", ["idle", "ratio"])
def test_a_stateless_copy_knows_what_the_estimator_has_learned(name: str) -> None:
    """Asked window by window with its own memory, it says what a controller with a memory of its own says."""
    adviser, recent = Adviser(times_bundle(name, trained=False), WORKERS), Recent(1)
    controller = EstimatorController(TOPOLOGY, name, WORKERS)
    run = Run(options())
    for seen in simulated(run):
        mine, theirs = recent.ask(adviser, seen), controller.decide(seen)
        assert isinstance(mine.policy, ServiceTimes)
        assert isinstance(mine.baseline, ServiceTimes)
        assert isinstance(theirs, ServiceTimes)
        assert mine.policy.tau_s == pytest.approx(theirs.tau_s)
        assert mine.baseline.tau_s == pytest.approx(theirs.tau_s)
        assert np.array_equal(mine.policy.workers, theirs.workers)


def test_serve_answers_with_service_times(tmp_path: Path) -> None:
    times_bundle().save(tmp_path / "bundle")
    served = LoadedBundle(tmp_path / "bundle")
    own, here, there = served.own, Recent(1), Recent(1)

    def post(body: dict[str, Any]) -> dict[str, Any]:
        result = advise(served, read_body(json.dumps(body).encode()), GuardOptions())
        answer: dict[str, Any] = json.loads(json.dumps(result))
        return answer

    asked = ServeAdviser(post, own, TOPOLOGY, 30.0)
    for seen in simulated(Run(options())):
        ours, theirs = here.ask(own, seen), there.ask(asked, seen)
        assert theirs.by == "serve", asked.problem
        assert isinstance(theirs.policy, ServiceTimes)
        assert isinstance(ours.policy, ServiceTimes)
        assert np.array_equal(theirs.policy.tau_s, ours.policy.tau_s)
        assert isinstance(theirs.baseline, ServiceTimes)
    asked.close()


def test_a_window_without_samples_is_an_error_of_ours() -> None:
    with pytest.raises(DataError, match="no samples of service times"):
        Adviser(times_bundle()).advise([window()])


def test_whatever_comes_service_times_are_legal() -> None:
    generator = np.random.default_rng(1)
    run = steered(largest_step=3.0)
    for _ in range(200):
        wild = ServiceTimes(TOPOLOGY, np.exp(generator.normal(-5, 4, (3, 3))), np.full(3, WORKERS))
        run.step(window(latency_ms=float(np.exp(generator.normal(2, 3)))), given(wild))
        control = run.steering.in_force
        if isinstance(control, ServiceTimes):
            assert np.isfinite(control.tau_s).all()
            assert (control.tau_s > 0).all()
        else:
            assert isinstance(control, Weights)
