"""Controllers of `expected_delay`: an estimator's service times in force after every window; and the oracle.

They are Controllers, not Policies: what an estimator remembers is more than an Observation carries.
"""

from __future__ import annotations

import numpy as np

from actuators.control import BalancingMethod, Control, ServiceTimes
from actuators.script import Script
from actuators.topology import Topology
from actuators.window import FloatArray, Window
from envs.estimators import ServiceSamples
from envs.rules import true_tau_s
from envs.service_times import DEFAULT_ESTIMATOR, estimator_named, first_control
from envs.workers import WorkersLearner


class EstimatorController:
    """Learns service times from every usable window and puts them in force; keeps them over a new block.

    Args:
        estimator: a name of `envs.service_times.ESTIMATORS`.
        workers: requests that a server serves at once, one number for all or ``[servers]``. Take it from
            the servers' configuration; when in doubt too low, never too high (the shared study, P2.4).
        learner: learns the workers instead, where the balancer counts by requests in flight; `workers` is
            then the factor on what it learns (`envs.workers.CAUTION` unless the servers are known to be FIFO).
        name: as it is shown in tables; by default says the estimator.

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
        told = {"type_means": "type means only"}.get(estimator, f"learned service times ({estimator})")
        self.name = name or told
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
