"""The guards' limits on one change, of weights and of service times alike. Pure, no clock."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray
from actuators.contract.control import MAX_WEIGHT, Control, ServiceTimes, Weights
from tuning.steering import guards as limits
from tuning.steering.guards import GuardName, GuardOptions


@dataclass(frozen=True, eq=False)
class Limited:
    """A control within all limits, and the guards that had to say something."""

    control: Control
    said: tuple[GuardName, ...]


@dataclass(frozen=True, eq=False)
class Limits:
    """What a wanted control is held to.

    Attributes:
        in_force: what NGINX uses now; None when that is not known, and so no step is too far.
        baseline: what a blend begins at; measured: what an overloaded group's service times are pulled to.
        original: says which servers are out of rotation.
        percent: how far to go from the baseline; 100 but in a blend.
        late, quiet: ``[groups]``, every server late; too little traffic to change anything.
    """

    guards: GuardOptions
    in_force: Control | None
    baseline: Control
    measured: Control
    original: Control
    percent: float
    late: NDArray[np.bool_]
    quiet: NDArray[np.bool_]


def limited(wanted: Control, within: Limits) -> Limited:
    """As near to `wanted` as the limits allow."""
    if isinstance(wanted, ServiceTimes):
        return _limited_times(wanted, within)
    return _limited_weights(wanted, within)


def differ(a: Control, b: Control) -> bool:
    """Whether they share requests differently; 1:1 and 100:100 are the same."""
    if isinstance(a, ServiceTimes) and isinstance(b, ServiceTimes):
        same = np.allclose(np.where(a.topology.mask, a.tau_s / b.tau_s - 1.0, 0.0), 0.0, atol=1e-6)
        return not (same and np.allclose(a.workers, b.workers, rtol=1e-6))
    if isinstance(a, ServiceTimes) or isinstance(b, ServiceTimes):
        return True
    return not (np.allclose(a.shares(), b.shares(), atol=1e-6) and np.array_equal(a.down, b.down))


def down_in(control: Control) -> NDArray[np.bool_]:
    """``[groups, servers]`` out of rotation; service times know of none."""
    return control.down if isinstance(control, Weights) else np.zeros(control.topology.shape, bool)


def _limited_weights(wanted: Weights, within: Limits) -> Limited:
    guards, topology = within.guards, wanted.topology
    down = down_in(within.original)
    like = Weights(topology, within.original.as_weights().values, down)
    mask = topology.mask & ~down
    equal = mask / np.maximum(mask.sum(axis=1, keepdims=True), 1)
    pulled = limits.blended(equal, _shares(wanted, mask), 100 * guards.overload_pull)
    shares = np.where(within.late[:, None], pulled, _shares(wanted, mask))
    if within.percent < 100:
        shares = limits.blended(shares, _shares(within.baseline, mask), within.percent)
    shares, high = limits.capped(shares, mask, guards.cap_share)
    shares, low = limits.floored(shares, mask, guards.floor)
    far = False
    if within.in_force is not None:
        shares, far = limits.stepped(shares, _shares(within.in_force, mask), mask, guards.largest_step)
    values = limits.as_weights(shares, like).values
    if within.in_force is not None:
        values = np.where(within.quiet[:, None], within.in_force.as_weights().values, values)
    return Limited(Weights(topology, values, down), _said(within, high=high, low=low, far=far))


def _limited_times(wanted: ServiceTimes, within: Limits) -> Limited:
    """Everything is done to log τ: a server believed to be half as fast is as far away as one twice as fast."""
    guards, mask = within.guards, wanted.topology.mask
    log = _log(wanted.tau_s, mask)
    measured = _log_times(within.measured, log, mask)
    # Equal times would send as much to a slow server as to a fast one, and overload is when that hurts most.
    log = np.where(within.late[:, None], log + guards.overload_pull * (measured - log), log)
    if within.percent < 100:
        base = _log_times(within.baseline, log, mask)
        log = base + (log - base) * within.percent / 100.0
    log, high = _capped(log, mask, guards.cap_share)
    slowest = np.where(mask, log, np.inf).min(axis=1, keepdims=True) + np.log(MAX_WEIGHT / guards.floor)
    low = bool((mask & (log > slowest + 1e-9)).any())
    log = np.minimum(log, slowest)
    far = False
    if within.in_force is not None:
        present, most = _log_times(within.in_force, log, mask), np.log(guards.largest_step)
        far = bool((mask & (np.abs(log - present) > most + 1e-9)).any())
        log = np.clip(log, present - most, present + most)
        log = np.where(within.quiet[:, None], present, log)
    return Limited(replace(wanted, tau_s=np.exp(log)), _said(within, high=high, low=low, far=far))


def _said(within: Limits, *, high: bool, low: bool, far: bool) -> tuple[GuardName, ...]:
    spoke: tuple[tuple[GuardName, bool], ...] = (
        ("overload", bool(within.late.any())), ("cap", high), ("floor", low), ("step", far),
        ("traffic", bool(within.quiet.any())),
    )  # fmt: skip
    return tuple(name for name, did in spoke if did)


def _capped(log: FloatArray, mask: NDArray[np.bool_], cap_share: float) -> tuple[FloatArray, bool]:
    """No server is believed to be so fast that it alone were more than the cap of its group."""
    speeds = np.where(mask, np.exp(-log), 0.0)
    shares = speeds / speeds.sum(axis=1, keepdims=True)
    new, high = limits.capped(shares, mask, cap_share)
    if not high:
        return log, False
    # Shares scale freely: the others keep their times, the capped one is believed to be slower.
    other = mask & (shares <= cap_share)
    scale = (speeds * other).sum(axis=1) / np.maximum((new * other).sum(axis=1), 1e-12)
    touched = (mask & (shares > cap_share + 1e-9)).any(axis=1)[:, None] & other.any(axis=1)[:, None]
    capped = -np.log(np.where(mask, np.maximum(new * scale[:, None], 1e-12), 1.0))
    return np.where(touched & mask, capped, log), True


def _log(tau_s: FloatArray, mask: NDArray[np.bool_]) -> FloatArray:
    logs: FloatArray = np.log(np.where(mask, tau_s, 1.0))
    return logs


def _log_times(control: Control, log: FloatArray, mask: NDArray[np.bool_]) -> FloatArray:
    """log τ of a control; of weights the mean of each group, because a method with weights knows no times."""
    if isinstance(control, ServiceTimes):
        return _log(control.tau_s, mask)
    mean = np.where(mask, log, 0.0).sum(axis=1, keepdims=True) / np.maximum(mask.sum(axis=1, keepdims=True), 1)
    return np.where(mask, mean, 0.0)


def _shares(control: Control, mask: NDArray[np.bool_]) -> FloatArray:
    usable = np.where(mask, control.as_weights().values, 0).astype(float)
    shares: FloatArray = usable / np.maximum(usable.sum(axis=1, keepdims=True), 1e-12)
    return shares
