"""Outlier ejection around any controller of weights: a server that fails too often rests for a while."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from actuators.control import Control, ServiceTimes, Weights
from actuators.errors import ConfigError
from actuators.options import Options
from actuators.topology import Topology
from actuators.window import Window
from envs.controller import Steered


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

    def __init__(self, inner: Steered, options: EjectionOptions | None = None) -> None:
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
