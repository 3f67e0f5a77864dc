"""A small trained bundle, advice made by hand, and a controller in front of a simulated testbed; for tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actuators.contract.admission import Admission, AdmissionNumbers
from actuators.contract.control import Weights
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from envs.environment.actions import ActionOptions
from envs.environment.problem import DecisionOptions
from envs.observation.features import LatencyMemory
from envs.simulator.testbed import SimulatedTestbed
from tests.support.problems import TOPOLOGY, demo_scenario, observed, problem
from tests.support.windows import hold_window
from tuning.options import ModelOptions
from tuning.policy.adviser import Advice, Adviser, Recent, State
from tuning.policy.bundle import Bundle
from tuning.policy.model import EquivariantNet, net_for
from tuning.steering import audit
from tuning.steering.audit import AuditLog
from tuning.steering.decide import Decision, Steering
from tuning.steering.options import AuditOptions, SteeringOptions

DEADLINES_S = np.array([0.05, 0.03, 0.03])
EQUAL = Weights.equal(TOPOLOGY)
UNEVEN = Weights(TOPOLOGY, np.tile([100, 50, 25], (3, 1)))


def trained_bundle(scale: float = 0.5, seed: int = 0) -> Bundle:
    """A bundle whose network says something else than the baseline."""
    torch.manual_seed(seed)
    net = EquivariantNet(problem().row_size, 3, ModelOptions(hidden=16))
    with torch.no_grad():
        for parameter in net.action[-1].parameters():
            parameter.normal_(0, scale)
    return Bundle(net, problem(), ModelOptions(hidden=16), {"seed": seed, "command": "a test"})


def of_other_groups() -> Bundle:
    """A good bundle, made for an NGINX whose upstreams have other names."""
    bundle = trained_bundle(seed=1)
    groups = tuple(replace(group, name=f"new_{group.name}") for group in bundle.problem.topology.groups)
    return replace(bundle, problem=replace(bundle.problem, topology=Topology(groups)))


def times_bundle(baseline: str = "idle", trained: bool = True) -> Bundle:
    """A residual on an estimator; untrained it is the estimator."""
    chosen = DecisionOptions(action=ActionOptions.model_validate({"baseline": baseline}))
    own = replace(observed().problem, options=chosen)
    net = trained_bundle().net if trained else net_for(own, ModelOptions())
    model = ModelOptions(hidden=16) if trained else ModelOptions()
    return Bundle(net, own, model, {"command": "a test"})


def advice(
    policy: Weights | None = UNEVEN, *, novelty: float = 0.3, baseline: Weights = EQUAL, problem: str = ""
) -> Advice:
    state = State(np.zeros(3, np.int64), np.ones((3, 1)), np.full(3, novelty))
    return Advice(policy, baseline, state, LatencyMemory.empty(TOPOLOGY.shape), problem)


def options(**values: Any) -> SteeringOptions:
    """Active, with quick guards; `guards` and other fields on top."""
    guards = {"reference_windows": 2, "min_between_reloads_s": 0.0, **values.pop("guards", {})}
    return SteeringOptions.model_validate({"mode": "active", **values, "guards": guards})


def counting_rule() -> Admission:
    """A rule of admission under which every request enters, and those beyond one in flight are counted."""
    ones = np.ones(len(TOPOLOGY.groups))
    return Admission(TOPOLOGY, "fixed", ones, ones, ones, ones / 3, AdmissionNumbers(multiple=1), percent=0.0)


class Run:
    """A controller without an NGINX: every change is in force at once; the clock moves 1 s per window."""

    def __init__(self, options: SteeringOptions, original: Weights = EQUAL) -> None:
        self.now_s = 1000.0
        self.steering = Steering(DEADLINES_S, original, options, self.now_s)
        self.decisions: list[Decision] = []

    def step(self, window: Window, given: Advice | None, interval_s: float = 1.0) -> Decision:
        self.now_s += interval_s
        decision = self.steering.decide(window, given, self.now_s)
        if decision.change:
            self.steering.applied(decision, self.now_s)
        self.decisions.append(decision)
        return decision

    def steps(self, windows: Sequence[Window], given: Advice | None) -> list[Decision]:
        return [self.step(window, given) for window in windows]

    def until_steering(self, window: Window, given: Advice) -> Decision:
        """Past the measurement of the baseline: the first decision of the policy's."""
        return next(self._until("policy", window, given))

    def _until(self, source: str, window: Window, given: Advice) -> Iterator[Decision]:
        for _ in range(50):
            decision = self.step(window, given)
            if decision.source == source:
                yield decision
        raise AssertionError(f"never '{source}': {self.decisions[-1]}")


def recorded(path: Path, count: int = 25, keep: AuditOptions | None = None) -> None:
    """A controller with a trained bundle in front of a simulated testbed, and its log."""
    adviser, recent = Adviser(trained_bundle()), Recent(1)
    run = Run(options())
    log = AuditLog(path, audit.header(run.steering, DEADLINES_S, run.now_s, {"name": "first"}), keep)
    with SimulatedTestbed(TOPOLOGY) as testbed:
        testbed.reset(demo_scenario(), 1)
        testbed.admit(counting_rule())
        for index in range(count):
            held = hold_window(80, state="off", held=7, refused=2, late=5, answered_ms=30)
            seen = replace(testbed.advance(1.0), weight=run.steering.in_force.values, holding=held)
            given = recent.ask(adviser, seen)
            if index == count // 2:
                run.steering.override = "paused"
            if index == count // 2 + 3:
                run.steering.override = ""
            before = run.steering.in_force
            run.step(seen, given)
            if run.decisions[-1].change:
                testbed.apply(run.steering.in_force)
            log.write(audit.decision_line(run.steering, before, seen, given, run.decisions[-1], run.now_s))
