"""Late binding under a controller: a part of the policy's control, so that canary, guards, watchdog and a revert treat
it as they treat service times. In shadow, and until it may hold, NGINX counts what it would hold.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.control import Control, ServiceTimes
from actuators.contract.late_binding import ENOUGH, LateBinding, LateBindingPlan
from actuators.contract.request_cost import RequestCost
from actuators.contract.topology import Topology
from actuators.contract.window import HoldWindow, Window
from actuators.errors import DeepSchedError
from envs.estimators.base import ServiceSamples
from envs.estimators.capacity import Capacity, CapacityLearner, with_slots
from tuning.policy.adviser import Advice
from tuning.steering.holding import HoldVerdict, HoldWatch
from tuning.steering.options import Ordered

CHANGED = "late binding was ended outside the controller, and stays off: steer resume begins it again"
FAILING = "late binding has failed in NGINX and holds nothing for some seconds: see its error log"
RENEWED = 1 / 3
"""Part of the control's validity after which it is set again, so that NGINX sees that a controller lives."""
_RESTARTED = {"restart", "reset"}
_SUMS = ("asked", "would", "held", "refused", "hopeless", "gone", "answered", "late")


class HoldingSite(Protocol):
    """The NGINX of a controller."""

    topology: Topology

    def apply(self, control: Control) -> object:
        """Puts a control in force. Raises ActuationError."""
        ...

    def watch(self, holding: LateBinding | None) -> None:
        """Counts what this would hold; None ends it. Raises ActuationError."""
        ...


class SiteHolding:
    """How the requests of one site are held.

    Args:
        plan: slots and numbers; deadlines are those of the bundle where it gives none.
        workers: requests that a server serves at once; None to learn them where the plan has no slots.
        watch: when requests may be held.
        costs: what requests cost; all the same when None.
    """

    def __init__(
        self, plan: LateBindingPlan, workers: float | None, watch: HoldWatch, costs: RequestCost | None = None
    ) -> None:
        self._plan, self._workers, self._watch = plan, workers, watch
        self._costs = RequestCost() if costs is None else costs
        self._verdict = HoldVerdict(False, "")
        self._counting: tuple[HoldingSite, LateBinding] | None = None
        self._held_s = float("-inf")
        self._doubtful, self._yielded = False, -1
        self._problem = ""
        self._capacity: Capacity | None = None
        self._learner: tuple[Topology, CapacityLearner] | None = None
        self._sums = dict.fromkeys(_SUMS, 0)

    def binding(self, topology: Topology, deadlines_s: FloatArray) -> LateBinding:
        """What is held at these servers: nothing where workers are not known yet. Raises ConfigError for names that are
        not there.
        """
        servers = len(topology.servers)
        believed = np.full(servers, np.inf if self._workers is None else self._workers)
        holding = replace(self._plan.binding(topology, deadlines_s, believed), costs=self._costs)
        if self._workers is not None:
            return holding
        if self._capacity is None or len(self._capacity.best) != servers:
            return holding
        learned = with_slots(holding, self._capacity).slots
        given = np.array([server in self._plan.slots for server in topology.servers])
        return replace(holding, slots=np.where(given, holding.slots, learned))

    def begin(self, present: Control) -> None:
        """This control is in force at a start: when it holds requests, an earlier controller has proved it."""
        self._watch.proved = self._watch.proved or (isinstance(present, ServiceTimes) and present.holding is not None)

    def advised(
        self, advice: Advice | None, window: Window, orders: Ordered, in_force: Control, first: Control,
        deadlines_s: FloatArray,
    ) -> Advice | None:  # fmt: skip
        """The advice, whose policy also holds requests when they may be held, and else as the first control does."""
        self._watch.see(window)
        self._learn(advice, window, in_force)
        self._add(window)
        self._verdict = self._watch.decide(orders.mode, orders.canary_percent)
        self._notice(window, orders, in_force)
        self._problem = ""
        if advice is None or not self._holds:
            return held_as_before(advice, first)
        try:
            return with_holding(advice, lambda topology: self.binding(topology, deadlines_s))
        except DeepSchedError as error:
            # Servers may have gone whose slots were given by name.
            self._problem = f"late binding not applied: {error}"[:300]
            return held_as_before(advice, first)

    def step(
        self, site: HoldingSite, in_force: Control, applied: bool, window: Window, orders: Ordered, deadlines_s:
        FloatArray, now_s: float,
    ) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
        """Renews what holds requests, or has NGINX count what would be held; the entry of the audit line, and alarms.

        Errors become alarms.
        """
        holding = in_force.holding if isinstance(in_force, ServiceTimes) else None
        alarms = [*self._verdict.alarms, *filter(None, (self._problem,))]
        alarms += [CHANGED] if self._yielded == orders.version else []
        counts = window.holding
        if counts is not None and counts.state == "failing":
            alarms.append(FAILING)
        try:
            if holding is not None:
                # The endpoint counts again beside the next control that does not hold.
                if orders.mode != "shadow":
                    self._renew(site, in_force, holding, applied, now_s)
            elif orders.override != "paused":
                wanted = None if orders.override == "reverted" else self.binding(site.topology, deadlines_s)
                self._count(site, wanted, counts)
        except DeepSchedError as error:
            alarms.append(f"late binding not applied: {error}"[:300])
        return self._entry(holding, counts), alarms if orders.override == "" else []

    def ended(self) -> None:
        """Nothing is counted any more by an NGINX that can still be reached."""
        if self._counting is not None:
            site, self._counting = self._counting[0], None
            with contextlib.suppress(DeepSchedError):
                site.watch(None)

    def _learn(self, advice: Advice | None, window: Window, in_force: Control) -> None:
        """How many requests servers serve at once, from the service times that the bundle's estimator has learned."""
        times = advice.baseline if advice is not None else None
        if self._workers is not None or not isinstance(times, ServiceTimes) or not window.usable:
            return
        if self._learner is None or self._learner[0] != times.topology:
            self._learner = times.topology, CapacityLearner(times.topology)
        holding = in_force.holding if isinstance(in_force, ServiceTimes) else None
        slots = holding.slots if holding is not None and holding.topology == times.topology else None
        self._capacity = self._learner[1].update(ServiceSamples.of(window), times.tau_s, slots)

    @property
    def _holds(self) -> bool:
        return self._verdict.holds and self._yielded == -1

    def _notice(self, window: Window, orders: Ordered, in_force: Control) -> None:
        """Takes note of an NGINX that holds nothing although it should: somebody has set another control.

        A restart of NGINX may show in the next window only: then it was not somebody.
        """
        restarted = bool(_RESTARTED & {fault.kind for fault in window.faults})
        if self._yielded not in (-1, orders.version) or (self._doubtful and restarted):
            self._yielded = -1
        counts, holds = window.holding, isinstance(in_force, ServiceTimes) and in_force.holding is not None
        gone = holds and counts is not None and counts.state in ("off", "unset", "watching")
        self._doubtful = gone and not restarted and orders.override == "" and self._yielded == -1
        if self._doubtful:
            self._yielded = orders.version

    def _renew(self, site: HoldingSite, control: Control, holding: LateBinding, applied: bool, now_s: float) -> None:
        if applied:
            self._held_s = now_s
        elif now_s - self._held_s >= RENEWED * holding.numbers.valid_s and self._yielded == -1:
            site.apply(control)
            self._held_s = now_s

    def _count(self, site: HoldingSite, wanted: LateBinding | None, counts: HoldWindow | None) -> None:
        if wanted is None and self._counting is None:
            return
        if counts is not None and counts.state == "holding":
            # It is in force from before this controller, or was set by hand: what is held needs no counting.
            return
        known = self._counting is not None and self._counting[0] is site and self._counting[1] == wanted
        lost = counts is not None and counts.state != "watching"
        if known and not lost:
            return
        site.watch(wanted)
        self._counting = None if wanted is None else (site, wanted)

    def _add(self, window: Window) -> None:
        counts = window.holding
        for name in _SUMS if counts is not None and window.usable else ():
            self._sums[name] += int(getattr(counts, name).sum())

    def _entry(self, holding: LateBinding | None, counts: HoldWindow | None) -> dict[str, Any]:
        """What the audit log and the heartbeat tell."""
        return {
            "holds": holding is not None,
            "reason": self._verdict.reason if self._yielded == -1 else "ended outside the controller",
            "state": "absent" if counts is None else counts.state,
            "order": self._plan.numbers.order,
            "slots": [] if holding is None else [None if slots == ENOUGH else int(slots) for slots in holding.slots],
            **self._learned(),
            "since_start": dict(self._sums),
        }

    def _learned(self) -> dict[str, Any]:
        """The intervals of workers that were learned; nothing where they are given."""
        if self._capacity is None:
            return {}
        high = [float(each) if np.isfinite(each) else None for each in self._capacity.high.round(2)]
        return {"workers": {"low": self._capacity.low.round(2).tolist(), "high": high}}


def with_holding(advice: Advice, holding: Callable[[Topology], LateBinding | None]) -> Advice:
    """The advice, whose policy also holds requests so, where it sets service times."""
    policy = advice.policy
    if not isinstance(policy, ServiceTimes):
        return advice
    return replace(advice, policy=replace(policy, holding=holding(policy.topology)))


def held_as_before(advice: Advice | None, first: Control) -> Advice | None:
    """The advice, whose policy holds requests as the first control does, if that does."""
    if advice is None or not isinstance(first, ServiceTimes) or first.holding is None:
        return advice
    return with_holding(advice, first.holding.onto)
