"""Dead and silent servers: has weight, answers nothing while its group answers others. Pure; no I/O, no clock.

The rule. A server is dead after 3 windows in a row without a good answer (status below 500) in which it was due at
least 11.5 good answers: had every request gone to it independently with its share, none would have done so with
probability exp(−11.5) = 1e-5. Round robin spreads more evenly than that. Its share is the smaller one of its share of
the weights and of the good answers that it used to give, because least_conn sends a slow server less than its weight
says; until it has answered, a third of its share of the weights. Where NGINX itself shows the server as down (its own
failure count) 3 answers due suffice, unless it has answered while shown as down: vts shows max_fails=0 so.

Failed attempts are no answers, so the rule holds whether the statistics count them or not. A group in which nothing is
answered has no dead servers. The first good answer ends it.
"""

from __future__ import annotations

import numpy as np

from actuators.contract.arrays import BoolArray
from actuators.contract.control import MAX_WEIGHT, Weights
from actuators.contract.topology import Topology
from actuators.contract.window import Window

WINDOWS = 3
"""Windows in a row without a good answer; after a pause of one or two seconds a server may live."""
SHOWN_DOWN_DUE = 3.0
SHARE_EWMA = 0.05
UNSEEN_SHARE = 1.0 / 3.0
PROBE_S, LEAST_PROBES, MOST_PROBES = 10.0, 0.01, 0.1
"""A dead server keeps 1 % of its group's requests, or what makes one request in 10 s, but at most 10 %."""


class SilenceWatch:
    """Gets every usable window.

    Args:
        due: good answers that a server must have been due, `GuardOptions.silent_requests`.

    Attributes:
        dead: bool ``[groups, servers]`` after the latest window.
    """

    def __init__(self, topology: Topology, due: float) -> None:
        self.dead: BoolArray = np.zeros(topology.shape, bool)
        self._due_limit = due
        self._due, self._windows = np.zeros(topology.shape), np.zeros(topology.shape, np.int64)
        self._share = np.full(topology.shape, np.nan)
        self._answers_though_down = np.zeros(topology.shape, bool)
        self._rate_rps = np.zeros((topology.shape[0], 1))

    def see(self, window: Window, out: BoolArray) -> None:
        """Takes note of a window; `out`: ``[groups, servers]``, taken out of rotation by the administrator."""
        usable = window.topology.mask & ~out
        if window.backup is not None:
            usable &= ~window.backup
        good = np.where(usable, window.requests - window.server_errors, 0)
        of_group = good.sum(axis=1, keepdims=True)
        self._rate_rps = of_group / max(window.duration_s, 1e-3)
        answered = good > 0
        weights = np.where(usable, window.weight, 0).astype(float)
        share = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1.0)
        known = np.where(np.isnan(self._share), UNSEEN_SHARE * share, np.fmin(self._share, share))
        self._answers_though_down |= window.down & answered
        silent = usable & ~answered & (of_group > 0)
        self._windows = np.where(silent, self._windows + 1, np.where(answered | ~usable, 0, self._windows))
        self._due = np.where(silent, self._due + known * of_group, np.where(answered | ~usable, 0.0, self._due))
        limit = np.where(
            window.down & ~self._answers_though_down, min(SHOWN_DOWN_DUE, self._due_limit), self._due_limit
        )
        self.dead = usable & ~answered & (self.dead | ((self._windows >= WINDOWS) & (self._due >= limit)))
        now = good / np.maximum(of_group, 1)
        mean = np.where(np.isnan(self._share), now, self._share + SHARE_EWMA * (now - self._share))
        self._share = np.where(answered, mean, self._share)

    def spared(self, control: Weights) -> Weights:
        """The control with only a probing share for dead servers."""
        dead = self.dead & control.topology.mask & ~control.down
        if not dead.any():
            return control
        alive = np.where(dead | control.down, 0, control.values).astype(float)
        values = np.rint(alive / np.maximum(alive.max(axis=1, keepdims=True), 1.0) * MAX_WEIGHT).clip(1)
        entries = control.topology.entries
        total = np.where(alive > 0, values * entries, 0.0).sum(axis=1, keepdims=True)
        probes = np.clip(1.0 / np.maximum(PROBE_S * self._rate_rps, 1e-9), LEAST_PROBES, MOST_PROBES)
        few = np.floor(probes / (1.0 - probes) * total / entries).clip(1, MAX_WEIGHT)
        changed = dead.any(axis=1, keepdims=True)
        new = np.where(dead, few, np.where(alive > 0, values, control.values))
        return Weights(control.topology, np.where(changed, new, control.values).astype(np.int64), control.down)

    def alarms(self, window: Window) -> tuple[str, ...]:
        """A line for every dead server."""
        groups, servers = window.topology.groups, window.topology.servers
        return tuple(f"{servers[s]} of {groups[g].name} answers nothing" for g, s in np.argwhere(self.dead).tolist())
