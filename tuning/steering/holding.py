"""When a controller may let NGINX hold requests (docs/late-binding.md#under-a-controller): after counting has shown
that few would be held at ordinary times, because with too few slots servers are idle while requests wait.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from pydantic import Field

from actuators.contract.window import HoldWindow, Window
from actuators.options import Options
from tuning.steering.options import Mode

MOST_REFUSED = 0.01
"""Share of the requests of the last windows that were refused after a hold, or for want of room, above which it is an
alarm."""


class HoldGuards(Options):
    """When requests may be held."""

    proving_windows: int = Field(default=60, ge=1, le=100_000)
    """Windows with requests over which it is only counted what would be held, before anything is."""
    ordinary_held: float = Field(default=0.05, ge=0, le=1)
    """Share of the requests of those windows that would be held up to which they may be from then on: more means too
    few slots, or an overload."""


@dataclass(frozen=True)
class HoldVerdict:
    """What should be in force.

    Attributes:
        holds: requests are held; else it is counted which would be.
        alarms: what an operator should know.
    """

    holds: bool
    reason: str
    alarms: tuple[str, ...] = ()


class HoldWatch:
    """Remembers what would have been held, and what is refused.

    Args:
        proved: requests are held already.
    """

    def __init__(self, guards: HoldGuards, *, proved: bool) -> None:
        self._guards, self.proved = guards, proved
        self._counted: deque[HoldWindow] = deque(maxlen=guards.proving_windows)

    def see(self, window: Window) -> None:
        """Takes note of a window; one that cannot be used, or without requests, says nothing."""
        counts = window.holding
        if not window.usable or counts is None or not counts.asked.sum():
            return
        if self.proved or counts.state == "watching":
            self._counted.append(counts)
        if not self.proved and self._complete and self._would() <= self._guards.ordinary_held:
            self.proved = True
            self._counted.clear()

    def decide(self, mode: Mode, canary_percent: float) -> HoldVerdict:
        """For the next window. A part of the requests cannot be held: the others would take every slot before them."""
        if mode == "shadow":
            return HoldVerdict(False, "shadow: what would be held is only counted")
        if not self.proved:
            return self._measuring()
        if mode == "canary" and canary_percent < 100:
            return HoldVerdict(False, "canary: a part of the requests cannot be held, so it is only counted")
        return HoldVerdict(True, "requests wait for a slot", self._refusing())

    @property
    def _complete(self) -> bool:
        return len(self._counted) == self._guards.proving_windows

    def _measuring(self) -> HoldVerdict:
        reason = f"only counts until {self._guards.proving_windows} windows have shown what is ordinary"
        if not self._complete:
            return HoldVerdict(False, reason)
        alarm = (
            f"late binding would hold {self._would():.1%} of the requests of {len(self._counted)} windows, so it only"
            " counts: servers have too few slots, or this is an overload"
        )
        return HoldVerdict(False, reason, (alarm,))

    def _would(self) -> float:
        """Share of the requests that would have been held."""
        return sum(int(each.would.sum()) for each in self._counted) / self._asked()

    def _refusing(self) -> tuple[str, ...]:
        """An alarm when requests are refused although they were held, or because too many are."""
        refused = sum(int((each.refused + each.hopeless).sum()) for each in self._counted) / max(self._asked(), 1)
        if refused <= MOST_REFUSED:
            return ()
        return (f"late binding refuses {refused:.1%} of the requests: more come than servers with these slots answer",)

    def _asked(self) -> int:
        return sum(int(each.asked.sum()) for each in self._counted)
