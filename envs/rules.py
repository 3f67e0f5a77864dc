"""Ways to balance that the study compares: a method, what steers it, and how NGINX is set up for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from actuators.control import MAX_WEIGHT, BalancingMethod
from actuators.errors import ConfigError, closest
from actuators.script import Script
from envs.baselines import inverse_latency_shares
from envs.batch import OracleMethod, SimulatedBatch, SimulationOptions
from envs.split import optimal_shares
from envs.window_batch import WindowBatch

FloatArray = NDArray[np.float64]

Steering = Callable[[SimulatedBatch, Sequence[Script], WindowBatch | None], None]
"""Called before every interval with the window before it (None at first); sets the batch's control."""


@dataclass(frozen=True)
class Rule:
    """A way to balance: a method, what steers it, and how NGINX is set up for it."""

    name: str
    method: BalancingMethod | OracleMethod
    steering: Callable[[], Steering] | None = None
    options: SimulationOptions = field(default_factory=lambda: SimulationOptions(retry_post=True))


def inverse_latency() -> Steering:
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


def type_means() -> Steering:
    """`expected_delay` with nothing learned: every server is believed to be as fast as the type's mean."""

    def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
        if window is None:
            tau_s = np.array([np.tile(np.array(s.mean_service_s)[:, None], len(s.servers)) for s in scripts])
            batch.set_service_times(tau_s, workers_of(scripts))

    return steer


def true_service_times() -> Steering:
    """`expected_delay` with each server's true service times, read anew before every interval."""

    def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
        now_s = window.end_s[0] if window is not None else 0.0
        batch.set_service_times(np.array([true_tau_s(script, now_s) for script in scripts]), workers_of(scripts))

    return steer


def optimal_split() -> Steering:
    """Weights in proportion to the best split at the true speeds and rates, anew before every interval."""

    def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
        now_s = window.end_s[0] if window is not None else 0.0
        _set_shares(batch, np.array([optimal_shares(script, now_s) for script in scripts]))

    return steer


def true_speeds() -> Steering:
    """Weights in proportion to each server's true speed at each type, anew before every interval."""

    def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
        now_s = window.end_s[0] if window is not None else 0.0
        _set_shares(batch, 1.0 / np.array([true_tau_s(script, now_s) for script in scripts]))

    return steer


def _set_shares(batch: SimulatedBatch, shares: FloatArray) -> None:
    weights = np.rint(MAX_WEIGHT * shares / shares.max(axis=2, keepdims=True)).clip(1, MAX_WEIGHT)
    batch.set_weights(np.where(batch.topology.mask, weights, 0).astype(np.int64))


def true_tau_s(script: Script, at_s: float) -> FloatArray:
    """Mean service times ``[groups, servers]`` of a script's servers at a moment, interference included."""
    speeds = np.array([profile.speeds for profile in script.servers]).T
    present = np.ones(len(script.servers))
    for change in script.behaviours:
        if change.at_s > at_s:
            break
        present[change.server] = change.speed
    tau_s: FloatArray = np.array(script.mean_service_s)[:, None] / (speeds * present)
    return tau_s


def workers_of(scripts: Sequence[Script]) -> FloatArray:
    """Workers of every server, ``[scripts, servers]``."""
    return np.array([[float(profile.workers) for profile in script.servers] for script in scripts])


def rule_named(name: str) -> Rule:
    """A rule of `RULES`; raises ConfigError with the closest match."""
    if name not in RULES:
        raise ConfigError(f"unknown rule '{name}'", remedy=closest(name, RULES))
    return RULES[name]


# The study's simulator also tried lost POSTs elsewhere, and `expected_delay` shares each NGINX's memory.
_PLAIN = SimulationOptions(retry_post=True)
_SHARED = SimulationOptions(retry_post=True, workers_sharing_memory=2)

RULES = {
    rule.name: rule
    for rule in (
        Rule("round_robin", "round_robin", None, _PLAIN),
        Rule("least_conn", "least_conn", None, _PLAIN),
        Rule("random_two", "random_two", None, _PLAIN),
        Rule("inverse_latency", "least_conn", inverse_latency, _PLAIN),
        Rule("optimal_round_robin", "round_robin", optimal_split, _PLAIN),
        Rule("true_speeds", "least_conn", true_speeds, _PLAIN),
        Rule("type_means", "expected_delay", type_means, _SHARED),
        Rule("true_times", "expected_delay", true_service_times, _SHARED),
        Rule("shortest_delay", "shortest_delay", None, _PLAIN),
        Rule("join_shortest", "join_shortest", None, _PLAIN),
        Rule("central_queue", "central_queue", None, _PLAIN),
    )
}
"""The study's rules by name; `inverse_latency` is on least_conn."""
