"""Admission control: whether a request may enter now, by the number of requests in flight.

One definition for the simulator (`envs.admission`) and NGINX (`actuators/nginx/lua/admission.lua`); docs/admission.md
explains the rules and where their numbers come from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from pydantic import Field

from actuators.contract.arrays import FloatArray
from actuators.contract.topology import Topology
from actuators.errors import ConfigError
from actuators.options import Options

AdmissionRule = Literal["none", "fixed", "thresh", "aimd_thresh", "gradient", "aimd"]
"""How the limits follow the system; `gradient` and `aimd` are references (Envoy's adaptive concurrency, and additive
increase with multiplicative decrease of one limit)."""
NEVER = float("inf")
"""Importance of a group of which no request is refused."""


def finite_importance(importance: FloatArray) -> FloatArray:
    """Importance of groups, in which `NEVER` is as much as the most important other one, or 1 without others."""
    finite = importance[np.isfinite(importance)]
    return np.where(np.isfinite(importance), importance, finite.max() if len(finite) else 1.0)


class AdmissionNumbers(Options):
    """The numbers of the rules. Multiples are of the nominal in-flight count, Σ rate × idle latency over all groups."""

    tick_s: float = Field(default=0.5, ge=0.1, le=5)
    """Seconds between two updates of the limits."""
    multiple: float = Field(default=2.2, gt=0, le=100)
    """`fixed`, `thresh`: limit on the requests in flight of all groups."""
    gamma: float = Field(default=0.3, ge=0, le=3)
    """`thresh`, `aimd_thresh`: power with which a group's limit falls with its idle latency."""
    importance_power: float = Field(default=0.6, ge=0, le=3)
    """`thresh`, `aimd_thresh`: power with which a group's limit rises with its importance."""
    start: float = Field(default=2.5, gt=0, le=100)
    """`aimd_thresh`, `gradient`, `aimd`: first multiple."""
    late_share: float = Field(default=0.11, gt=0, lt=1)
    """`aimd_thresh`: importance-weighted share of late answers above which the multiple falls."""
    cut: float = Field(default=0.5, gt=0, lt=1)
    """`aimd_thresh`, `aimd`: factor on the multiple after a late tick."""
    rise: float = Field(default=0.2, gt=0, le=10)
    """`aimd_thresh`, `aimd`: added to the multiple after a tick in time."""
    least: float = Field(default=1.25, gt=0, le=100)
    """Smallest multiple."""
    most: float = Field(default=6.0, gt=0, le=1000)
    """Largest multiple."""
    least_answers: int = Field(default=8, ge=1, le=1000)
    """Finished requests since the last update without which the limits stay, unless a group is silent for its deadline;
    counts go on until there are as many."""
    most_refused: float = Field(default=0.95, gt=0, le=1)
    """Largest share of a group's requests of the last 10 s that is refused; 1 allows all."""
    headroom: float = Field(default=1.1, ge=1, le=10)
    """The nominal in-flight count grows so that the largest limit is this multiple of the highest count of recent ticks
    in time."""


@dataclass(frozen=True, eq=False)
class Admission:
    """What NGINX needs to know to admit requests. Raises ConfigError naming the group of a bad value.

    Attributes:
        rule: `none` refuses nothing.
        deadlines_s: ``[groups]``, > 0; an answer after it is late.
        importance: ``[groups]``, > 0; `NEVER` for groups of which no request is refused.
        idle_s: ``[groups]``, > 0: mean response time at low load.
        rates_rps: ``[groups]``, > 0: nominal rates.
        machines: NGINX machines that share the traffic; each has its part of the limit.
        percent: 0 … 100, of the requests that may be refused; with 0 limits are computed and refusals only counted.
        factors: ``[groups]``, > 0, on the limits of the rule.
    """

    topology: Topology
    rule: AdmissionRule
    deadlines_s: FloatArray
    importance: FloatArray
    idle_s: FloatArray
    rates_rps: FloatArray
    numbers: AdmissionNumbers = field(default_factory=AdmissionNumbers)
    machines: int = 1
    percent: float = 100.0
    factors: FloatArray = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        if self.factors.size == 0:
            object.__setattr__(self, "factors", np.ones(len(self.topology.groups)))
        for name in ("deadlines_s", "importance", "idle_s", "rates_rps", "factors"):
            self._check(name, getattr(self, name))
        if not (0 <= self.percent <= 100 and self.machines >= 1):
            what, remedy = f"percent {self.percent:g}, machines {self.machines}", "give 0 to 100, and 1 or more"
            raise ConfigError(what, where="admission", remedy=remedy)

    def _check(self, name: str, values: FloatArray) -> None:
        if values.shape != (len(self.topology.groups),):
            raise ConfigError(f"{name} has shape {values.shape}", where="admission", remedy="one value per group")
        good = (values > 0) & (np.isfinite(values) | (name == "importance"))
        if not good.all():
            g = int(np.argmin(good))
            raise ConfigError(
                f"{name} {values[g]} is not positive", where=f"admission of group {self.topology.groups[g].name}"
            )

    @property
    def nominal(self) -> float:
        """Requests in flight at one machine at nominal rates without queueing (Little's law)."""
        return float(self.rates_rps @ self.idle_s) / self.machines

    def weights(self) -> FloatArray:
        """``[groups]``: importance as it weighs late answers; `NEVER` weighs as the most important other one."""
        return finite_importance(self.importance)

    def shares(self) -> FloatArray:
        """``[groups]``: a group's limit as a share of the whole, importance ^ importance_power / idle latency ^ gamma
        over the largest; ∞ for `NEVER`."""
        finite = np.isfinite(self.importance)
        values = self.weights() ** self.numbers.importance_power / self.idle_s**self.numbers.gamma
        largest = values[finite].max() if finite.any() else 1.0
        return np.where(finite, values / largest, NEVER)
