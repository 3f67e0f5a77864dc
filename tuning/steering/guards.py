"""What keeps a live NGINX from harm: limits on single changes, and watches over many windows. Pure, no clock.

Options of the controller's decisions and of their record; apart from the code, so that `--help` needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from actuators.contract.arrays import FloatArray
from actuators.contract.control import MAX_WEIGHT, Weights
from actuators.contract.window import Window
from actuators.options import Options
from envs.observation.deadlines import tardiness

GuardName = Literal[
    "floor", "cap", "step", "rate", "traffic", "stale", "novel", "policy", "errors", "art", "overload", "measuring",
    "operator", "actuation",
]  # fmt: skip
GUARDS: tuple[GuardName, ...] = (
    "floor", "cap", "step", "rate", "traffic", "stale", "novel", "policy", "errors", "art", "overload", "measuring",
    "operator", "actuation",
)  # fmt: skip
"""In this order: smallest weight, largest share, largest change, change rate, too little traffic, statistics missing,
unknown state, policy failed, error surge, later than the baseline, everything late, baseline being measured,
operator's order, change not applied."""


class GuardOptions(Options):
    """Limits of every guard. Each guard is counted, and named in the audit when it speaks."""

    floor: int = Field(default=3, ge=1, le=MAX_WEIGHT)
    """Smallest weight of a server, where the largest of its group is 100."""
    cap_share: float = Field(default=0.9, gt=0, le=1)
    """Largest share of a group's traffic for one server; never below an equal share."""
    largest_step: float = Field(default=1.5, gt=1)
    """Largest factor by which a server's share may change at once, up or down."""
    min_between_changes_s: float = Field(default=1.0, ge=0)
    """Time that a change stays in force before the next one; a revert never waits."""
    min_requests: int = Field(default=10, ge=0)
    """Requests that a group needs in a window; with fewer it keeps its weights."""
    stale_after_s: float = Field(default=10.0, gt=0)
    """Time without usable statistics after which the baseline replaces the held weights."""
    novel_share: float = Field(default=0.5, gt=0, le=1)
    """Share of the servers that must lie outside every cluster for a window to count as novel."""
    novel_above: float = Field(default=1.0, gt=0)
    """Novelty above which a server lies outside; 1 is the three-sigma rule."""
    novel_windows: int = Field(default=2, ge=1)
    """Novel windows in a row that put the baseline in force and ask for a recalibration."""
    familiar_windows: int = Field(default=3, ge=1)
    """Familiar windows in a row that give the policy its place back."""
    error_rise_ratio: float = Field(default=0.02, gt=0, le=1)
    """Share of failed requests above the baseline's that counts as a surge."""
    error_windows: int = Field(default=2, ge=1)
    """Windows in a row with a surge that revert."""
    art_worse_ratio: float = Field(default=0.25, gt=0)
    """How much later than under the baseline requests may be, relative to the baseline's tardiness."""
    art_margin: float = Field(default=0.1, ge=0)
    """Relative tardiness per request that is granted on top, so that a baseline near zero is no trap."""
    art_windows: int = Field(default=4, ge=1)
    """Windows in a row that are later than that and so revert."""
    back_off_s: float = Field(default=60.0, gt=0)
    """Time under the baseline after the first revert; it doubles with every further one."""
    max_back_off_s: float = Field(default=3600.0, gt=0)
    """Longest such time; after as long a time without harm it begins at `back_off_s` again."""
    reference_windows: int = Field(default=10, ge=1)
    """Windows under the baseline that must have been measured before the policy may act."""
    reference_age_s: float = Field(default=3600.0, gt=0)
    """Age after which the baseline is measured again for as many windows."""
    overload_ratio: float = Field(default=1.0, gt=0)
    """Mean response time relative to the deadline above which a server is late."""
    overload_pull: float = Field(default=0.5, ge=0, le=1)
    """How far a group whose servers are all late is pulled to equal weights; 1 is all the way."""


def floored(shares: FloatArray, mask: NDArray[np.bool_], floor: int) -> tuple[FloatArray, bool]:
    """Shares of which none is below `floor` hundredths of its group's largest; whether one was."""
    least = shares.max(axis=1, keepdims=True) * floor / MAX_WEIGHT
    low = mask & (shares < least * (1 - 1e-9))
    return _normal(np.where(low, least, shares), mask), bool(low.any())


def capped(shares: FloatArray, mask: NDArray[np.bool_], cap_share: float) -> tuple[FloatArray, bool]:
    """Shares of which none is above the cap (or an equal share, if that is more); whether one was."""
    count = mask.sum(axis=1, keepdims=True)
    cap = np.maximum(cap_share, 1.0 / np.maximum(count, 1))
    high = mask & (shares > cap + 1e-9)
    rest = np.where(high, 0.0, shares).sum(axis=1, keepdims=True)
    # At most one server can be above a cap of more than a half; below, the rest is shared in proportion.
    room = 1.0 - (high * cap).sum(axis=1, keepdims=True)
    scaled = np.where(high, cap, shares * np.where(rest > 0, room / np.maximum(rest, 1e-12), 1.0))
    return _normal(np.where(high.any(axis=1, keepdims=True), scaled, shares), mask), bool(high.any())


def stepped(
    shares: FloatArray, in_force: FloatArray, mask: NDArray[np.bool_], largest: float
) -> tuple[FloatArray, bool]:
    """The way from the shares in force towards `shares`, as far as no share changes by more than `largest`."""
    way = np.where(mask, shares - in_force, 0.0)
    room = in_force * np.where(way > 0, largest - 1.0, 1.0 - 1.0 / largest)
    # All shares of a group go the same part of their way: their sum stays 1 and the direction is kept.
    allowed = np.where(np.abs(way) > 1e-12, room / np.maximum(np.abs(way), 1e-12), np.inf)
    part = np.minimum(1.0, allowed.min(axis=1, keepdims=True))
    return _normal(in_force + part * way, mask), bool((part < 1.0 - 1e-9).any())


def blended(policy: FloatArray, base: FloatArray, percent: float) -> FloatArray:
    """Shares `percent` of the way from `base` to `policy`."""
    return base + (policy - base) * percent / 100.0


def overloaded(window: Window, deadlines_s: FloatArray, ratio: float, min_requests: int) -> NDArray[np.bool_]:
    """``[groups]``: every server of the group that answered is late, and there are at least two."""
    seen = window.requests > 0
    late = np.nan_to_num(window.mean_response_s()) > ratio * deadlines_s[:, None]
    enough = (window.requests.sum(axis=1) >= min_requests) & (seen.sum(axis=1) >= 2)
    result: NDArray[np.bool_] = enough & (late | ~seen).all(axis=1)
    return result


def tardiness_per_request(window: Window, deadlines_s: FloatArray) -> float:
    """ART: relative tardiness of a window's requests, per request; 0 for an empty one."""
    total = tardiness(window.latency_histogram, window.server_errors, window.bounds_ms, deadlines_s).sum()
    return float(total / max(int(window.requests.sum()), 1))


def error_ratio(window: Window) -> float:
    """Failed requests per request; 0 for an empty window."""
    return float(window.server_errors.sum() / max(int(window.requests.sum()), 1))


@dataclass
class Reference:
    """What windows under the baseline were like: averages over the latest of them.

    Attributes:
        size: windows that a measurement takes.
        windows: how many the averages rest on.
        art, errors: per request.
        measured_s: when the last of them ended, on the caller's clock.
    """

    size: int
    windows: int = 0
    art: float = 0.0
    errors: float = 0.0
    measured_s: float = float("-inf")

    def add(self, art: float, errors: float, now_s: float) -> None:
        self.windows += 1
        weight = 1.0 / min(self.windows, self.size)
        self.art += weight * (art - self.art)
        self.errors += weight * (errors - self.errors)
        self.measured_s = now_s

    @property
    def ready(self) -> bool:
        return self.windows >= self.size

    def restart(self) -> None:
        """Begins to count again; the old averages stay until they are replaced."""
        self.windows = 0


@dataclass
class Streak:
    """Counts what happens in a row."""

    length: int = 0

    def see(self, happened: bool) -> int:
        self.length = self.length + 1 if happened else 0
        return self.length


def _normal(shares: FloatArray, mask: NDArray[np.bool_]) -> FloatArray:
    clean = np.where(mask, shares, 0.0)
    total: FloatArray = clean / np.maximum(clean.sum(axis=1, keepdims=True), 1e-12)
    return total


def as_weights(shares: FloatArray, like: Weights) -> Weights:
    """Integer weights of shares; servers that are down in `like` stay down with its weight."""
    usable = like.topology.mask & ~like.down
    scaled = np.rint(shares / np.maximum(shares.max(axis=1, keepdims=True), 1e-12) * MAX_WEIGHT)
    values = np.where(usable, np.clip(scaled, 1, MAX_WEIGHT), like.values)
    return Weights(like.topology, values.astype(np.int64), like.down)


Mode = Literal["shadow", "blend", "active"]
Override = Literal["", "paused", "reverted"]


class SteeringOptions(Options):
    """What the controller is allowed to do."""

    mode: Mode = "shadow"
    """`shadow` decides and changes nothing; `blend` goes a part of the way to the policy's weights; `active` all."""
    blend_percent: float = Field(default=10.0, ge=0, le=100)
    """In `blend`: how far from the baseline's weights to the policy's."""
    baseline: Literal["original", "equal", "inverse_latency", "estimator"] = "original"
    """What stands in for the policy: what was in force at the start, equal weights, or what the bundle's residual
    stands on, `inverse_latency` or its `estimator` of service times."""
    guards: GuardOptions = GuardOptions()
    """Limits of the guards."""


class AuditOptions(Options):
    """Where decisions are recorded, and how much of it is kept."""

    max_bytes: int = Field(default=16 * 2**20, ge=1024)
    """Size at which the file is put aside and a new one begun."""
    keep: int = Field(default=8, ge=1)
    """How many files that were put aside are kept."""
