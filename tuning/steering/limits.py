"""The guards' limits on a single change, of weights or of service times. Pure functions; watches over several windows
are in `harm`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from actuators.contract.arrays import BoolArray, FloatArray
from actuators.contract.control import MAX_WEIGHT, Canary, Control, ServiceTimes, Weights
from actuators.contract.window import Window
from tuning.steering.options import GuardName, GuardOptions


@dataclass(frozen=True, eq=False)
class Limits:
    """What limits a change.

    Attributes:
        in_force: control that NGINX uses now; None when it is unknown, and then no step is too large.
        baseline: where `percent` counts from.
        measured: whose service times an overloaded group is pulled to.
        original: which servers are out of rotation.
        percent: how far to go from the baseline to the policy, 0…100.
        late, quiet: bool ``[groups]``: every server is late; too little traffic for a change.
    """

    guards: GuardOptions
    in_force: Control | None
    baseline: Control
    measured: Control
    original: Control
    percent: float
    late: BoolArray
    quiet: BoolArray


@dataclass(frozen=True, eq=False)
class LimitedControl:
    """A control within all limits, and the guards that changed it."""

    control: Control
    guards: tuple[GuardName, ...]


def limit(wanted: Control, limits: Limits) -> LimitedControl:
    """The control nearest to `wanted` within the limits."""
    if isinstance(wanted, ServiceTimes):
        return _limit_times(wanted, limits)
    return _limit_weights(wanted, limits)


def differ(a: Control, b: Control) -> bool:
    """Whether two controls share or hold requests differently; weights 1:1 and 100:100 do not."""
    if isinstance(a, ServiceTimes) and isinstance(b, ServiceTimes):
        same = np.allclose(np.where(a.topology.mask, a.tau_s / b.tau_s - 1.0, 0.0), 0.0, atol=1e-6)
        same = same and np.array_equal(a.down, b.down)
        return not (same and np.allclose(a.workers, b.workers, rtol=1e-6) and a.holding == b.holding)
    if isinstance(a, ServiceTimes) or isinstance(b, ServiceTimes):
        return True
    return not (np.allclose(a.shares(), b.shares(), atol=1e-6) and np.array_equal(a.down, b.down))


def canaries_differ(a: Canary | None, b: Canary | None) -> bool:
    """Whether another part of the requests goes by the new control, or the others by another one."""
    if a is None or b is None:
        return a is not b
    return a.percent != b.percent or differ(a.base, b.base)


def overloaded(window: Window, deadlines_s: FloatArray, ratio: float, min_requests: int) -> BoolArray:
    """Bool ``[groups]``: at least two servers of the group answered, and all that did are late.

    Args:
        deadlines_s: ``[groups]``.
        ratio: mean response time over deadline above which a server is late.
        min_requests: requests that the group must have had.
    """
    seen = window.requests > 0
    late = np.nan_to_num(window.mean_response_s()) > ratio * deadlines_s[:, None]
    enough = (window.requests.sum(axis=1) >= min_requests) & (seen.sum(axis=1) >= 2)
    result: BoolArray = enough & (late | ~seen).all(axis=1)
    return result


def floored(shares: FloatArray, mask: BoolArray, floor: int) -> tuple[FloatArray, bool]:
    """Shares ``[groups, servers]`` with none below `floor` hundredths of its group's largest; whether one was below."""
    least = shares.max(axis=1, keepdims=True) * floor / MAX_WEIGHT
    low = mask & (shares < least * (1 - 1e-9))
    return _normalised(np.where(low, least, shares), mask), bool(low.any())


def capped(shares: FloatArray, mask: BoolArray, cap_share: float) -> tuple[FloatArray, bool]:
    """Shares with none above `cap_share`, or above an equal share if that is larger; whether one was above."""
    count = mask.sum(axis=1, keepdims=True)
    cap = np.maximum(cap_share, 1.0 / np.maximum(count, 1))
    high = mask & (shares > cap + 1e-9)
    rest = np.where(high, 0.0, shares).sum(axis=1, keepdims=True)
    # At most one server can be above a cap of more than a half; below, the rest is shared in proportion.
    room = 1.0 - (high * cap).sum(axis=1, keepdims=True)
    scaled = np.where(high, cap, shares * np.where(rest > 0, room / np.maximum(rest, 1e-12), 1.0))
    return _normalised(np.where(high.any(axis=1, keepdims=True), scaled, shares), mask), bool(high.any())


def stepped(shares: FloatArray, in_force: FloatArray, mask: BoolArray, largest: float) -> tuple[FloatArray, bool]:
    """The step from the shares in force towards `shares` in which no share changes by more than the factor `largest`.

    Returns the shares after the step and whether the step stops short.
    """
    way = np.where(mask, shares - in_force, 0.0)
    room = in_force * np.where(way > 0, largest - 1.0, 1.0 - 1.0 / largest)
    # All shares of a group go the same part of their way: their sum stays 1 and the direction is kept.
    allowed = np.where(np.abs(way) > 1e-12, room / np.maximum(np.abs(way), 1e-12), np.inf)
    part = np.minimum(1.0, allowed.min(axis=1, keepdims=True))
    return _normalised(in_force + part * way, mask), bool((part < 1.0 - 1e-9).any())


def blended(policy: FloatArray, base: FloatArray, percent: float) -> FloatArray:
    """Shares `percent` of the way from `base` to `policy`."""
    return base + (policy - base) * percent / 100.0


GRAIN = 0.002
"""Share that whole numbers may add where no whole numbers stay within the way."""


def whole_within(shares: FloatArray, base: Weights, mask: BoolArray) -> Weights:
    """Whole weights that take each server's share from that of `base` towards `shares` and not beyond.

    Of those with a largest weight of 1…100 the nearest to `shares`, if it goes half of the way or more; where there is
    none, one in which servers with a short way go at most `GRAIN` beyond it, and none further than the server with the
    longest way may; else `base`. Servers that are down keep their weight.
    """
    base_shares, entries = _shares(base, mask), base.topology.entries
    each = shares / entries
    levels = np.arange(1, MAX_WEIGHT + 1)[:, None, None] / np.maximum(each.max(axis=1, keepdims=True), 1e-12) * each
    # Rounded towards the base.
    tried = np.where(shares > base_shares, np.floor(levels + 1e-9), np.ceil(levels - 1e-9)).clip(1, MAX_WEIGHT)
    tried = np.where(mask, tried, 0.0)
    found = tried * entries / np.maximum((tried * entries).sum(axis=-1, keepdims=True), 1e-12)
    beyond = np.maximum(found - np.maximum(shares, base_shares), np.minimum(shares, base_shares) - found).max(axis=-1)
    far = np.abs(found - base_shares).max(axis=-1) > np.abs(shares - base_shares).max(axis=-1) + 1e-9
    left = np.abs(found - shares).sum(axis=-1)
    worth = left <= 0.5 * np.abs(base_shares - shares).sum(axis=-1)
    rank = np.where((beyond <= 1e-9) & worth, 0.0, np.where((beyond <= GRAIN) & worth & ~far, 10.0, np.inf)) + left
    best, groups = rank.argmin(axis=0), np.arange(len(shares))
    moves = np.isfinite(rank[best, groups])[:, None] & mask
    return Weights(base.topology, np.where(moves, tried[best, groups], base.values).astype(np.int64), base.down)


def as_weights(shares: FloatArray, like: Weights) -> Weights:
    """Integer weights of shares; servers that are down in `like` stay down with its weight."""
    usable = like.topology.mask & ~like.down
    each = shares / like.topology.entries
    scaled = np.rint(each / np.maximum(each.max(axis=1, keepdims=True), 1e-12) * MAX_WEIGHT)
    values = np.where(usable, np.clip(scaled, 1, MAX_WEIGHT), like.values)
    return Weights(like.topology, values.astype(np.int64), like.down)


def as_shared(weights: Weights) -> Weights:
    """Weights in proportion to the shares, as if each server had one address; the same where that is so."""
    topology = weights.topology
    if not topology.addresses:
        return weights
    return as_weights(weights.shares(), Weights(topology.plain, weights.values, weights.down))


def _limit_weights(wanted: Weights, limits: Limits) -> LimitedControl:
    guards, topology = limits.guards, limits.original.topology
    down = limits.original.down
    like = Weights(topology, limits.original.as_weights().values, down)
    mask = topology.mask & ~down
    equal = mask / np.maximum(mask.sum(axis=1, keepdims=True), 1)
    pulled = blended(equal, _shares(wanted, mask), 100 * guards.overload_pull)
    shares = np.where(limits.late[:, None], pulled, _shares(wanted, mask))
    within = limits.percent < 100 and guards.canary_within
    base = _shares(limits.baseline, mask)
    if limits.percent < 100 and not within:
        shares = blended(shares, base, limits.percent)
    shares, high = capped(shares, mask, guards.cap_share)
    shares, low = floored(shares, mask, guards.floor)
    if within:
        shares = blended(shares, base, limits.percent)
    far = False
    if limits.in_force is not None:
        shares, far = stepped(shares, _shares(limits.in_force, mask), mask, guards.largest_step)
    first = Weights(topology, limits.baseline.as_weights().values, down)
    values = (whole_within(shares, first, mask) if within else as_weights(shares, like)).values
    if limits.in_force is not None:
        values = np.where(limits.quiet[:, None], limits.in_force.as_weights().values, values)
    return LimitedControl(Weights(topology, values, down), _active_guards(limits, high=high, low=low, far=far))


def _limit_times(wanted: ServiceTimes, limits: Limits) -> LimitedControl:
    """Limits log τ, so that half and twice the service time are equally far away."""
    guards, down = limits.guards, limits.original.down
    mask = wanted.topology.mask & ~down
    log = _log(wanted.tau_s, wanted.topology.mask)
    measured = _log_times(limits.measured, log, mask)
    # Equal times would send as much to a slow server as to a fast one, which hurts most in overload.
    log = np.where(limits.late[:, None], log + guards.overload_pull * (measured - log), log)
    if limits.percent < 100:
        base = _log_times(limits.baseline, log, mask)
        log = base + (log - base) * limits.percent / 100.0
    log, high = _capped_log(log, mask, guards.cap_share)
    slowest = np.where(mask, log, np.inf).min(axis=1, keepdims=True) + np.log(MAX_WEIGHT / guards.floor)
    low = bool((mask & (log > slowest + 1e-9)).any())
    log = np.minimum(log, slowest)
    far = False
    if limits.in_force is not None:
        present, most = _log_times(limits.in_force, log, mask), np.log(guards.largest_step)
        far = bool((mask & (np.abs(log - present) > most + 1e-9)).any())
        log = np.clip(log, present - most, present + most)
        log = np.where(limits.quiet[:, None], present, log)
    # What no request goes to has no step: when it comes back, it has the policy's service time.
    control = replace(wanted, tau_s=np.where(down, wanted.tau_s, np.exp(log)), down=down)
    return LimitedControl(control, _active_guards(limits, high=high, low=low, far=far))


def _active_guards(limits: Limits, *, high: bool, low: bool, far: bool) -> tuple[GuardName, ...]:
    quiet = limits.in_force is not None and bool(limits.quiet.any())
    active: tuple[tuple[GuardName, bool], ...] = (
        ("overload", bool(limits.late.any())), ("cap", high), ("floor", low), ("step", far), ("traffic", quiet),
    )  # fmt: skip
    return tuple(name for name, is_active in active if is_active)


def _capped_log(log: FloatArray, mask: BoolArray, cap_share: float) -> tuple[FloatArray, bool]:
    """Log τ such that no server's speed is more than `cap_share` of its group's; whether one was."""
    speeds = np.where(mask, np.exp(-log), 0.0)
    shares = speeds / speeds.sum(axis=1, keepdims=True)
    new, high = capped(shares, mask, cap_share)
    if not high:
        return log, False
    # Shares have no scale: the other servers keep their times, the capped one gets a longer time.
    other = mask & (shares <= cap_share)
    scale = (speeds * other).sum(axis=1) / np.maximum((new * other).sum(axis=1), 1e-12)
    touched = (mask & (shares > cap_share + 1e-9)).any(axis=1)[:, None] & other.any(axis=1)[:, None]
    slowed = -np.log(np.where(mask, np.maximum(new * scale[:, None], 1e-12), 1.0))
    return np.where(touched & mask, slowed, log), True


def _log(tau_s: FloatArray, mask: BoolArray) -> FloatArray:
    logs: FloatArray = np.log(np.where(mask, tau_s, 1.0))
    return logs


def _log_times(control: Control, log: FloatArray, mask: BoolArray) -> FloatArray:
    """Log τ of a control; weights carry no times, so theirs is the mean of each group in `log`."""
    if isinstance(control, ServiceTimes):
        return _log(control.tau_s, mask)
    mean = np.where(mask, log, 0.0).sum(axis=1, keepdims=True) / np.maximum(mask.sum(axis=1, keepdims=True), 1)
    return np.where(mask, mean, 0.0)


def _shares(control: Control, mask: BoolArray) -> FloatArray:
    weights = control.as_weights()
    usable = np.where(mask, weights.values * weights.topology.entries, 0).astype(float)
    shares: FloatArray = usable / np.maximum(usable.sum(axis=1, keepdims=True), 1e-12)
    return shares


def _normalised(shares: FloatArray, mask: BoolArray) -> FloatArray:
    clean = np.where(mask, shares, 0.0)
    total: FloatArray = clean / np.maximum(clean.sum(axis=1, keepdims=True), 1e-12)
    return total
