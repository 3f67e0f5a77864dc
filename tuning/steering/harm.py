"""Compares the policy in force with its baseline: measures the baseline, detects harm, sets the back-off time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.window import Window
from envs.observation.deadlines import tardiness
from tuning.steering.meanings import BACK_TO_BASELINE
from tuning.steering.options import GuardName, GuardOptions

SETTLE_WINDOWS = 2
"""Windows after a revert that do not measure the baseline: the policy's queues are still being served."""

SMOOTHING = 0.5
"""Weight of the latest window in the average that is compared with the baseline; one quiet window hides no harm."""


FOLLOWED_WINDOWS = 60
"""Windows over which the tolerance follows what is seen under a higher load."""


@dataclass(frozen=True)
class Harm:
    """The guard that detected harm, and what was worse than under the baseline."""

    guard: GuardName
    reason: str


@dataclass(frozen=True)
class Seen:
    """What a window tells about harm: `tardiness_per_request`, `error_ratio`, requests per second."""

    art: float
    errors: float
    rate_rps: float


@dataclass
class Reference:
    """Running averages over the latest windows under the baseline.

    Attributes:
        size: windows that a measurement takes at least.
        remembered: windows that the averages are over, when there are so many; `size` when that is more.
        windows: windows measured since the last restart.
        art, errors: mean relative tardiness and failed requests, both per request.
        spread: mean deviation of a window's tardiness from the mean.
        rate_rps: mean request rate.
        measured_s: end of the last measured window, on the caller's monotonic clock.
    """

    size: int
    remembered: int = 1
    windows: int = 0
    art: float = 0.0
    errors: float = 0.0
    spread: float = 0.0
    rate_rps: float = 0.0
    measured_s: float = float("-inf")

    def add(self, seen: Seen, now_s: float) -> None:
        self.windows += 1
        weight = 1.0 / min(self.windows, max(self.size, self.remembered))
        self.spread += weight * (abs(seen.art - self.art) * (self.windows > 1) - self.spread)
        self.art += weight * (seen.art - self.art)
        self.errors += weight * (seen.errors - self.errors)
        self.rate_rps += weight * (seen.rate_rps - self.rate_rps)
        self.measured_s = now_s

    @property
    def ready(self) -> bool:
        return self.windows >= self.size

    def restart(self) -> None:
        """Starts a new measurement; the old averages stay until new windows replace them."""
        self.windows = 0


@dataclass
class Streak:
    """Counts consecutive occurrences."""

    length: int = 0

    def add(self, happened: bool) -> int:
        self.length = self.length + 1 if happened else 0
        return self.length


class BackOff:
    """For how long the policy stays withdrawn: doubles each time, until a calm time of `most_s` has passed."""

    def __init__(self, first_s: float, most_s: float, now_s: float) -> None:
        self._first_s, self._most_s = first_s, most_s
        self._next_s, self._until_s, self._calm_since_s = first_s, float("-inf"), now_s

    def begin(self, now_s: float) -> float:
        """Withdraws the policy from now on; returns for how many seconds."""
        if now_s - self._calm_since_s > self._most_s:
            self._next_s = self._first_s
        length_s = self._next_s
        self._until_s = self._calm_since_s = now_s + length_s
        self._next_s = min(2 * length_s, self._most_s)
        return length_s

    def left_s(self, now_s: float) -> float:
        """Seconds that the policy must still wait; 0 when it may act."""
        return max(self._until_s - now_s, 0.0)

    def factor(self, now_s: float) -> float:
        """How many times longer than the first withdrawal the next one will be: 1, 2, 4, …"""
        calm = now_s - self._calm_since_s > self._most_s
        return 1.0 if calm or self._first_s == 0 else self._next_s / self._first_s


class HarmWatch:
    """Gets every usable window together with whose control was in force during it.

    Args:
        now_s: monotonic seconds, as in every call.

    Attributes:
        reference: what the baseline was like.
    """

    def __init__(self, guards: GuardOptions, now_s: float) -> None:
        self._guards = guards
        self.reference = Reference(guards.reference_windows, guards.remembered_windows)
        self._late, self._comparably_late, self._failing = Streak(), Streak(), Streak()
        self._art: float | None = None
        self._followed: float | None = None
        self._settling = 0
        self._back_off = BackOff(guards.back_off_s, guards.max_back_off_s, now_s)

    def see_baseline(self, seen: Seen, now_s: float) -> None:
        """Measures a window under the baseline's control."""
        self._art = self._followed = None
        self._calm()
        if self._settling > 0:
            self._settling -= 1
        else:
            self.reference.add(seen, now_s)

    def see_policy(self, seen: Seen, now_s: float) -> Harm | None:
        """Compares a window under the policy's control with the baseline; on harm the caller must revert."""
        guards, reference = self._guards, self.reference
        if reference.measured_s == float("-inf"):
            # Weights left by an earlier controller: the baseline is measured first in any case.
            return None
        failing = self._failing.add(seen.errors > reference.errors + guards.error_rise_ratio)
        self._art = seen.art if self._art is None else self._art + SMOOTHING * (seen.art - self._art)
        expected, comparable = self._expected(seen), self._followed is None
        tolerated = expected * (1 + guards.art_worse_ratio) + guards.art_margin + guards.art_spreads * reference.spread
        late = self._art > tolerated
        long_late, short_late = self._late.add(late), self._comparably_late.add(late and comparable)
        if failing >= guards.error_windows:
            reason = f"{seen.errors:.1%} of the requests fail, {reference.errors:.1%} under the baseline"
            return self._harm("errors", reason, now_s)
        if short_late >= guards.art_windows or long_late >= guards.art_windows_higher_load:
            reason = f"relative tardiness {self._art:.2f} per request, {expected:.2f} under the baseline"
            return self._harm("art", reason, now_s)
        return None

    def returned(self) -> None:
        """The baseline is in force again: the queues settle before it is measured."""
        self._settling = SETTLE_WINDOWS

    def back_off_left_s(self, now_s: float) -> float:
        """Seconds that the policy must still wait; 0 when it may act."""
        return self._back_off.left_s(now_s)

    def back_off_factor(self, now_s: float) -> float:
        """How many times longer than the first back-off the next one will be."""
        return self._back_off.factor(now_s)

    def expire(self, now_s: float) -> None:
        """Starts a new measurement of the baseline when the last one is too old."""
        if self.reference.ready and now_s - self.reference.measured_s > self._guards.reference_age_s:
            self.reference.restart()

    def _calm(self) -> None:
        for streak in (self._late, self._comparably_late, self._failing):
            streak.add(False)

    def _expected(self, seen: Seen) -> float:
        """Tardiness that the baseline would have; under a higher load than it was measured at, what was seen lately."""
        reference = self.reference
        if seen.rate_rps <= reference.rate_rps * (1 + self._guards.load_rise_ratio):
            self._followed = None
            return reference.art
        before = reference.art if self._followed is None else self._followed
        self._followed = max(reference.art, before + (seen.art - before) / FOLLOWED_WINDOWS)
        return before

    def _harm(self, guard: GuardName, reason: str, now_s: float) -> Harm:
        """Doubles the next back-off. The system may have changed as well, so the baseline is measured again."""
        reason = f"{reason}: {BACK_TO_BASELINE} for {self._back_off.begin(now_s):g} s"
        self.reference.restart()
        self._calm()
        return Harm(guard, reason)


def seen_in(window: Window, deadlines_s: FloatArray, most_lateness: float) -> Seen:
    """What a window tells about harm.

    Args:
        deadlines_s: ``[groups]``.
        most_lateness: relative tardiness at which that of a single answer is cut.
    """
    art, rate_rps = tardiness_per_request(window, deadlines_s, most_lateness), window.requests.sum()
    return Seen(art, error_ratio(window), float(rate_rps / max(window.duration_s, 1e-3)))


def tardiness_per_request(window: Window, deadlines_s: FloatArray, most: float = np.inf) -> float:
    """ART (docs/glossary.md#art): relative tardiness of a window's requests, per request; 0 for an empty window.

    Without a histogram, that of the servers' means. Where requests are held, or it is counted which would be, times
    count from their arrival, so that the hold is a part of them; one that is refused because it would be late counts as
    late by its deadline.

    Args:
        deadlines_s: ``[groups]``.
        most: relative tardiness at which that of a single answer is cut.
    """
    errors: FloatArray = window.server_errors * np.float64(_unhidden(window))
    held = window.holding
    if held is not None and held.counts and held.bounds_ms == window.bounds_ms:
        # Groups whose locations ask for no slot have the times of their servers.
        known = held.answered > 0
        times = np.where(known[:, None], held.answer_histogram, window.latency_histogram.sum(axis=1))
        failed = errors.sum(axis=1) + held.refused
        refused, hopeless = int(held.refused.sum()), int(held.hopeless.sum())
        requests = int(np.where(known, held.answered, window.requests.sum(axis=1)).sum()) + refused + hopeless
        total = tardiness(times[:, None], failed[:, None], window.bounds_ms, deadlines_s, most).sum() + hopeless
        return float(total / max(requests, 1))
    if window.bounds_ms:
        total = tardiness(window.latency_histogram, errors, window.bounds_ms, deadlines_s, most).sum()
    else:
        late = np.nan_to_num(window.mean_response_s() / deadlines_s[:, None] - 1.0).clip(0.0, most)
        total = (window.requests * late).sum() + tardiness(
            window.latency_histogram, errors, (), deadlines_s, most
        ).sum()
    return float(total / max(int(window.requests.sum()), 1))


def error_ratio(window: Window) -> float:
    """Requests whose client got a failure, per request, 0…1; 0 for an empty window. One that was held for too long, or
    that found too many held, has failed.
    """
    refused = 0 if window.holding is None else int(window.holding.refused.sum())
    failed = window.server_errors.sum() * _unhidden(window) + refused
    return float(failed / max(int(window.requests.sum()) + refused, 1))


def _unhidden(window: Window) -> float:
    """Share of the failed attempts that clients can have seen: NGINX hides those that another server answers."""
    attempts = int(window.server_errors.sum())
    if window.client_errors is None or attempts <= window.client_errors:
        return 1.0
    return window.client_errors / attempts
