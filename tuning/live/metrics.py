"""Prometheus metrics of testbeds and trials, exported by Ray as `ray_deepsched_…` (docs/ray-facts.md#metrics)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge

from actuators.contract.histogram import percentile_ms
from actuators.contract.window import Window
from envs.observation.observer import Observation
from tuning.live.metric_names import COUNTERS, GAUGES, PREFIX, TRIAL_GAUGES


class TestbedMetrics:
    """The metrics of one testbed, with its name as the tag `testbed`."""

    def __init__(self, testbed: str) -> None:
        self._tags = {"testbed": testbed}
        self._counters = {name: Counter(PREFIX + name, text, ("testbed",)) for name, text in COUNTERS.items()}
        self._gauges = {name: Gauge(PREFIX + name, text, ("testbed",)) for name, text in GAUGES.items()}

    def fault(self) -> None:
        """Counts an interval that was lost."""
        self._counters["faults"].inc(1.0, self._tags)

    def window(
        self, window: Window, observation: Observation, terms: Mapping[str, Any], reward: float, *, changed: bool
    ) -> None:
        """Records a usable window, its observation, its reward and the terms of the reward."""
        requests = int(window.requests.sum())
        self._counters["windows"].inc(1.0, self._tags)
        if requests:
            self._counters["requests"].inc(float(requests), self._tags)
        if changed:
            self._counters["weight_changes"].inc(1.0, self._tags)
        values = {
            "art_per_request": float(terms["art"]),
            "mean_ms": float(window.response_ms_sum.sum()) / max(requests, 1),
            "novelty": float(observation.novelty.max(initial=0.0)),
            "reward": reward,
        }
        if window.client is not None and window.client.latency_counts.sum() > 0:
            values["client_p99_ms"] = float(percentile_ms(window.client.latency_counts.sum(axis=0), 99.0))
        for name, value in values.items():
            self._gauges[name].set(value, self._tags)


class TrialMetrics:
    """The metrics of one trial of a sweep, with its name as the tag `trial`."""

    def __init__(self, trial: str) -> None:
        self._tags = {"trial": trial}
        self._gauges = {name: Gauge(PREFIX + name, text, ("trial",)) for name, text in TRIAL_GAUGES.items()}

    def report(self, score: float, steps: int) -> None:
        """Sets the gauges after a training iteration."""
        self._gauges["trial_score"].set(score, self._tags)
        self._gauges["trial_steps"].set(float(steps), self._tags)
