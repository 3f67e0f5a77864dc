"""Controllers steer one testbed: windows in, controls out. A policy with its observer, an estimator, an oracle.

An estimator of service times is a controller and not a policy: it remembers more than an Observation carries.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.control import BalancingMethod, CappedWeights, Control, ServiceTimes, Weights
from actuators.contract.late_binding import LateBinding
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from envs.estimators.base import ServiceSamples
from envs.estimators.capacity import CapacityLearner, unlimited_at_first, with_slots
from envs.estimators.registry import DEFAULT_ESTIMATOR, estimator_named, first_control
from envs.heuristics.names import estimator_policy
from envs.heuristics.weights import Policy
from envs.observation.observer import Observation, Observer


class Controller(Protocol):
    """What steers a testbed: it observes windows and decides on controls; it may remember more than one window.

    One that forgets everything after a block may say so by an attribute `stateless`; others are taken to learn.
    """

    name: str
    method: BalancingMethod

    def begin(self, topology: Topology) -> Control:
        """The control to start with; an adaptive controller may return its last one."""
        ...

    def decide(self, window: Window) -> Control | None:
        """The next control, or None to leave the present one."""
        ...


class FixedController:
    """The same weights for ever, equal ones when none are given: NGINX as shipped with this balancing method.

    Args:
        stateless: False where what it stands for learns by itself, as a balancer that is steered elsewhere.
    """

    def __init__(
        self, name: str, method: BalancingMethod, weights: Weights | None = None, *, stateless: bool = True
    ) -> None:
        self.name, self.method, self._weights, self.stateless = name, method, weights, stateless

    def begin(self, topology: Topology) -> Control:
        if self._weights is None:
            return Weights.equal(topology)
        if isinstance(self._weights, CappedWeights):
            return CappedWeights(topology, self._weights.values, self._weights.down, most=self._weights.most)
        return Weights(topology, self._weights.values, self._weights.down)

    def decide(self, window: Window) -> Control | None:
        return None


class RecordingPolicy:
    """A policy that remembers every observation it acted on, for reports about short runs."""

    def __init__(self, policy: Policy) -> None:
        self.name, self._policy = policy.name, policy
        self.seen: list[Observation] = []

    def act(self, observation: Observation) -> Control:
        self.seen.append(observation)
        return self._policy.act(observation)


class PolicyController:
    """Observes every usable window and asks the policy; keeps its last control over a new block.

    A window with a fault is not observed and changes nothing.

    Args:
        first: control before the first decision; equal weights when None.
    """

    def __init__(
        self, name: str, method: BalancingMethod, policy: Policy, observer: Observer, first: Control | None = None
    ) -> None:
        self.name, self.method, self._policy, self._observer = name, method, policy, observer
        self._control = first

    def begin(self, topology: Topology) -> Control:
        return self._control if self._control is not None else Weights.equal(topology)

    def decide(self, window: Window) -> Control | None:
        if not window.usable or window.requests.sum() == 0:
            return None
        self._control = self._policy.act(self._observer.observe_window(window))
        return self._control


class EstimatorController:
    """Learns service times from every usable window and puts them in force; keeps them over a new block.

    The method is `expected_delay`, or `late_binding` where requests are held.

    Args:
        estimator: a name of `envs.estimators.registry.ESTIMATORS`.
        workers: requests that a server serves at once, one number for all or ``[servers]``. Take it from
            the servers' configuration; when in doubt too low, never too high (docs/studies.md#workers-per-server).
        name: as it is shown in tables; by default that of `estimator_policy`.
        holding: how requests are held; None where they are sent at once.
        learned_slots: slots are those of the workers that are learned, unlimited before, shared by so many balancers;
            None for those of `holding`.

    Raises:
        ConfigError: unknown estimator, or workers below 0.25.
    """

    def __init__(
        self,
        topology: Topology,
        estimator: str = DEFAULT_ESTIMATOR,
        workers: float | FloatArray = 1.0,
        name: str | None = None,
        holding: LateBinding | None = None,
        *,
        learned_slots: int | None = None,
    ) -> None:
        self.name = name or estimator_policy(estimator)
        self.method: BalancingMethod = "expected_delay" if holding is None else "late_binding"
        self._capacity = None if learned_slots is None else CapacityLearner(topology)
        self._holding = holding if learned_slots is None else unlimited_at_first(holding)
        self._balancers = learned_slots or 1
        self._estimator = estimator_named(estimator)(topology)
        self._workers = np.broadcast_to(np.asarray(workers, float), (topology.shape[1],)).copy()
        self._control = replace(first_control(topology, self._workers), holding=self._holding)

    def begin(self, topology: Topology) -> Control:
        return self._control

    def decide(self, window: Window) -> Control | None:
        if not window.usable or window.requests.sum() == 0:
            return None
        samples = ServiceSamples.of(window)
        tau_s = self._estimator.update(samples)
        if self._capacity is not None and self._holding is not None:
            found = self._capacity.update(samples, tau_s, self._holding.slots * self._balancers)
            self._holding = with_slots(self._holding, found, self._balancers)
        self._control = ServiceTimes(window.topology, tau_s, self._workers, self._holding)
        return self._control
