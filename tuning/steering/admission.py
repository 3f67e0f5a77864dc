"""What a controller decides of admission (docs/admission.md#under-a-controller): how many of the requests beyond their
limit NGINX refuses, none until counting has shown that little would be refused at ordinary times; and which response
times are those of low load. NGINX moves the limits by itself.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from actuators.contract.admission import Admission
from actuators.contract.arrays import FloatArray
from actuators.contract.window import AdmissionWindow, Window
from actuators.options import Options
from tuning.steering.options import Mode

IDLE = 0.5
"""Multiple of the requests in flight at ordinary times up to which nothing queues."""
LEAST_REQUESTS, REMEMBERED_REQUESTS = 200, 2000
"""Requests of a group at low load from which its response time counts, and over which it is a mean."""
MOST_ERRORS = 0.01
"""Share of failed answers above which a window's response times are not those of low load."""
OTHER = 1.2
"""Ratio of two response times at low load from which they are different ones."""
IN_VAIN = 2.0
"""Multiple of the rule's late share: answers are as late as that although requests are refused."""


class AdmissionGuards(Options):
    """When a rule of admission may refuse."""

    proving_windows: int = Field(default=60, ge=1, le=100_000)
    """Windows with requests over which the rule only counts, before it refuses."""
    ordinary_refused: float = Field(default=0.01, ge=0, le=1)
    """Share of the requests of those windows beyond their limit up to which it may refuse from then on."""


@dataclass(frozen=True)
class AdmissionVerdict:
    """What should be in force.

    Attributes:
        percent: 0 … 100, of the requests beyond their limit that are refused.
        alarms: what an operator should know.
    """

    percent: float
    reason: str
    alarms: tuple[str, ...] = ()


class AdmissionWatch:
    """Remembers what the rule would have refused, and what it refuses.

    Args:
        late_share: above which the rule lowers its limits, 0 … 1.
        proved: the rule refuses already.
    """

    def __init__(self, guards: AdmissionGuards, late_share: float, *, proved: bool) -> None:
        self._guards, self._late_share, self.proved = guards, late_share, proved
        self._counted: deque[AdmissionWindow] = deque(maxlen=guards.proving_windows)

    def see(self, window: Window) -> None:
        """Takes note of a window; one that cannot be used, or without requests, says nothing."""
        counts = window.admission
        if not window.usable or counts is None or not counts.offered.sum():
            return
        self._counted.append(counts)
        if not self.proved and self._complete and self._beyond() <= self._guards.ordinary_refused:
            self.proved = True
            self._counted.clear()

    def decide(self, mode: Mode, canary_percent: float) -> AdmissionVerdict:
        """For the next window."""
        if mode == "shadow":
            return AdmissionVerdict(0.0, "shadow: what is beyond the limits is only counted")
        if not self.proved:
            return self._measuring()
        percent = canary_percent if mode == "canary" else 100.0
        return AdmissionVerdict(percent, f"{percent:g} % of what is beyond the limits is refused", self._in_vain())

    @property
    def _complete(self) -> bool:
        return len(self._counted) == self._guards.proving_windows

    def _measuring(self) -> AdmissionVerdict:
        reason = f"only counts until {self._guards.proving_windows} windows have shown what is ordinary"
        if not self._complete:
            return AdmissionVerdict(0.0, reason)
        alarm = (
            f"admission would refuse {self._beyond():.1%} of the requests of {len(self._counted)} windows, so it only"
            " counts: its deadlines are too short, or this is an overload"
        )
        return AdmissionVerdict(0.0, reason, (alarm,))

    def _beyond(self) -> float:
        """Share of the requests that were beyond their limit."""
        beyond = sum(int(each.refused.sum() + each.spared.sum()) for each in self._counted)
        return beyond / sum(int(each.offered.sum()) for each in self._counted)

    def _in_vain(self) -> tuple[str, ...]:
        """An alarm when answers stay late although requests are refused."""
        finished, late = (
            sum(int(getattr(each, name).sum()) for each in self._counted) for name in ("finished", "late")
        )
        share = late / max(finished, 1)
        if not self._complete or share <= IN_VAIN * self._late_share or self._beyond() <= self._guards.ordinary_refused:
            return ()
        alarm = (
            f"admission refuses, and {share:.0%} of the answers are late all the same: look for what makes them slow"
        )
        return (f"{alarm}, or give longer deadlines",)


class IdleLatency:
    """Mean response times without queueing, measured again whenever little is in flight.

    Args:
        admission: whose values count until there are own ones; the requests in flight that it calls ordinary.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._names = [group.name for group in admission.topology.groups]
        self._requests, self._seconds = (np.zeros(len(self._names)) for _ in range(2))

    def see(self, window: Window) -> None:
        """Takes note of a window, unless errors shorten its times, or too much was in flight in it: by Little's law
        the sum of the response times over its duration.
        """
        failed = window.server_errors.sum() > MOST_ERRORS * window.requests.sum()
        if not window.usable or window.duration_s <= 0 or failed:
            return
        seconds = window.response_ms_sum.sum(axis=1) / 1e3
        if seconds.sum() / window.duration_s > IDLE * self._admission.nominal:
            return
        for g, group in enumerate(window.topology.groups):
            if group.name in self._names:
                at, requests = self._names.index(group.name), window.requests[g].sum()
                kept = max(1.0 - requests / REMEMBERED_REQUESTS, 0.0)
                self._requests[at] = kept * self._requests[at] + requests
                self._seconds[at] = kept * self._seconds[at] + seconds[g]

    def measured(self, present_s: FloatArray) -> FloatArray:
        """``[groups]`` seconds: the present ones, or all that were measured when one of them is another."""
        known = self._requests >= LEAST_REQUESTS
        found = np.where(known & (self._seconds > 0), self._seconds / np.maximum(self._requests, 1.0), present_s)
        return found if (abs(np.log(found / present_s)) > np.log(OTHER)).any() else present_s
