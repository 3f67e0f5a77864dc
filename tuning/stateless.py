"""What can be decided about some windows without remembering any before: the answer of a served policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from actuators.control import Control, Weights
from actuators.errors import ConfigError
from actuators.window import Window
from envs.deadlines import FloatArray
from envs.features import LatencyMemory
from tuning import guards as limits
from tuning.advice import Advice, Advises
from tuning.guards import GuardOptions
from tuning.limiting import Limits, limited


@dataclass(frozen=True, eq=False)
class Answer:
    """A decision about the present; `weights` is None when nothing should change and what is in force is unknown."""

    decision: Literal["policy", "baseline", "hold"]
    reason: str
    weights: Control | None
    advice: Advice | None


def answer(
    adviser: Advises,
    windows: Sequence[Window],
    memory: LatencyMemory | None,
    deadlines_s: FloatArray,
    guards: GuardOptions,
) -> Answer:
    """Hold, baseline or policy, after the last of `windows` (oldest first)."""
    seen = usable(windows)
    return judged(windows[-1], adviser.advise(seen, memory) if seen else None, deadlines_s, guards)


def usable(windows: Sequence[Window]) -> list[Window]:
    """Those that advice can be asked about."""
    return [window for window in windows if window.usable and window.requests.sum() > 0]


def judged(last: Window, advice: Advice | None, deadlines_s: FloatArray, guards: GuardOptions) -> Answer:
    """What becomes of the advice after the last window; None where no window was usable."""
    if not last.usable:
        kinds = ", ".join(sorted({fault.kind for fault in last.faults}))
        return Answer("hold", f"statistics unusable ({kinds})", _present(last), advice)
    if advice is None or (last.requests.sum(axis=1) < guards.min_requests).all():
        return Answer("hold", "too little traffic to know", _present(last), advice)
    if float((advice.state.novelty > guards.novel_above).mean()) >= guards.novel_share:
        return Answer("baseline", "traffic unlike any observed", advice.baseline, advice)
    if advice.policy is None:
        return Answer("baseline", f"no answer of the policy: {advice.problem}", advice.baseline, advice)
    return _policy(advice.policy, last, advice, deadlines_s, guards)


def _policy(policy: Control, last: Window, advice: Advice, deadlines_s: FloatArray, guards: GuardOptions) -> Answer:
    late = limits.overloaded(last, deadlines_s, guards.overload_ratio, guards.min_requests)
    original = Weights(policy.topology, last.weight.clip(1, 100), last.down & ~_dead(last))
    quiet = np.zeros(policy.topology.shape[0], bool)
    within = Limits(guards, None, advice.baseline, advice.baseline, original, 100.0, late, quiet)
    control = limited(policy, within).control
    names = ", ".join(g.name for g, is_late in zip(policy.topology.groups, late, strict=True) if is_late)
    what, towards = ("weights", "equal") if isinstance(policy, Weights) else ("service times", "what is measured")
    return Answer("policy", f"every server of {names} is late: towards {towards}" if names else f"the policy's {what}",
                  control, advice)  # fmt: skip


def _dead(window: Window) -> np.ndarray:
    """Groups of which every server is shown as down: vts shows servers that failed of late so, too."""
    usable = np.asarray((window.topology.mask & ~window.down).any(axis=1, keepdims=True))
    return ~usable


def _present(window: Window) -> Weights | None:
    try:
        return Weights(window.topology, window.weight, window.down)
    except ConfigError:
        return None
