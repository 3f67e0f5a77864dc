"""Rules that the studies compare: a balancing method, what steers the simulated batch, and how NGINX is set up.

`envs.study.judge` plays them (docs/studies.md#how-the-studies-simulate).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

import numpy as np

from actuators.contract.arrays import FloatArray, IntArray
from actuators.contract.control import MAX_WEIGHT, BalancingMethod, Weights
from actuators.contract.late_binding import ENOUGH, UNLIMITED, LateBinding, LateBindingNumbers, slots_for
from actuators.contract.request_cost import RequestCost
from actuators.contract.script import Script
from actuators.errors import ConfigError, closest
from envs.environment.problem import DecisionProblem
from envs.environment.study_setup import PLAIN, SHARED_MEMORY
from envs.estimators.base import FIRST_GUESS_S, Estimator, ServiceSamples
from envs.estimators.capacity import CapacityLearner, with_slots
from envs.estimators.registry import DEFAULT_ESTIMATOR, estimator_named
from envs.estimators.workers import WorkersLearner
from envs.heuristics.names import policy_name
from envs.observation.features import inverse_latency_shares
from envs.observation.observer import Observation, Observer
from envs.scenarios.timeline import true_tau_s
from envs.simulator.batch import OracleMethod, RivalMethod, SimulatedBatch, SimulationOptions
from envs.simulator.rivals import RIVAL_CODES
from envs.simulator.window_batch import WindowBatch
from envs.study.split import optimal_shares

BatchController = Callable[[SimulatedBatch, Sequence[Script], WindowBatch | None], None]
"""Called before every interval with the window before it (None at first); sets the batch's control."""


@dataclass(frozen=True)
class Rule:
    """A way to balance: a method, what steers it, and how NGINX is set up for it."""

    name: str
    method: BalancingMethod | OracleMethod | RivalMethod
    steering: Callable[[], BatchController] | None = None
    options: SimulationOptions = PLAIN


def inverse_latency() -> BatchController:
    """Weight ∝ 1 / EWMA(0.5) of the mean response time per group and server; an error counts ten times."""
    smooth: FloatArray | None = None

    def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
        nonlocal smooth
        if window is None:
            return
        errors = window.responses[..., 4]
        mean_s = window.response_ms_sum / 1e3 / np.where(window.requests > 0, window.requests, np.nan)
        seen_s = np.maximum(mean_s * (1 + 9 * errors / np.maximum(window.requests, 1)), 1e-4)
        smooth = seen_s if smooth is None else np.where(
            np.isnan(seen_s), smooth, np.where(np.isnan(smooth), seen_s, 0.5 * (smooth + seen_s))
        )  # fmt: skip
        _set_shares(batch, inverse_latency_shares(smooth))

    return steer


def shared_inverse_latency(*, capped: bool) -> Callable[[], BatchController]:
    """As `inverse_latency` for one upstream: latencies relative to the type's mean, one weight per server.

    Args:
        capped: servers at half the mean speed and below get `max_conns`, their workers × relative speed.
    """

    def start() -> BatchController:
        smooth: FloatArray | None = None

        def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
            nonlocal smooth
            if window is None:
                return
            errors = window.responses[..., 4]
            seconds = window.response_ms_sum / 1e3 * (1 + 9 * errors / np.maximum(window.requests, 1))
            requests = window.requests.sum(axis=2, keepdims=True)
            mean_s = np.maximum(seconds.sum(axis=2, keepdims=True), 1e-6) / np.maximum(requests, 1)
            counts = np.where(window.requests.sum(axis=1) > 0, window.requests.sum(axis=1), np.nan)
            seen = np.maximum((seconds / mean_s).sum(axis=1) / counts, 1e-3)
            smooth = seen if smooth is None else np.where(
                np.isnan(seen), smooth, np.where(np.isnan(smooth), seen, 0.5 * (smooth + seen))
            )  # fmt: skip
            known = np.where(np.isnan(smooth), np.nanmean(smooth, axis=1, keepdims=True), smooth)
            speeds = 1.0 / np.where(np.isnan(known), 1.0, known)
            _set_shares(batch, np.broadcast_to(speeds[:, None, :], (batch.size, *batch.topology.shape)))
            if capped:
                relative = speeds / speeds.mean(axis=1, keepdims=True)
                most = np.maximum(np.rint(workers_of(scripts) * relative), 1)
                batch.limit_connections(np.where(relative <= 0.5, most, UNLIMITED).astype(np.int64))

        return steer

    return start


def type_means() -> BatchController:
    """`expected_delay` with nothing learned: every server is believed to be as fast as the type's mean."""

    def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
        if window is None:
            tau_s = np.array([np.tile(np.array(s.mean_service_s)[:, None], len(s.servers)) for s in scripts])
            batch.set_service_times(tau_s, workers_of(scripts))

    return steer


def true_service_times() -> BatchController:
    """`expected_delay` with each server's true service times, read before every interval."""

    def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
        now_s = window.end_s[0] if window is not None else 0.0
        batch.set_service_times(np.array([true_tau_s(script, now_s) for script in scripts]), workers_of(scripts))

    return steer


def optimal_split() -> BatchController:
    """Weights in proportion to the best split at the true speeds and rates, computed before every interval."""

    def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
        now_s = window.end_s[0] if window is not None else 0.0
        _set_shares(batch, np.array([optimal_shares(script, batch.topology, now_s) for script in scripts]))

    return steer


def true_speeds() -> BatchController:
    """Weights in proportion to each server's true speed at each type, computed before every interval."""

    def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
        now_s = window.end_s[0] if window is not None else 0.0
        _set_shares(batch, 1.0 / np.array([true_tau_s(script, now_s) for script in scripts]))

    return steer


def workers_of(scripts: Sequence[Script]) -> FloatArray:
    """Workers of every server, ``[scripts, servers]``."""
    return np.array([[float(profile.workers) for profile in script.servers] for script in scripts])


@dataclass(frozen=True)
class Learning:
    """How service times are learned and what is believed of the servers.

    Attributes:
        estimator: a name of `envs.estimators.registry.ESTIMATORS`.
        delay_windows: windows by which what was observed comes too late.
        worker_factor: believed workers over true ones, or over learned ones.
        first_workers: the workers are learned from this start; None when they are known.
        workers: what is believed of every server in place of the true ones.
    """

    estimator: str
    delay_windows: int = 0
    worker_factor: float = 1.0
    first_workers: float | None = None
    workers: float | None = None

    def rule(self, options: SimulationOptions = SHARED_MEMORY) -> Rule:
        """This way of learning as a rule that can be judged."""
        counting = options.model_copy(update={"count_by_in_flight": self.first_workers is not None})
        return Rule(self._name(), "expected_delay", steering(self), counting)

    def _name(self) -> str:
        late = f", {self.delay_windows} s late" if self.delay_windows else ""
        workers = f", workers × {self.worker_factor:g}" if self.worker_factor != 1.0 else ""
        learned = f", workers learned from {self.first_workers:g}" if self.first_workers is not None else ""
        given = f", {self.workers:g} workers" if self.workers is not None else ""
        return f"{self.estimator}{late}{learned}{given}{workers}"


def steering(learning: Learning) -> Callable[[], BatchController]:
    """Starts from equal service times; one estimator for all environments and, in each, for all its contexts."""

    def start() -> BatchController:
        waiting: deque[WindowBatch] = deque()
        estimator: Estimator | None = None
        learner: WorkersLearner | None = None
        workers = np.ones(0)

        def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
            nonlocal estimator, learner, workers
            if window is None or estimator is None:
                learner = WorkersLearner(batch.topology, (batch.size,), learning.first_workers or 1.0)
                workers = workers_of(scripts) if learning.first_workers is None else learner.update(None, 0.0)
                if learning.workers is not None:
                    workers = np.full(workers.shape, learning.workers)
                workers = np.maximum(workers * learning.worker_factor, 0.25)
                estimator = estimator_named(learning.estimator)(batch.topology, (batch.size,))
                batch.set_service_times(np.full((batch.size, *batch.topology.shape), FIRST_GUESS_S), workers)
                return
            waiting.append(window)
            if len(waiting) <= learning.delay_windows:
                return
            samples = ServiceSamples.of(waiting.popleft())
            if learner is not None and learning.first_workers is not None:
                learned = learner.update(samples.seen().by_in_flight, samples.duration_s)
                workers = np.maximum(learned * learning.worker_factor, 0.25)
            batch.set_service_times(estimator.update(samples), workers)

        return steer

    return start


def late_binding(
    deadlines_s: FloatArray | None, numbers: LateBindingNumbers, how: Learning, options: SimulationOptions,
    costs: RequestCost | None = None, *, learned_slots: bool = False,
) -> Rule:  # fmt: skip
    """`late_binding` with learned service times, and slots for the workers believed (docs/studies.md#late-binding).

    Args:
        deadlines_s: ``[groups]``; those of each script when None.
        costs: what requests are believed to cost; all the same when None.
        learned_slots: slots are for workers that are learned, without limit before, as `late_binding_learned` has them;
            those of `how` tell waits and idle workers all the same.
    """
    believed = RequestCost() if costs is None else costs

    def start() -> BatchController:
        learn, learners, in_force = steering(how)(), list[CapacityLearner](), list[IntArray]()

        def binding(batch: SimulatedBatch, script: Script, workers: FloatArray) -> LateBinding:
            return LateBinding(
                batch.topology, np.array(script.deadlines_s) if deadlines_s is None else deadlines_s,
                slots_for(workers, numbers.slots_per_worker, batch.contexts_of(script)), numbers, costs=believed,
            )  # fmt: skip

        def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
            learn(batch, scripts, window)
            bindings = list(map(binding, [batch] * batch.size, scripts, batch.believed_workers()))
            if learned_slots and window is None:
                learners[:] = [CapacityLearner(batch.topology) for _ in scripts]
                bindings = [replace(each, slots=np.full_like(each.slots, ENOUGH)) for each in bindings]
            elif learned_slots and window is not None:
                samples, tau_s = ServiceSamples.of(window), batch.service_times()
                bindings = [
                    with_slots(
                        each, learner.update(samples.of_row(index), tau_s[index], slots), batch.contexts_of(script)
                    )
                    for index, (each, learner, script, slots) in enumerate(
                        zip(bindings, learners, scripts, in_force, strict=True)
                    )
                ]
            batch.hold(bindings)
            in_force[:] = [each.slots * batch.contexts_of(s) for each, s in zip(bindings, scripts, strict=True)]

        return steer

    learned = how.rule(options)
    known = f", costs of {len(costs.in_force())} groups" if costs is not None else ""
    worker = "learned worker" if learned_slots else "worker"
    name = f"late_binding {numbers.order}, {numbers.slots_per_worker:g} slots per {worker}, {learned.name}{known}"
    return Rule(name, "late_binding", start, learned.options)


def held(binding: LateBinding, how: Learning, options: SimulationOptions) -> Rule:
    """`late_binding` with learned service times, and the same slots, order and deadlines for ever."""

    def start() -> BatchController:
        learn = steering(how)()

        def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
            learn(batch, scripts, window)
            if window is None:
                batch.hold([binding] * batch.size)

        return steer

    learned = how.rule(options)
    return Rule(f"late_binding {binding.numbers.order}, {learned.name}", "late_binding", start, learned.options)


class SteeringPolicy(Protocol):
    """A policy on batched observations: integer weights or service times in seconds, ``[n, groups, servers]``."""

    def weights(self, observation: Observation) -> IntArray: ...
    def service_times(self, observation: Observation) -> FloatArray: ...


class BaselinePolicy:
    """A residual of 0: the heuristic that a learned policy of this problem stands on."""

    def __init__(self, problem: DecisionProblem) -> None:
        self._problem, self._action = problem, np.zeros(problem.action_codec.size)

    def weights(self, observation: Observation) -> IntArray:
        return self._problem.weights(self._action, observation)

    def service_times(self, observation: Observation) -> FloatArray:
        return self._problem.service_times(self._action, observation)


def policy_steering(
    policy: SteeringPolicy, problem: DecisionProblem, workers: FloatArray | None = None, between_s: float = 0.0
) -> BatchController:
    """Windows in, the policy's weights or service times out.

    Args:
        workers: ``[servers]`` that are believed; the true ones when None.
        between_s: seconds for which weights stay in force at least; windows are observed all the same.
    """
    observer: Observer | None = None
    changed_s = -np.inf

    def believed(scripts: Sequence[Script]) -> FloatArray:
        return workers_of(scripts) if workers is None else np.tile(workers, (len(scripts), 1))

    def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
        nonlocal observer, changed_s
        if window is None:
            observer, changed_s = problem.observer((len(scripts),)), -np.inf
            if problem.options.action.estimator is not None:
                first_s = np.full((batch.size, *problem.topology.shape), FIRST_GUESS_S)
                batch.set_service_times(first_s, believed(scripts))
            return
        assert observer is not None
        seen = observer.observe(window, float(window.end_s[0] - window.start_s[0]), window.weight)
        if seen.tau_s is None:
            now_s = float(window.end_s[0])
            if now_s - changed_s >= between_s:
                batch.set_weights(policy.weights(seen))
                changed_s = now_s
        else:
            batch.set_service_times(policy.service_times(seen), believed(scripts))

    return steer


def fixed_weights(weights: Weights) -> BatchController:
    """The same weights for ever."""

    def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
        if window is None:
            shape = (batch.size, *weights.topology.shape)
            batch.set_weights(np.broadcast_to(weights.values, shape), weights.down)

    return steer


RULES = {
    rule.name: rule
    for rule in (
        Rule("round_robin", "round_robin", None, PLAIN),
        Rule("least_conn", "least_conn", None, PLAIN),
        Rule("random_two", "random_two", None, PLAIN),
        Rule("inverse_latency", "least_conn", inverse_latency, PLAIN),
        Rule("optimal_round_robin", "round_robin", optimal_split, PLAIN),
        Rule("true_speeds", "least_conn", true_speeds, PLAIN),
        Rule("expected_delay", "expected_delay", steering(Learning(DEFAULT_ESTIMATOR)), SHARED_MEMORY),
        Rule("unlevelled", "expected_delay", steering(Learning("idle")), SHARED_MEMORY),
        Rule("expected_delay_static", "expected_delay", type_means, SHARED_MEMORY),
        Rule("true_times", "expected_delay", true_service_times, SHARED_MEMORY),
        Rule("shortest_delay", "shortest_delay", None, PLAIN),
        Rule("join_shortest", "join_shortest", None, PLAIN),
        Rule("central_queue", "central_queue", None, PLAIN),
        *(Rule(name, cast(RivalMethod, name), None, SHARED_MEMORY) for name in RIVAL_CODES),
        Rule("shared_weights", "shared_least_conn", shared_inverse_latency(capped=False), SHARED_MEMORY),
        Rule("shared_capped", "shared_least_conn", shared_inverse_latency(capped=True), SHARED_MEMORY),
    )
}
"""Rules by name; `inverse_latency` is on least_conn."""


def rule_named(name: str) -> Rule:
    """A rule of `RULES`, also by a former name; raises ConfigError with the closest match."""
    present = policy_name(name)
    if present not in RULES:
        raise ConfigError(f"unknown rule '{name}'", remedy=closest(name, RULES))
    return RULES[present]


def _set_shares(batch: SimulatedBatch, shares: FloatArray) -> None:
    shares = np.where(batch.topology.mask, shares, 0.0)
    weights = np.rint(MAX_WEIGHT * shares / shares.max(axis=2, keepdims=True)).clip(1, MAX_WEIGHT)
    batch.set_weights(weights.astype(np.int64))
