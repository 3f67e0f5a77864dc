"""Options of the guards, of the controller and of its audit log. Import nothing heavy here: `--help` reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from actuators.contract.control import MAX_WEIGHT
from actuators.options import Moved, Options

GuardName = Literal[
    "floor", "cap", "step", "rate", "traffic", "stale", "novel", "policy", "errors", "art", "overload", "measuring",
    "operator", "actuation", "silent",
]  # fmt: skip
GUARDS: tuple[GuardName, ...] = (
    "floor", "cap", "step", "rate", "traffic", "stale", "novel", "policy", "errors", "art", "overload", "measuring",
    "operator", "actuation", "silent",
)  # fmt: skip
"""In this order: smallest weight, largest share, largest change, change rate, too little traffic, statistics missing,
unknown state, policy failed, error surge, later than the baseline, every server late, baseline being measured,
operator's order, change not applied, dead server."""


def current_mode(name: str) -> str:
    """A mode under its present name: `canary` was `blend` up to version 0.1."""
    return "canary" if name == "blend" else name


Mode = Annotated[Literal["shadow", "canary", "active"], BeforeValidator(current_mode)]
Override = Literal["", "paused", "reverted"]
"""An operator's order that overrides every other rule; empty for none."""


@dataclass(frozen=True)
class Ordered:
    """What an operator has ordered, of which `version` counts the orders, for an interval."""

    mode: Mode
    canary_percent: float
    override: Override
    version: int


class GuardOptions(Options):
    """Limits of the guards. Every guard that acts is counted and named in the audit log."""

    floor: int = Field(default=3, ge=1, le=MAX_WEIGHT)
    """Smallest weight of a server, where the largest of its group is 100."""
    cap_share: float = Field(default=0.9, gt=0, le=1)
    """Largest share of a group's traffic for one server; never below an equal share."""
    largest_step: float = Field(default=1.5, gt=1)
    """Largest factor by which one change may move a server's share, up or down."""
    canary_within: bool = True
    """In `canary` by weights no share moves beyond its part of the way, even if floor, cap or rounding would require
    it; False rounds to the nearest whole numbers, as version 0.1 did."""
    min_between_changes_s: float = Field(default=1.0, ge=0)
    """Shortest time between two changes in seconds; a revert never waits."""
    min_between_reloads_s: float = Field(default=15.0, ge=0)
    """The same if weights change by reload, which closes idle client connections: some clients do not retry a request
    on a closed connection. The change for a server that dies or comes back does not wait either."""
    min_requests: int = Field(default=10, ge=0)
    """Requests that a group needs in a window; with fewer it keeps its weights."""
    stale_after_s: float = Field(default=10.0, gt=0)
    """Time without usable statistics, in seconds, after which the baseline replaces the held weights."""
    novel_share: float = Field(default=0.5, gt=0, lt=1)
    """A window is novel when more than this share of the servers lies outside every cluster: one of two servers that
    becomes slower is not novel traffic."""
    novel_above: float = Field(default=1.0, gt=0)
    """Novelty above which a server lies outside every cluster; 1 is the three-sigma rule."""
    novel_windows: int = Field(default=20, ge=1)
    """Consecutive novel windows after which the baseline takes over and a recalibration is advised; every withdrawal
    of the policy doubles this number until `max_back_off_s` have passed without one."""
    most_novel_windows: int = Field(default=160, ge=1)
    """Maximum of that number after doubling."""
    familiar_ratio: float = Field(default=0.8, gt=0, le=1)
    """A window is familiar again only if the servers stay below this share of `novel_above`; between the two limits
    nothing changes."""
    familiar_windows: int = Field(default=60, ge=1)
    """Consecutive familiar windows after which the policy acts again."""
    dwell_s: float = Field(default=30.0, ge=0)
    """Shortest time under the baseline in seconds after novelty, missing statistics or a failed policy; it doubles each
    time, as `back_off_s` does after harm."""
    error_rise_ratio: float = Field(default=0.02, gt=0, le=1)
    """Share of failed requests above the baseline's share that counts as a surge."""
    error_windows: int = Field(default=2, ge=1)
    """Consecutive windows with a surge after which the baseline is restored."""
    art_worse_ratio: float = Field(default=0.25, gt=0)
    """Tolerated relative increase of tardiness over that of the baseline."""
    art_margin: float = Field(default=0.1, ge=0)
    """Relative tardiness per request that is tolerated in addition, for a baseline near zero."""
    art_windows: int = Field(default=4, ge=1)
    """Consecutive windows beyond this tolerance after which the baseline is restored."""
    art_windows_higher_load: int = Field(default=20, ge=1)
    """The same while the request rate is above that of the measured baseline by more than `load_rise_ratio`: the
    baseline's tardiness at such a rate is unknown, and a burst must not count as harm."""
    art_spreads: float = Field(default=4.0, ge=0)
    """Number of mean deviations of single windows that are tolerated in addition to both."""
    most_lateness: float = Field(default=10.0, gt=0)
    """Relative tardiness at which that of a single answer is capped, so that no single answer counts as harm."""
    load_rise_ratio: float = Field(default=0.1, ge=0)
    """Rise of the request rate above that of the measured baseline from which the tolerance slowly follows the
    observed tardiness, because more load increases tardiness under every control."""
    back_off_s: float = Field(default=60.0, gt=0)
    """Time under the baseline after the first revert, in seconds; it doubles with every further revert."""
    max_back_off_s: float = Field(default=3600.0, gt=0)
    """Longest back-off in seconds; after this time without harm the back-off starts at `back_off_s` again."""
    reference_windows: int = Field(default=10, ge=1)
    """Windows under the baseline that are measured before the policy may act."""
    remembered_windows: int = Field(default=60, ge=1)
    """Windows under the baseline that its averages cover, once there are so many: a few windows do not show how much
    tardiness varies."""
    reference_age_s: float = Field(default=3600.0, gt=0)
    """Age in seconds after which the baseline is measured again, for as many windows."""
    silent_requests: float = Field(default=11.5, gt=0)
    """Answers that were due from a server and missing in three or more windows, after which it keeps only a probing
    share; 11.5 errs once in 100 000 times."""
    overload_ratio: float = Field(default=1.0, gt=0)
    """Mean response time relative to the deadline above which a server is late."""
    overload_pull: float = Field(default=0.5, ge=0, le=1)
    """How far a group whose servers are all late is pulled to equal weights, or to the measured service times;
    1 is all the way."""


FIRST_RULES: dict[str, float | bool] = {
    "familiar_ratio": 1.0, "dwell_s": 0.0, "art_spreads": 0.0, "most_lateness": 1e9, "load_rise_ratio": 1e9,
    "silent_requests": 1e9, "canary_within": False, "most_novel_windows": 1, "remembered_windows": 1,
    "min_between_reloads_s": 0.0,
}  # fmt: skip
"""Guards as they were in version 0.1, whose audit logs do not name them."""


class SteeringOptions(Options):
    """What the controller is allowed to do."""

    moved: ClassVar = {"blend_percent": Moved("canary_percent")}

    mode: Mode = "shadow"
    """`shadow` decides and changes nothing; `canary` goes `canary_percent` of the way to the policy's weights; `active`
    goes all the way."""
    canary_percent: float = Field(default=10.0, ge=0, le=100)
    """In `canary`: how far from the baseline's weights to the policy's."""
    baseline: Literal["original", "equal", "inverse_latency", "estimator"] = "original"
    """What replaces the policy: the weights in force at the start, equal weights, or the baseline under the bundle's
    residual, `inverse_latency` or its service-time `estimator`."""
    guards: GuardOptions = GuardOptions()
    """Limits of the guards."""

    @model_validator(mode="before")
    @classmethod
    def _present_names(cls, values: Any) -> Any:
        """Accepts the options of an audit log of version 0.1."""
        if isinstance(values, dict) and "blend_percent" in values:
            values = dict(values)
            values.setdefault("canary_percent", values.pop("blend_percent"))
        return values


class AuditOptions(Options):
    """Size and number of the audit log's files."""

    max_bytes: int = Field(default=16 * 2**20, ge=1024)
    """Size in bytes at which the file is rotated."""
    keep: int = Field(default=8, ge=1)
    """Number of rotated files that are kept."""
