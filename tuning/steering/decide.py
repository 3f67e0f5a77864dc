"""The decision core of a controller: windows and advice in, one decision with its reason out. No I/O, no clock.

The same inputs give the same decisions, so that an audit log can be decided again.

What can be decided about some windows without remembering any before: the answer of a served policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.control import Control, Weights
from actuators.contract.window import Window
from actuators.errors import ConfigError
from envs.observation.features import LatencyMemory
from tuning.policy.adviser import Advice, Advises, State
from tuning.steering import guards as limits
from tuning.steering.guards import GuardName, GuardOptions, Override, SteeringOptions
from tuning.steering.harm import HarmWatch
from tuning.steering.limits import Limits, differ, down_in, limited

Source = Literal["policy", "baseline", "hold"]


@dataclass(frozen=True, eq=False)
class Decision:
    """What to do now, and why.

    Attributes:
        source: whose weights `weights` are; `hold` keeps what is in force.
        weights: what should be in force, service times as well; in shadow mode what would be.
        change: they differ from what is in force and are to be applied.
        guards: those that had a say; alarms: what a person should hear of.
        art, errors: of the window, per request; None when it could not be read.
    """

    source: Source
    reason: str
    weights: Control
    baseline: Control
    change: bool
    guards: tuple[GuardName, ...] = ()
    alarms: tuple[str, ...] = ()
    state: State | None = None
    art: float | None = None
    errors: float | None = None


@dataclass(frozen=True, eq=False)
class _Case:
    """One window with what is known of it."""

    window: Window
    advice: Advice | None
    baseline: Control
    now_s: float
    art: float | None = None
    errors: float | None = None

    def decision(
        self,
        source: Source,
        reason: str,
        weights: Control,
        change: bool,
        said: tuple[GuardName, ...],
        alarms: tuple[str, ...] = (),
    ) -> Decision:
        state = self.advice.state if self.advice else None
        return Decision(source, reason, weights, self.baseline, change, said, alarms, state, self.art, self.errors)


class Steering:
    """Decides every interval; tell it by `applied` what came of a decision.

    Args:
        deadlines_s: ``[groups]``.
        original: control in force at the start, weights with their `down` flags; what a revert goes back to.
        now_s: monotonic seconds, as in `decide`.

    Attributes:
        in_force: control that NGINX uses, as far as the controller knows.
        override: the operator's order, obeyed before everything else.
    """

    def __init__(self, deadlines_s: FloatArray, original: Control, options: SteeringOptions, now_s: float) -> None:
        self.topology, self._deadlines_s, self.options = original.topology, deadlines_s, options
        self.original, self.in_force = original, original
        self.override: Override = ""
        self.harm = HarmWatch(options.guards, now_s)
        self._policy_in_force = False
        self._usable_s, self._changed_s = now_s, float("-inf")
        self._novel, self._familiar, self._unknown_state = limits.Streak(), limits.Streak(), False

    def decide(self, window: Window, advice: Advice | None, now_s: float) -> Decision:
        """The decision after a window; `advice` is None when nobody gave any or the window is unusable."""
        case = _Case(window, advice, self._baseline(advice), now_s)
        if self.override:
            return self._ordered(case)
        if self.options.mode == "shadow" and self._policy_in_force:
            return case.decision("baseline", "shadow mode: back to the baseline", case.baseline, True, ("operator",))
        unserved = any(fault.kind == "server_down" for fault in window.faults)
        if not window.usable and not (unserved and self._policy_in_force):
            return self._blind(case)
        self._usable_s = now_s
        art = limits.tardiness_per_request(window, self._deadlines_s)
        case = replace(case, art=art, errors=1.0 if unserved else limits.error_ratio(window))
        least = self.options.guards.min_requests
        if not unserved and (window.requests.sum(axis=1) < least).all():
            return self._hold(case, "traffic", f"too little traffic to know: fewer than {least} requests per group")
        self._see_novelty(advice)
        harmed = self._harmed(case)
        if harmed is None and unserved:
            return self._hold(case, "errors", "requests found no live server")
        return harmed or self._judge(case)

    def applied(self, decision: Decision, now_s: float) -> None:
        """The decision's weights are in force now."""
        self.in_force, self._changed_s = decision.weights, now_s
        self._own(decision.source == "policy")

    def found(self, present: Control, *, theirs: bool) -> None:
        """These are in force, though we did not put them there just now.

        Args:
            theirs: a person's own change, which from now on is what a revert goes back to; otherwise
                something an earlier controller or a restart of NGINX left behind.
        """
        self.in_force = present
        if theirs:
            self.original = present
            self.harm.reference.restart()
        self._own(differ(present, self.original))

    def _own(self, policy: bool) -> None:
        if self._policy_in_force and not policy:
            self.harm.returned()
        self._policy_in_force = policy

    def _harmed(self, case: _Case) -> Decision | None:
        """Measures the baseline, or holds the policy against it; a revert when it does harm."""
        assert case.art is not None
        assert case.errors is not None
        if not self._policy_in_force:
            self.harm.see_baseline(case.art, case.errors, case.now_s)
            return None
        harm = self.harm.see_policy(case.art, case.errors, case.now_s)
        return self._to_baseline(case, harm.guard, harm.reason, alarm=harm.reason) if harm else None

    def _judge(self, case: _Case) -> Decision:
        """The policy's weights unless something speaks against them."""
        if self._unknown_state:
            return self._to_baseline(case, "novel", "traffic unlike any observed", alarm="recalibrate")
        left_s = self.harm.back_off_left_s(case.now_s)
        if left_s > 0:
            return self._to_baseline(case, "measuring", f"backing off after harm, {left_s:.0f} s left")
        if case.advice is None or case.advice.policy is None:
            problem = case.advice.problem if case.advice else "nobody answered"
            return self._to_baseline(case, "policy", f"no answer of the policy: {problem}", alarm="policy failed")
        if self.options.mode != "shadow":
            self.harm.age(case.now_s)
            reference = self.harm.reference
            if not reference.ready:
                have = f"{reference.windows} of {reference.size} windows"
                return self._to_baseline(case, "measuring", f"measuring the baseline first: {have}")
        return self._towards(case, case.advice.policy)

    def _towards(self, case: _Case, policy: Control) -> Decision:
        guards, window = self.options.guards, case.window
        late = limits.overloaded(window, self._deadlines_s, guards.overload_ratio, guards.min_requests)
        assert case.advice is not None
        within = Limits(
            guards, self.in_force, case.baseline, case.advice.baseline, self.original,
            self.options.blend_percent if self.options.mode == "blend" else 100.0,
            late, window.requests.sum(axis=1) < guards.min_requests,
        )  # fmt: skip
        made = limited(policy, within)
        names = [group.name for group, is_late in zip(self.topology.groups, late, strict=True) if is_late]
        what = "weights" if isinstance(policy, Weights) else "service times"
        towards = "equal" if isinstance(policy, Weights) else "what is measured"
        reason = f"every server of {', '.join(names)} is late: towards {towards}" if names else f"the policy's {what}"
        alarms = ("overload",) if names else ()
        if differ(made.control, self.in_force) and self._young(case.now_s):
            said = (*made.said, "rate")
            return case.decision("hold", "the last change is too young", self.in_force, False, said, alarms)
        return self._change(case, "policy", reason, made.control, made.said, alarms)

    def _change(
        self,
        case: _Case,
        source: Source,
        reason: str,
        weights: Control,
        said: tuple[GuardName, ...],
        alarms: tuple[str, ...],
    ) -> Decision:
        """The decision for these weights; changes nothing in shadow mode."""
        differs, live = differ(weights, self.in_force), self.options.mode != "shadow"
        if not differs:
            # Nothing to apply, but whose weights they are is known.
            self._own(source == "policy" and live)
        return case.decision(source, reason, weights, differs and live, said, alarms)

    def _young(self, now_s: float) -> bool:
        # An interval is never exact to the millisecond.
        return now_s - self._changed_s < 0.95 * self.options.guards.min_between_changes_s

    def _to_baseline(self, case: _Case, guard: GuardName, reason: str, alarm: str = "") -> Decision:
        return self._change(case, "baseline", reason, case.baseline, (guard,), (alarm,) if alarm else ())

    def _hold(self, case: _Case, guard: GuardName, reason: str) -> Decision:
        return case.decision("hold", reason, self.in_force, False, (guard,))

    def _blind(self, case: _Case) -> Decision:
        """Statistics that cannot be read: hold, and after a while the baseline."""
        kinds = ", ".join(sorted({fault.kind for fault in case.window.faults}))
        blind_s = case.now_s - self._usable_s
        if blind_s < self.options.guards.stale_after_s:
            return self._hold(case, "stale", f"statistics unusable ({kinds})")
        reason = f"no usable statistics for {blind_s:.0f} s ({kinds})"
        return self._to_baseline(case, "stale", reason, alarm="statistics missing")

    def _ordered(self, case: _Case) -> Decision:
        """What the operator wants."""
        if self.override == "paused":
            return self._hold(case, "operator", "paused by the operator")
        change = differ(self.original, self.in_force)
        return case.decision("baseline", "reverted by the operator", self.original, change, ("operator",))

    def _see_novelty(self, advice: Advice | None) -> None:
        if advice is None:
            return
        guards = self.options.guards
        novel = float((advice.state.novelty > guards.novel_above).mean()) >= guards.novel_share
        if self._novel.see(novel) >= guards.novel_windows:
            self._unknown_state = True
        if self._familiar.see(not novel) >= guards.familiar_windows:
            self._unknown_state = False

    def _baseline(self, advice: Advice | None) -> Control:
        if self.options.baseline == "equal":
            return replace(Weights.equal(self.topology), down=down_in(self.original))
        if self.options.baseline != "original" and advice is not None:
            simple = advice.baseline
            return replace(simple, down=down_in(self.original)) if isinstance(simple, Weights) else simple
        return self.original


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
