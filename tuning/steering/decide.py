"""The decision core: a window and the advice on it in, one verdict with its reason out. No I/O, no clock.

The controller decides with a memory (`Steering`), `POST /v1/weights` without one (`decide_alone`); both by the same
rules (`decide`). The same inputs give the same decisions, so that an audit log can be replayed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.control import Canary, Control, ServiceTimes, Weights, shares_of
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from actuators.errors import ConfigError
from tuning.policy.adviser import Advice, State
from tuning.steering.harm import BackOff, Harm, HarmWatch, Seen, Streak, seen_in
from tuning.steering.limits import (
    Limits,
    as_shared,
    as_weights,
    canaries_differ,
    differ,
    limit,
    overloaded,
)
from tuning.steering.options import GuardName, GuardOptions, Override, SteeringOptions
from tuning.steering.silence import SilenceWatch

Source = Literal["policy", "baseline", "hold"]
NO_BUCKETS = (
    "no response-time buckets in the statistics: steering on means (add vhost_traffic_status_histogram_buckets)"
)


@dataclass(frozen=True, eq=False)
class Verdict:
    """What should be in force after a window, and why.

    Attributes:
        source: whose control it is; `hold` keeps what is in force.
        control: weights or service times; None only on `hold` when what is in force is unknown.
        guards: those that acted.
        alarms: what an operator should know.
    """

    source: Source
    reason: str
    control: Control | None
    guards: tuple[GuardName, ...] = ()
    alarms: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Decision(Verdict):
    """A verdict as the controller carries it out and records it.

    Attributes:
        control: what should be in force; in shadow mode what would be.
        canary: that the control should balance a part of the requests only.
        baseline: what replaces the policy.
        change: the control differs from what is in force and is to be applied.
        state: what the encoder made of the window; None without advice.
        art, errors: of the window, per request; None when it could not be read.
    """

    control: Control
    canary: Canary | None = None
    baseline: Control
    change: bool
    state: State | None = None
    art: float | None = None
    errors: float | None = None


@dataclass(frozen=True, eq=False)
class Case:
    """One window and what a verdict on it depends on, apart from earlier windows.

    Attributes:
        advice: None when there is none.
        deadlines_s: ``[groups]``.
        in_force: control during the window; None when unknown.
        original: which servers are out of rotation, and what `reverted` goes back to.
        now_s: monotonic seconds.
        splits: NGINX can balance a part of the requests by another control.
    """

    window: Window
    advice: Advice | None
    deadlines_s: FloatArray
    options: SteeringOptions
    in_force: Control | None
    baseline: Control
    original: Control
    now_s: float = 0.0
    override: Override = ""
    splits: bool = False

    @property
    def shadow(self) -> bool:
        return self.options.mode == "shadow"

    @property
    def unserved(self) -> bool:
        """Whether requests found no live server."""
        return any(fault.kind == "server_down" for fault in self.window.faults)

    @property
    def novel(self) -> bool:
        """Whether enough servers lie outside every cluster."""
        return self._outside(self.options.guards.novel_above)

    @property
    def familiar(self) -> bool:
        """Whether so few servers are near the border that the window counts against novelty."""
        guards = self.options.guards
        return not self._outside(guards.familiar_ratio * guards.novel_above)

    def _outside(self, novelty: float) -> bool:
        if self.advice is None:
            return False
        return float((self.advice.state.novelty > novelty).mean()) > self.options.guards.novel_share

    def hold(self, guard: GuardName, reason: str) -> Verdict:
        return Verdict("hold", reason, self.in_force, (guard,))

    def to_baseline(self, guard: GuardName, reason: str, alarm: str = "") -> Verdict:
        return Verdict("baseline", reason, self.baseline, (guard,), (alarm,) if alarm else ())


_WITHDRAWING: frozenset[GuardName] = frozenset({"novel", "stale", "policy"})
"""Guards after which the baseline stays for a while; harm has a back-off of its own."""


class Memory:
    """What the rules remember of earlier windows.

    Attributes:
        harm: the comparison of the policy with its baseline.
        silence: which servers are dead.
        dwell: how long the baseline stays after the policy was withdrawn for another reason than harm.
        policy_in_force: another control than the baseline is in force: the policy's, or one that was not applied here.
        ours: a controller has applied that one, so that shadow mode takes it back.
        unknown_state: enough consecutive windows were novel.
        art, errors: of the latest window, per request; None when it could not be read.
    """

    def __init__(self, topology: Topology, guards: GuardOptions, now_s: float) -> None:
        self.harm = HarmWatch(guards, now_s)
        self.silence = SilenceWatch(topology, guards.silent_requests)
        self.dwell = BackOff(guards.dwell_s, guards.max_back_off_s, now_s)
        self.policy_in_force = self.ours = self.unknown_state = False
        self.art: float | None = None
        self.errors: float | None = None
        self._seen: Seen | None = None
        self._bounds_ms: tuple[int, ...] | None = None
        self._usable_s, self._changed_s = now_s, float("-inf")
        self._spared = self.silence.dead.copy()
        self._novel, self._familiar = Streak(), Streak()

    def blind_s(self, now_s: float) -> float:
        """Seconds since the last usable window."""
        return now_s - self._usable_s

    def too_young(self, case: Case) -> bool:
        """Whether the last change must stay in force for longer."""
        guards = case.options.guards
        between_s = guards.min_between_changes_s
        if not case.splits and bool((self.silence.dead == self._spared).all()):
            between_s = max(between_s, guards.min_between_reloads_s)
        # An interval is never exact to the millisecond.
        return case.now_s - self._changed_s < 0.95 * between_s

    def read(self, case: Case) -> None:
        """Takes note of a usable window."""
        self._usable_s = case.now_s
        seen = seen_in(case.window, case.deadlines_s, case.options.guards.most_lateness)
        self._seen = replace(seen, errors=1.0) if case.unserved else seen
        self.art, self.errors = self._seen.art, self._seen.errors
        if isinstance(case.in_force, Weights):
            self.silence.see(case.window, case.in_force.down)
        if case.window.bounds_ms != self._bounds_ms:
            if self._bounds_ms is not None:
                # Other buckets measure tardiness otherwise.
                self.harm.reference.restart()
            self._bounds_ms = case.window.bounds_ms

    def judge(self, case: Case) -> Harm | None:
        """Counts novelty, and measures the baseline or compares the policy with it."""
        assert self._seen is not None
        if case.advice is not None:
            guards = case.options.guards
            factor = max(self.dwell.factor(case.now_s), self.harm.back_off_factor(case.now_s))
            needed = max(guards.novel_windows, min(factor * guards.novel_windows, guards.most_novel_windows))
            if self._novel.add(case.novel) >= needed:
                self.unknown_state = True
            if self._familiar.add(case.familiar) >= guards.familiar_windows:
                self.unknown_state = False
        if self.policy_in_force:
            # In shadow mode it is somebody else's control, which proves nothing about the policy.
            return None if case.shadow else self.harm.see_policy(self._seen, case.now_s)
        self.harm.see_baseline(self._seen, case.now_s)
        return None

    def applied(self, verdict: Verdict, now_s: float) -> None:
        self._changed_s, self._spared = now_s, self.silence.dead.copy()
        if self.policy_in_force and _WITHDRAWING & {*verdict.guards}:
            self.dwell.begin(now_s)
        self.own(policy=verdict.source == "policy")

    def own(self, *, policy: bool, ours: bool = True) -> None:
        """From now on another control than the baseline is in force, or not; `ours` as the attribute."""
        if self.policy_in_force and not policy:
            self.harm.returned()
        self.policy_in_force, self.ours = policy, policy and ours


def decide(case: Case, memory: Memory | None = None) -> Verdict:
    """The verdict of the first rule that applies.

    Without a memory the rules that need one do not apply: stale, harm, back-off, measuring the baseline, largest step
    and change rate; and a single novel window suffices for the baseline.
    """
    verdict = _obey(case, memory) or _require_usable(case, memory)
    if verdict is not None:
        return verdict
    if memory is not None:
        memory.read(case)
    return _require_traffic(case, memory) or _avoid_harm(case, memory) or _require_policy(case, memory)


def decide_alone(window: Window, advice: Advice | None, deadlines_s: FloatArray, guards: GuardOptions) -> Verdict:
    """The verdict on one window when nothing is known of earlier ones; for a served policy.

    Args:
        advice: after this window; None when no window was usable.
        deadlines_s: ``[groups]``.
    """
    original = Weights(window.topology, window.weight.clip(1, 100), window.down & ~_groups_without_server(window))
    baseline = advice.baseline if advice is not None else original
    options = SteeringOptions(mode="active", guards=guards)
    verdict = decide(Case(window, advice, deadlines_s, options, _shown(window), baseline, original))
    return verdict if window.bounds_ms else replace(verdict, reason=f"{verdict.reason}; {NO_BUCKETS}")


class Steering:
    """Decides every interval and remembers; report back by `applied` when a decision was carried out.

    Args:
        deadlines_s: ``[groups]``.
        original: control in force at the start, weights with their `down` flags; a revert restores it.
        now_s: monotonic seconds, as in `decide`.
        splits: NGINX balances in memory, so that a canary gets a part of the requests; else it goes a part of the way.

    Attributes:
        in_force: control that NGINX uses, as far as the controller knows.
            Dead servers have less in it than was decided for them: `_intended` is what they come back to.
        canary: that it uses it for a part of the requests only.
        ours: a controller has applied it, this one or an earlier one.
        override: the operator's order.
        options: may be replaced between decisions.
    """

    def __init__(
        self,
        deadlines_s: FloatArray,
        original: Control,
        options: SteeringOptions,
        now_s: float,
        *,
        splits: bool = False,
    ) -> None:
        self.topology, self._deadlines_s, self.options = original.topology, deadlines_s, options
        self.original, self.in_force, self.splits = original, original, splits
        self.canary: Canary | None = None
        self.override: Override = ""
        self._memory = Memory(original.topology, options.guards, now_s)
        self._intended, self._decided = original, original
        self.ours = self._has_decided = False

    @property
    def deadlines_s(self) -> FloatArray:
        """``[groups]``."""
        return self._deadlines_s

    @property
    def harm(self) -> HarmWatch:
        """The comparison of the policy with its baseline."""
        return self._memory.harm

    @property
    def shown(self) -> Weights:
        """What is in force as weights for all requests and for servers with one address each: their shares count."""
        weights = as_shared(self.in_force.as_weights())
        return weights if self.canary is None else as_weights(shares_of(self.in_force, self.canary), weights)

    def decide(self, window: Window, advice: Advice | None, now_s: float) -> Decision:
        """The decision after a window.

        Args:
            advice: None when there is none, or when the window is unusable.
        """
        memory, self._has_decided = self._memory, True
        memory.art = memory.errors = None
        case = Case(
            window, advice, self._deadlines_s, self.options, self._stepped_from(), self._baseline(advice),
            self.original, now_s, self.override, self.splits,
        )  # fmt: skip
        verdict = decide(case, memory)
        canary = self._canary(verdict, case)
        if canary is not None and canary.percent == 0:
            verdict, canary = replace(verdict, control=canary.base), None
        assert verdict.control is not None
        self._decided = verdict.control
        verdict = self._spare(verdict, window)
        assert verdict.control is not None
        return Decision(
            source=verdict.source,
            reason=verdict.reason,
            control=verdict.control,
            canary=canary,
            guards=verdict.guards,
            alarms=verdict.alarms,
            baseline=case.baseline,
            change=self._changes(verdict.control, canary, verdict, case),
            state=advice.state if advice else None,
            art=memory.art,
            errors=memory.errors,
        )

    def applied(self, decision: Decision, now_s: float) -> None:
        """The decision's control is in force now."""
        self.in_force, self._intended, self.canary = decision.control, self._decided, decision.canary
        self.ours = True
        self._memory.applied(decision, now_s)

    def adopt(
        self, present: Control, *, external: bool, original: Control | None = None, canary: Canary | None = None
    ) -> None:
        """This control is in force, although this controller did not apply it just now.

        Args:
            external: somebody else's change; otherwise left behind by an earlier controller, before the first decision,
                or by a restart of NGINX.
            original: what a revert restores after somebody else's change; that change when None.
            canary: the present control balances a part of the requests only.
        """
        left = not external and not self._has_decided
        # A server that an operator takes out of rotation leaves the weights as they were set.
        self.ours = left or (self.ours and _same_values(present, self.in_force))
        self.in_force = self._intended = self._decided = present
        self.canary = canary
        if external:
            self.original = present if original is None else original
            self.harm.reference.restart()
        self._memory.own(policy=differ(present, self.original), ours=self.ours)

    def _spare(self, verdict: Verdict, window: Window) -> Verdict:
        """The verdict with a probing share for dead servers, and alarms about them.

        Orders of the operator are carried out as given, and a canary by reload moves only its part of the way.
        """
        silence = self._memory.silence
        alarms = (*verdict.alarms, *silence.alarms(window), *(() if window.bounds_ms else (NO_BUCKETS,)))
        if verdict.source == "hold":
            return replace(verdict, control=self.in_force, alarms=alarms)
        part = self.options.mode == "canary" and not self.splits
        if part or "operator" in verdict.guards or not isinstance(verdict.control, Weights):
            return replace(verdict, alarms=alarms)
        spared = silence.spared(verdict.control)
        guards: tuple[GuardName, ...] = () if spared is verdict.control else ("silent",)
        return replace(verdict, control=spared, guards=(*verdict.guards, *guards), alarms=alarms)

    def _stepped_from(self) -> Control:
        """What is in force as the next step counts from it: all requests, unless a canary goes on."""
        if self.canary is None or self.options.mode == "canary" or not isinstance(self._intended, Weights):
            return self._intended
        return as_weights(shares_of(self._intended, self.canary), self._intended)

    def _canary(self, verdict: Verdict, case: Case) -> Canary | None:
        """The part of the requests that the verdict's control is for."""
        if verdict.source == "hold":
            return self.canary
        percent = self.options.canary_percent
        partly = self.splits and self.options.mode == "canary" and percent < 100 and verdict.source == "policy"
        return Canary(percent, case.baseline) if partly else None

    def _changes(self, control: Control, canary: Canary | None, verdict: Verdict, case: Case) -> bool:
        """Whether the control is to be applied; in shadow mode only on an operator's order."""
        if verdict.source == "hold":
            return False
        differs = differ(control, self.in_force) or canaries_differ(canary, self.canary)
        if "operator" in verdict.guards:
            # Leaving an active mode ends the policy's rule even where the weights are the same.
            return differs or not case.override
        if not differs:
            # Nothing to apply, but it is known whose control this is.
            self._memory.own(policy=verdict.source == "policy" and not case.shadow)
        return differs and not case.shadow

    def _baseline(self, advice: Advice | None) -> Control:
        if self.options.baseline == "equal":
            return replace(Weights.equal(self.topology), down=self.original.down)
        if self.options.baseline != "original" and advice is not None:
            simple = advice.baseline
            if self.topology.addresses:
                return as_weights(simple.as_weights().shares(), self.original.as_weights())
            return replace(simple, down=self.original.down)
        return self.original


def _obey(case: Case, memory: Memory | None) -> Verdict | None:
    """The operator's order."""
    if case.override == "paused":
        return case.hold("operator", "paused by the operator")
    if case.override == "reverted":
        return Verdict("baseline", "reverted by the operator", case.original, ("operator",))
    if case.shadow and memory is not None and memory.ours:
        return case.to_baseline("operator", "shadow mode: back to the baseline")
    return None


def _require_usable(case: Case, memory: Memory | None) -> Verdict | None:
    """Holds when the statistics cannot be read; goes to the baseline after `stale_after_s`."""
    if case.window.usable or (case.unserved and memory is not None and memory.policy_in_force):
        return None
    kinds = ", ".join(sorted({fault.kind for fault in case.window.faults}))
    blind_s = 0.0 if memory is None else memory.blind_s(case.now_s)
    if blind_s < case.options.guards.stale_after_s:
        return case.hold("stale", f"statistics unusable ({kinds})")
    return case.to_baseline("stale", f"no usable statistics for {blind_s:.0f} s ({kinds})", "statistics missing")


def _require_traffic(case: Case, memory: Memory | None) -> Verdict | None:
    """Holds when no group had enough requests to judge by."""
    least = case.options.guards.min_requests
    too_few = (case.window.requests.sum(axis=1) < least).all() or (memory is None and case.advice is None)
    if case.unserved or not too_few:
        return None
    return case.hold("traffic", f"too little traffic: fewer than {max(least, 1)} requests in every group")


def _avoid_harm(case: Case, memory: Memory | None) -> Verdict | None:
    """Reverts when the policy does harm; holds when nothing answered."""
    harm = memory.judge(case) if memory is not None else None
    if harm is not None:
        return case.to_baseline(harm.guard, harm.reason, harm.reason)
    return case.hold("errors", "requests found no live server") if case.unserved else None


def _require_policy(case: Case, memory: Memory | None) -> Verdict:
    """The policy's control, unless the state is unknown, the policy is suspended or there is no answer from it."""
    if case.novel if memory is None else memory.unknown_state:
        return case.to_baseline("novel", "traffic unlike any observed", "recalibrate")
    left_s = 0.0 if memory is None else memory.harm.back_off_left_s(case.now_s)
    if left_s > 0:
        return case.to_baseline("measuring", f"backing off after harm, {left_s:.0f} s left")
    left_s = 0.0 if memory is None else memory.dwell.left_s(case.now_s)
    if left_s > 0:
        return case.to_baseline("measuring", f"the policy was withdrawn and may act again in {left_s:.0f} s")
    if case.advice is None or case.advice.policy is None:
        problem = case.advice.problem if case.advice else "no advice"
        return case.to_baseline("policy", f"no answer from the policy: {problem}", "policy failed")
    if memory is not None and not case.shadow:
        memory.harm.expire(case.now_s)
        reference = memory.harm.reference
        if not reference.ready:
            progress = f"{reference.windows} of {reference.size} windows"
            return case.to_baseline("measuring", f"measuring the baseline first: {progress}")
    return _follow(case, memory, case.advice, case.advice.policy)


def _follow(case: Case, memory: Memory | None, advice: Advice, policy: Control) -> Verdict:
    """As far towards the policy's control as the limits allow."""
    guards, options, window = case.options.guards, case.options, case.window
    late = overloaded(window, case.deadlines_s, guards.overload_ratio, guards.min_requests)
    limited = limit(
        policy,
        Limits(
            guards,
            # Without a memory the weights shown may be older than the last answer: no step is measured from them.
            in_force=None if memory is None else case.in_force,
            baseline=case.baseline,
            measured=advice.baseline,
            original=case.original,
            percent=options.canary_percent if options.mode == "canary" and not case.splits else 100.0,
            late=late,
            quiet=window.requests.sum(axis=1) < guards.min_requests,
        ),
    )
    names = ", ".join(g.name for g, is_late in zip(window.topology.groups, late, strict=True) if is_late)
    kind, origin = ("weights", "equal") if isinstance(policy, Weights) else ("service times", "measured")
    reason = f"every server of {names} is late: towards {origin} {kind}" if names else f"the policy's {kind}"
    alarms = ("overload",) if names else ()
    changes = case.in_force is not None and differ(limited.control, case.in_force)
    if memory is not None and changes and memory.too_young(case):
        source: Source = "policy" if memory.policy_in_force else "hold"
        return Verdict(source, "the last change is too recent", case.in_force, (*limited.guards, "rate"), alarms)
    return Verdict("policy", reason, limited.control, limited.guards, alarms)


def _same_values(a: Control, b: Control) -> bool:
    """Whether two controls have the same service times, or weights in the same proportions; `down` does not count."""
    mask = a.topology.mask
    if isinstance(a, ServiceTimes) and isinstance(b, ServiceTimes):
        return np.allclose(a.tau_s[mask], b.tau_s[mask], rtol=1e-6, atol=0.0)
    if isinstance(a, ServiceTimes) or isinstance(b, ServiceTimes):
        return False
    parts_a, parts_b = (weights.values / weights.values.sum(axis=1, keepdims=True) for weights in (a, b))
    return np.allclose(parts_a, parts_b, atol=1e-6)


def _groups_without_server(window: Window) -> np.ndarray:
    """Bool ``[groups, 1]``: every server is shown as down, as vts shows servers that failed recently as well."""
    usable = np.asarray((window.topology.mask & ~window.down).any(axis=1, keepdims=True))
    return ~usable


def _shown(window: Window) -> Weights | None:
    """The weights that the window shows; None when they are not a valid control."""
    try:
        return Weights(window.topology, window.weight, window.down)
    except ConfigError:
        return None
