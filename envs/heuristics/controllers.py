"""Controllers steer one testbed: windows in, controls out. A policy with its observer, an estimator, outlier ejection.

An estimator of service times is a controller and not a policy: it remembers more than an Observation carries.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from pydantic import Field

from actuators.contract.arrays import FloatArray
from actuators.contract.control import BalancingMethod, Control, ServiceTimes, Weights
from actuators.contract.script import Script
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from actuators.errors import ConfigError
from actuators.options import Options
from envs.estimators.base import ServiceSamples
from envs.estimators.registry import DEFAULT_ESTIMATOR, estimator_named, first_control
from envs.estimators.workers import WorkersLearner
from envs.heuristics.names import estimator_policy
from envs.heuristics.weights import Policy
from envs.observation.observer import Observation, Observer
from envs.scenarios.timeline import true_tau_s


class Controller(Protocol):
    """What steers a testbed: it observes windows and decides on controls; it may remember more than one window."""

    name: str
    method: BalancingMethod

    def begin(self, topology: Topology) -> Control:
        """The control to start with; an adaptive controller may return its last one."""
        ...

    def decide(self, window: Window) -> Control | None:
        """The next control, or None to leave the present one."""
        ...


class FixedController:
    """Equal weights for ever: NGINX as shipped with this balancing method."""

    def __init__(self, name: str, method: BalancingMethod) -> None:
        self.name, self.method = name, method

    def begin(self, topology: Topology) -> Control:
        return Weights.equal(topology)

    def decide(self, window: Window) -> Control | None:
        return None


class Recorded:
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

    Args:
        estimator: a name of `envs.estimators.registry.ESTIMATORS`.
        workers: requests that a server serves at once, one number for all or ``[servers]``. Take it from
            the servers' configuration; when in doubt too low, never too high (the shared study, P2.4).
        learner: learns the workers instead, where the balancer counts by requests in flight; `workers` is
            then the factor on what it learns (`envs.estimators.workers.CAUTION` unless the servers are FIFO).
        name: as it is shown in tables; by default that of `estimator_policy`.

    Raises:
        ConfigError: unknown estimator, or workers below 0.25.
    """

    method: BalancingMethod = "expected_delay"

    def __init__(
        self,
        topology: Topology,
        estimator: str = DEFAULT_ESTIMATOR,
        workers: float | FloatArray = 1.0,
        name: str | None = None,
        learner: WorkersLearner | None = None,
    ) -> None:
        self.name = name or estimator_policy(estimator)
        self._estimator, self._servers = estimator_named(estimator)(topology), topology.shape[1]
        self._learner, self._factor = learner, workers
        self._control = first_control(topology, self._workers(None, 0.0))

    def begin(self, topology: Topology) -> Control:
        return self._control

    def decide(self, window: Window) -> Control | None:
        if not window.usable or window.requests.sum() == 0:
            return None
        samples = ServiceSamples.of(window)
        by_in_flight = None if samples.delay is None else samples.delay.by_in_flight
        workers = self._workers(by_in_flight, samples.duration_s)
        self._control = ServiceTimes(window.topology, self._estimator.update(samples), workers)
        return self._control

    def _workers(self, by_in_flight: FloatArray | None, duration_s: float) -> FloatArray:
        learned = 1.0 if self._learner is None else self._learner.update(by_in_flight, duration_s)
        each = np.broadcast_to(np.asarray(self._factor * learned, float), (self._servers,))
        return each.copy() if self._learner is None else np.maximum(each, 0.25)


class TrueServiceTimes:
    """Oracle for simulations: each server's true service times at the start of every interval, and its true workers.

    Args:
        script: what the testbed plays; a judge's blocks need one controller per script.
    """

    name, method = "true service times", "expected_delay"

    def __init__(self, script: Script) -> None:
        self._script = script

    def begin(self, topology: Topology) -> Control:
        return self._at(topology, 0.0)

    def decide(self, window: Window) -> Control | None:
        return self._at(window.topology, window.end_s)

    def _at(self, topology: Topology, now_s: float) -> ServiceTimes:
        workers = np.array([float(profile.workers) for profile in self._script.servers])
        return ServiceTimes(topology, true_tau_s(self._script, now_s), workers)


class EjectionOptions(Options):
    """When a server is taken out, and for how long (as the shared study, S7, and Envoy)."""

    most_errors: float = Field(default=0.1, gt=0, lt=1)
    """Share of 5xx answers in a window, over all groups, above which a server is out."""
    least_requests: int = Field(default=20, ge=1)
    """Answers in a window below which nothing is concluded."""
    base_s: float = Field(default=4.0, gt=0)
    """Length of the first ejection; each further one is twice as long."""
    longest_s: float = Field(default=60.0, gt=0)
    """No ejection is longer, and after this time without one the count begins anew."""


class OutlierEjection:
    """Passes an inner controller's weights on, with at most one failing server `down` in all groups.

    Never the last usable server of a group. Only for methods that take weights: `expected_delay` scores
    errors itself, per request.

    Raises:
        ConfigError: the inner controller balances by `expected_delay`.
    """

    def __init__(self, inner: Controller, options: EjectionOptions | None = None) -> None:
        if inner.method == "expected_delay":
            raise ConfigError(
                "outlier ejection around expected_delay", remedy="leave it away: the method scores errors itself"
            )
        self.name, self.method = f"{inner.name} + ejection", inner.method
        self._inner, self._options = inner, options or EjectionOptions()
        self._weights: Weights | None = None
        self._out: int | None = None
        self._until_s = self._last_s = -np.inf
        self._count = 0

    def begin(self, topology: Topology) -> Control:
        self._out, self._until_s, self._last_s, self._count = None, -np.inf, -np.inf, 0
        self._weights = _weights(self._inner.begin(topology))
        return self._weights

    def decide(self, window: Window) -> Control | None:
        decision = self._inner.decide(window)
        before = self._out
        if window.usable:
            self._judge(window)
        if decision is None and self._out == before:
            return None
        if decision is not None:
            self._weights = _weights(decision)
        assert self._weights is not None, "begin comes before decide"
        return self._without(self._weights)

    def _judge(self, window: Window) -> None:
        o, now_s = self._options, window.end_s
        if self._out is not None and now_s >= self._until_s:
            self._out = None
        if self._out is not None:
            return
        requests, errors = window.requests.sum(axis=0), window.server_errors.sum(axis=0)
        ratio = np.where(requests >= o.least_requests, errors / np.maximum(requests, 1), 0.0)
        worst = int(ratio.argmax())
        if ratio[worst] <= o.most_errors or _is_needed(window, worst):
            return
        self._count = self._count + 1 if now_s - self._last_s < o.longest_s else 1
        self._out, self._last_s = worst, now_s
        self._until_s = now_s + min(o.base_s * 2.0 ** (self._count - 1), o.longest_s)

    def _without(self, weights: Weights) -> Weights:
        down = weights.down.copy()
        if self._out is not None:
            down[:, self._out] = weights.topology.mask[:, self._out]
        return Weights(weights.topology, weights.values, down)


def _is_needed(window: Window, server: int) -> bool:
    """True when some group would be left without a usable server."""
    others = window.topology.mask & ~window.down
    others[:, server] = False
    return bool((~others.any(axis=1)).any())


def _weights(control: Control) -> Weights:
    return control.as_weights() if isinstance(control, ServiceTimes) else control
