"""Compares the policy in force with its baseline: measures the baseline, detects harm, sets the back-off time."""

from __future__ import annotations

from dataclasses import dataclass

from actuators.contract.arrays import FloatArray
from actuators.contract.window import Window
from envs.observation.deadlines import tardiness
from tuning.steering.options import GuardName, GuardOptions

SETTLE_WINDOWS = 2
"""Windows after a revert that do not measure the baseline: the policy's queues are still being served."""

SMOOTHING = 0.5
"""Weight of the latest window in the average that is compared with the baseline; one quiet window hides no harm."""


@dataclass(frozen=True)
class Harm:
    """The guard that detected harm, and what was worse than under the baseline."""

    guard: GuardName
    reason: str


@dataclass
class Reference:
    """Running averages over the latest windows under the baseline.

    Attributes:
        size: windows that a measurement takes.
        windows: windows measured since the last restart.
        art, errors: mean relative tardiness and failed requests, both per request.
        measured_s: end of the last measured window, on the caller's monotonic clock.
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
        """Starts a new measurement; the old averages stay until new windows replace them."""
        self.windows = 0


@dataclass
class Streak:
    """Counts consecutive occurrences."""

    length: int = 0

    def add(self, happened: bool) -> int:
        self.length = self.length + 1 if happened else 0
        return self.length


class HarmWatch:
    """Gets every usable window together with whose control was in force during it.

    Args:
        now_s: monotonic seconds, as in every call.

    Attributes:
        reference: what the baseline was like.
    """

    def __init__(self, guards: GuardOptions, now_s: float) -> None:
        self._guards = guards
        self.reference = Reference(guards.reference_windows)
        self._late, self._failing = Streak(), Streak()
        self._art: float | None = None
        self._settling = 0
        self._back_off_s, self._back_until_s, self._calm_since_s = guards.back_off_s, float("-inf"), now_s

    def see_baseline(self, art: float, errors: float, now_s: float) -> None:
        """Measures a window under the baseline's control."""
        self._art = None
        self._late.add(False)
        self._failing.add(False)
        if self._settling > 0:
            self._settling -= 1
        else:
            self.reference.add(art, errors, now_s)

    def see_policy(self, art: float, errors: float, now_s: float) -> Harm | None:
        """Compares a window under the policy's control with the baseline; on harm the caller must revert."""
        guards, reference = self._guards, self.reference
        if reference.measured_s == float("-inf"):
            # Weights left by an earlier controller: the baseline is measured first in any case.
            return None
        if now_s - self._calm_since_s > guards.max_back_off_s:
            self._back_off_s = guards.back_off_s
        failing = self._failing.add(errors > reference.errors + guards.error_rise_ratio)
        self._art = art if self._art is None else self._art + SMOOTHING * (art - self._art)
        late = self._late.add(self._art > reference.art * (1 + guards.art_worse_ratio) + guards.art_margin)
        if failing >= guards.error_windows:
            reason = f"{errors:.1%} of the requests fail, {reference.errors:.1%} under the baseline"
            return self._back_off("errors", reason, now_s)
        if late >= guards.art_windows:
            reason = f"relative tardiness {self._art:.2f} per request, {reference.art:.2f} under the baseline"
            return self._back_off("art", reason, now_s)
        return None

    def returned(self) -> None:
        """The baseline is in force again: the queues settle before it is measured."""
        self._settling = SETTLE_WINDOWS

    def back_off_left_s(self, now_s: float) -> float:
        """Seconds that the policy must still wait; 0 when it may act."""
        return max(self._back_until_s - now_s, 0.0)

    def expire(self, now_s: float) -> None:
        """Starts a new measurement of the baseline when the last one is too old."""
        if self.reference.ready and now_s - self.reference.measured_s > self._guards.reference_age_s:
            self.reference.restart()

    def _back_off(self, guard: GuardName, reason: str, now_s: float) -> Harm:
        """Doubles the next back-off. The system may have changed as well, so the baseline is measured again."""
        self._back_until_s = self._calm_since_s = now_s + self._back_off_s
        reason = f"{reason}: back to the baseline for {self._back_off_s:g} s"
        self._back_off_s = min(2 * self._back_off_s, self._guards.max_back_off_s)
        self.reference.restart()
        self._late.add(False)
        self._failing.add(False)
        return Harm(guard, reason)


def tardiness_per_request(window: Window, deadlines_s: FloatArray) -> float:
    """ART (docs/glossary.md#art): relative tardiness of a window's requests, per request; 0 for an empty window.

    Args:
        deadlines_s: ``[groups]``.
    """
    total = tardiness(window.latency_histogram, window.server_errors, window.bounds_ms, deadlines_s).sum()
    return float(total / max(int(window.requests.sum()), 1))


def error_ratio(window: Window) -> float:
    """Failed requests per request, 0…1; 0 for an empty window."""
    return float(window.server_errors.sum() / max(int(window.requests.sum()), 1))
