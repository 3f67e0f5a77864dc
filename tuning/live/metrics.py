"""Prometheus metrics of testbeds and trials, exported by Ray as `ray_deepsched_…` (docs/ray-facts.md#metrics)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import ray
from ray.util.metrics import Counter, Gauge

from actuators.contract.arrays import BoolArray, FloatArray, IntArray
from actuators.contract.window_stack import WindowStack
from envs.observation.observer import Observation
from tuning.live.metric_names import COUNTERS, GAUGES, GROUP, NODE, PREFIX, TRIAL_GAUGES, labels


@dataclass(frozen=True, eq=False)
class SteppedWindows:
    """One step of all testbeds of an environment. Leading axis ``[n]``.

    Attributes:
        usable: whose window counts.
        late: whose answer was not used because it came too late; they are not usable.
        lost: whose interval was lost, those that are late included.
        art, reward: of the usable ones.
    """

    windows: WindowStack
    observation: Observation
    usable: BoolArray
    lost: BoolArray
    late: BoolArray
    changed: BoolArray
    art: FloatArray
    reward: FloatArray


class TestbedMetrics:
    """The metrics of the testbeds of one environment, added up per node.

    Args:
        nodes: of each testbed.
        groups: names of the request groups.
    """

    def __init__(self, nodes: Sequence[str], groups: Sequence[str]) -> None:
        self._groups = groups
        self._rows: dict[str, IntArray] = {
            node: np.flatnonzero(np.array(nodes) == node) for node in dict.fromkeys(nodes)
        }
        self._counters = {name: Counter(PREFIX + name, text, labels(name)) for name, text in COUNTERS.items()}
        self._gauges = {name: Gauge(PREFIX + name, text, labels(name)) for name, text in GAUGES.items()}

    def lose(self, lost: BoolArray, late: BoolArray) -> None:
        """Counts intervals that were lost, and those of them whose answer came too late, each ``[n]``."""
        for node, rows in self._rows.items():
            self._count("faults", float(lost[rows].sum()), node)
            self._count("late", float(late[rows].sum()), node)

    def record(self, step: SteppedWindows) -> None:
        """Counts a step, and sets the gauges of the nodes that have a usable window."""
        self.lose(step.lost, step.late)
        novelty = step.observation.novelty.reshape(len(step.usable), -1).max(axis=1, initial=0.0)
        mean_ms = step.windows.mean_ms()
        for node, rows in self._rows.items():
            usable = rows[step.usable[rows]]
            self._count("windows", float(len(usable)), node)
            self._count("weight_changes", float(step.changed[usable].sum()), node)
            if not len(usable):
                continue
            for group, requests in enumerate(step.windows.requests[usable].sum(axis=(0, 2))):
                self._count("requests", float(requests), node, self._groups[group])
                self._set("mean_ms", mean_ms[usable, group], node, self._groups[group])
            self._set("art_per_request", step.art[usable], node)
            self._set("reward", step.reward[usable], node)
            self._gauges["novelty"].set(float(novelty[usable].max()), {NODE: node})
            p99_ms = step.windows.client_p99_ms[usable]
            if not np.isnan(p99_ms).all():
                self._gauges["client_p99_ms"].set(float(np.nanmax(p99_ms)), {NODE: node})

    def _count(self, name: str, value: float, node: str, group: str | None = None) -> None:
        if value:
            self._counters[name].inc(value, {NODE: node} if group is None else {NODE: node, GROUP: group})

    def _set(self, name: str, values: FloatArray, node: str, group: str | None = None) -> None:
        if not np.isnan(values).all():
            self._gauges[name].set(
                float(np.nanmean(values)), {NODE: node} if group is None else {NODE: node, GROUP: group}
            )


class TrialMetrics:
    """The metrics of the trial that runs in this process."""

    def __init__(self) -> None:
        self._tags = {NODE: ray.util.get_node_ip_address()}
        self._gauges = {name: Gauge(PREFIX + name, text, (NODE,)) for name, text in TRIAL_GAUGES.items()}

    def report(self, score: float, steps: int) -> None:
        """Sets the gauges after a training iteration."""
        self._gauges["trial_score"].set(score, self._tags)
        self._gauges["trial_steps"].set(float(steps), self._tags)
