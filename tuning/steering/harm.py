"""Holds the policy against its baseline: measures the baseline, notices harm, and says for how long to back off."""

from __future__ import annotations

from dataclasses import dataclass

from tuning.steering.guards import GuardName, GuardOptions, Reference, Streak

SETTLE_WINDOWS = 2
"""Windows after a revert in which the queues that the policy built up are still served: no measure of the baseline."""

SMOOTHING = 0.5
"""Weight of the latest window in the average that is held against the baseline: one quiet window hides no harm."""


@dataclass(frozen=True)
class Harm:
    """What was worse than under the baseline, and by how much."""

    guard: GuardName
    reason: str


class HarmWatch:
    """Tell it of every usable window, and whose weights were in force during it.

    Args:
        now_s: monotonic seconds, as in every call.
    """

    def __init__(self, guards: GuardOptions, now_s: float) -> None:
        self._guards = guards
        self.reference = Reference(guards.reference_windows)
        self._late, self._failing = Streak(), Streak()
        self._art: float | None = None
        self._settling = 0
        self._back_off_s, self._back_until_s, self._calm_since_s = guards.back_off_s, float("-inf"), now_s

    def see_baseline(self, art: float, errors: float, now_s: float) -> None:
        """A window under the baseline's weights."""
        self._art = None
        self._late.see(False)
        self._failing.see(False)
        if self._settling > 0:
            self._settling -= 1
        else:
            self.reference.add(art, errors, now_s)

    def see_policy(self, art: float, errors: float, now_s: float) -> Harm | None:
        """A window under the policy's weights: the harm it shows, after which the caller must revert."""
        guards, reference = self._guards, self.reference
        if reference.measured_s == float("-inf"):
            # Weights of an earlier controller: the baseline comes first anyway.
            return None
        if now_s - self._calm_since_s > guards.max_back_off_s:
            self._back_off_s = guards.back_off_s
        failing = self._failing.see(errors > reference.errors + guards.error_rise_ratio)
        self._art = art if self._art is None else self._art + SMOOTHING * (art - self._art)
        late = self._late.see(self._art > reference.art * (1 + guards.art_worse_ratio) + guards.art_margin)
        if failing >= guards.error_windows:
            words = f"{errors:.1%} of the requests fail, {reference.errors:.1%} under the baseline"
            return self._harm("errors", words, now_s)
        if late >= guards.art_windows:
            words = f"relative tardiness {self._art:.2f} per request, {reference.art:.2f} under the baseline"
            return self._harm("art", words, now_s)
        return None

    def returned(self) -> None:
        """The baseline is in force again: queues settle before it is measured."""
        self._settling = SETTLE_WINDOWS

    def back_off_left_s(self, now_s: float) -> float:
        """How long the policy must still wait; 0 when it may act."""
        return max(self._back_until_s - now_s, 0.0)

    def age(self, now_s: float) -> None:
        """Has the baseline measured again when what is known of it is old."""
        if self.reference.ready and now_s - self.reference.measured_s > self._guards.reference_age_s:
            self.reference.restart()

    def _harm(self, guard: GuardName, words: str, now_s: float) -> Harm:
        """Longer every time; the world may have changed, too, so the baseline is measured anew meanwhile."""
        self._back_until_s = self._calm_since_s = now_s + self._back_off_s
        reason = f"{words}: back to the baseline for {self._back_off_s:g} s"
        self._back_off_s = min(2 * self._back_off_s, self._guards.max_back_off_s)
        self.reference.restart()
        self._late.see(False)
        self._failing.see(False)
        return Harm(guard, reason)
