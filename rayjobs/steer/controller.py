"""The controller: opened from its options, then collect, advise, decide, apply, record in every interval, for weeks."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actuators.contract.control import Control, ServiceTimes
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from actuators.errors import ConfigError, DeepSchedError
from rayjobs.cli.console import log_line
from rayjobs.cli.interrupts import Terminated
from rayjobs.holding.site import SiteHolding, held_as_before
from rayjobs.holding.slots import require_slots
from rayjobs.steer import heartbeat
from rayjobs.steer.admission import SiteAdmission, site_admission
from rayjobs.steer.folder import SteerFolder
from rayjobs.steer.metrics import Publication, publishing
from rayjobs.steer.order_store import Orders
from rayjobs.steer.site import Site, access, load_adviser, open_site, serve_first
from tuning.policy.adviser import Advice, Adviser, Advises, Recent, advisable
from tuning.policy.bundle import load_bundle
from tuning.steering import audit, control_json
from tuning.steering.decide import Decision, Steering
from tuning.steering.holding import HoldWatch
from tuning.steering.limits import canaries_differ, differ
from tuning.steering.options import Ordered

if TYPE_CHECKING:
    from rayjobs.steer.options import SteerOptions

CHANGED = "weights were changed outside the controller"
KEPT = "a revert restores the weights from before the controller, not these"
RECHECK_S = 5.0
"""Least time between two looks at which servers NGINX has, while something is wrong."""
_SUSPECT = {"restart", "reset", "reload", "missing_server", "missing_group", "duplicate_server"}
"""Faults after which NGINX may have other servers."""
_UNREAD = "unread"
KEPT_CHANGES = 10
"""Changes that the heartbeat carries."""


@dataclass(frozen=True)
class Match:
    """A site, and what was made for its servers.

    Attributes:
        record: receives each decision as a line of the audit log.
        load: returns the adviser of another bundle folder, and its frames; raises DeepSchedError.
        expected: what the bundle's evaluation says of its gain; empty when unknown.
    """

    site: Site
    steering: Steering
    adviser: Advises
    frames: int
    record: Callable[[dict[str, Any]], None]
    load: Callable[[str], tuple[Advises, int]] | None = None
    expected: str = ""


@dataclass(frozen=True)
class Step:
    """The decision of one interval, and its line in the audit log."""

    decision: Decision
    line: dict[str, Any]
    applied: bool


class SiteController:
    """Steers one site.

    Args:
        match: the site, with what was made for it.
        rematch: the same for the servers that NGINX has now, with the bundle of a swap; raises DeepSchedError when the
            bundle cannot steer them. Without it the servers stay as they are.
        admission: the rule of admission that is steered with it; None for none.
        holding: how requests are held together with the policy's service times; None where they are not.
        log: receives each alarm when it begins.
        stopped: ends `run` when set.
    """

    def __init__(
        self,
        match: Match,
        folder: SteerFolder,
        *,
        rematch: Callable[[str | None], Match] | None = None,
        admission: SiteAdmission | None = None,
        holding: SiteHolding | None = None,
        log: Callable[[str], None] = lambda line: None,
        stopped: threading.Event | None = None,
    ) -> None:
        self._folder, self._rematch, self._admission, self._log = folder, rematch, admission, log
        self._holding = holding
        self._take(match)
        if holding is not None:
            holding.begin(match.steering.in_force)
        self._initial_options = match.steering.options
        self._bundle: str | None = None
        self._present_alarms: tuple[str, ...] = ()
        self._orders_version, self._to_revert, self._reverted_version = 0, False, -1
        self._suspect, self._checked_s = False, float("-inf")
        self._unread: set[str] = set()
        self._interval_s = 0.0
        self._changes: deque[dict[str, Any]] = deque(folder.status().get("changes", ()), KEPT_CHANGES)
        self._status: dict[str, Any] = {"now_s": time.monotonic()}
        self.guards: Counter[str] = Counter()
        self.stopped = stopped or threading.Event()

    def _take(self, match: Match) -> None:
        self._site, self.steering, self._adviser = match.site, match.steering, match.adviser
        self._record, self._load, self._recent = match.record, match.load, Recent(match.frames)
        self._expected = match.expected

    def run(self, interval_s: float, duration_s: float | None = None) -> None:
        """Steps at an even pace until `stopped` is set or the time is over; a late step is not made up for."""
        self._interval_s = interval_s
        begin_s = next_s = time.monotonic()
        while duration_s is None or time.monotonic() - begin_s < duration_s:
            next_s = max(next_s + interval_s, time.monotonic())
            if self.stopped.wait(max(next_s - time.monotonic(), 0.0)):
                break
            self.step()
        self.end()

    def end(self) -> None:
        """Tells the watchdog that this end is regular; the weights in force stay, and late binding as long as it is
        valid.
        """
        if self._holding is not None:
            self._holding.ended()
        self._write_status({**self._status, "ended": True})

    def step(self) -> Step:
        """One interval. Every DeepSchedError and OSError in it becomes an alarm."""
        began_s = time.monotonic()
        window, notes = self._window(began_s)
        notes += self._apply_orders()
        original = self.steering.original
        notes += self._reread_control(window)
        before, canary = self.steering.in_force, self.steering.canary
        shares_before = self.steering.shown.shares()
        window = replace(window, weight=self.steering.shown.values)
        collected_s = time.monotonic()
        advice, no_advice = self._advice(window)
        advice = self._holding_advice(advice, window)
        advised_s = time.monotonic()
        decision = self.steering.decide(window, advice, began_s)
        applied, problem = self._apply(decision, began_s)
        admission, admission_alarms = self._admit(window)
        holding, holding_alarms = self._hold(window, began_s, applied=applied)
        ended_s = time.monotonic()
        line = audit.decision_line(self.steering, before, window, advice, decision, began_s, canary=canary)
        line["applied"] = applied
        line["theirs"] = CHANGED in notes
        if self.steering.original is not original:
            line["original"] = control_json.to_json(self.steering.original)
        line["in_force"] = self.steering.shown.values.tolist()
        line["alarms"] += [*notes, *filter(None, (no_advice, problem)), *admission_alarms, *holding_alarms]
        line.update({**admission, **holding})
        line["guards"] += ["actuation"] if problem else []
        self.guards.update(line["guards"])
        line["latency_ms"] = {
            "collect": (collected_s - began_s) * 1e3, "advise": (advised_s - collected_s) * 1e3,
            "apply": (ended_s - advised_s) * 1e3, "total": (ended_s - began_s) * 1e3,
        }  # fmt: skip
        self._record(line)
        self._answer_revert(line["alarms"])
        if applied:
            self._changes.append(heartbeat.change(shares_before, self.steering, decision))
        self._status = {
            **heartbeat.of(self.steering, window, advice, decision, line["alarms"]),
            "now_s": time.monotonic(), "interval_s": self._interval_s, "guards": dict(self.guards),
            "orders_version": self._orders_version, "reverted": self._is_reverted(), "changes": list(self._changes),
            "bundle": self._bundle, "expected": self._expected, **admission, **holding,
        }  # fmt: skip
        self._write_status(self._status)
        self._log_new(line["alarms"])
        return Step(decision, line, applied)

    def _is_reverted(self) -> bool:
        steering = self.steering
        in_force = not differ(steering.in_force, steering.original) and steering.canary is None
        admits = self._admission is None or self._admission.reverted
        return steering.override == "reverted" and self._is_made and in_force and admits

    @property
    def _is_made(self) -> bool:
        """Whether the revert that was ordered last has been made; true without one."""
        return not self._to_revert or self._reverted_version == self._orders_version

    def _admit(self, window: Window) -> tuple[dict[str, Any], list[str]]:
        """Puts the rule of admission in force; its entry of the audit line, empty without one, and alarms."""
        if self._admission is None:
            return {}, []
        entry, alarms = self._admission.step(window, self._ordered())
        return {"admission": entry}, alarms

    def _ordered(self) -> Ordered:
        options = self.steering.options
        return Ordered(options.mode, options.canary_percent, self.steering.override, self._orders_version)

    def _holding_advice(self, advice: Advice | None, window: Window) -> Advice | None:
        """The advice, whose policy also holds requests where that is wanted."""
        steering = self.steering
        if self._holding is None:
            return held_as_before(advice, steering.original)
        return self._holding.advised(
            advice, window, self._ordered(), steering.in_force, steering.original, steering.deadlines_s
        )

    def _hold(self, window: Window, now_s: float, *, applied: bool) -> tuple[dict[str, Any], list[str]]:
        """Renews late binding, or has it counted; its entry of the audit line, empty without it, and alarms."""
        if self._holding is None:
            return {}, []
        steering = self.steering
        entry, alarms = self._holding.step(
            self._site, steering.in_force, applied, window, self._ordered(), steering.deadlines_s, now_s
        )
        return {"holding": entry}, alarms

    def _answer_revert(self, alarms: list[str]) -> None:
        """When the first weights are in force again: tells so, and takes others as the first that are set from now."""
        if not self._is_reverted():
            return
        try:
            self._folder.orders.answer(self._orders_version)
            self._folder.first.seal(False)
        except (DeepSchedError, OSError) as error:
            alarms.append(f"the revert is in force and not recorded: {error}"[:300])

    def _window(self, now_s: float) -> tuple[Window, list[str]]:
        """The window of this interval, from the servers that NGINX has now when those have changed."""
        window = self._site.collector.window()
        self._suspect = self._suspect or bool(_SUSPECT & {fault.kind for fault in window.faults})
        if self._rematch is None or not self._suspect or now_s < self._checked_s + RECHECK_S:
            return window, []
        self._checked_s, self._suspect = now_s, False
        try:
            difference = self._site.changed()
            if not difference:
                return window, []
            self._take(self._rematch(self._bundle))
        except (DeepSchedError, OSError) as error:
            self._suspect = True
            return window, [f"the servers of this NGINX have changed, holding: {error}"[:300]]
        note = f"the servers have changed: {difference}; going on with those that are there"
        return self._site.collector.window(), [note[:300]]

    def _advice(self, window: Window) -> tuple[Advice | None, str]:
        """The advice, or why there is none although the window is usable."""
        if not advisable(window):
            return None, ""
        try:
            return self._recent.ask(self._adviser, window), ""
        except DeepSchedError as error:
            return None, f"no advice: {error}"[:300]

    def _apply(self, decision: Decision, now_s: float) -> tuple[bool, str]:
        """Whether the decision's weights were applied, and the error if they could not be.

        A revert that was ordered is made once even where the first weights seem to be in force.
        """
        # Files or memory may say something else than this controller believes.
        ordered = not self._is_made
        # A control that cannot be read may be an operator's doing: a group without a server in rotation.
        if not ordered and (self._unread or not decision.change):
            return False, ""
        try:
            self._folder.first.seal()
            done = self._site.apply(decision.control, decision.canary, restoring=decision.source == "baseline")
        except DeepSchedError as error:
            self._suspect = True
            return False, f"not applied: {error}"[:300]
        except OSError as error:
            return False, f"not applied, as the first weights could not be marked as such: {error.strerror}"[:300]
        if ordered:
            self._reverted_version = self._orders_version
        if not (decision.change or done.changed):
            return False, ""
        self.steering.applied(decision, now_s)
        return True, ""

    def _reread_control(self, window: Window) -> list[str]:
        """Reads the control in force again after a restart or an external reload, and every time where nothing tells of
        a change: an operator's `maint` must not be undone. Alarms when it differs, and as long as it cannot be read;
        until then only an ordered revert is applied.
        """
        kinds = self._unread | ({fault.kind for fault in window.faults} & {"restart", "reload", "reset"})
        if not kinds and not self._site.changes_silently:
            return []
        in_force = self.steering.in_force
        try:
            if isinstance(in_force, ServiceTimes) and in_force.holding is not None and kinds <= {_UNREAD}:
                # What holds requests is renewed, and looked after, by `SiteHolding`.
                down = self._site.out_of_rotation()
                self._unread = set()
                same = np.array_equal(down, in_force.down)
                return [] if same else self._adopt_theirs(replace(in_force, down=down))
            present, canary, kept = self._site.control(), self._site.canary(), self._folder.first.read()
        except DeepSchedError as error:
            self._unread = kinds | {_UNREAD}
            return [f"weights in force unknown, holding: {error}"[:300]]
        self._unread = set()
        if not (differ(present, self.steering.in_force) or canaries_differ(canary, self.steering.canary)):
            return []
        if "restart" in kinds and (kept is None or kept.sealed):
            self.steering.adopt(present, external=False, canary=canary)
            return ["NGINX was restarted and has other weights"]
        return self._adopt_theirs(present)

    def _adopt_theirs(self, present: Control) -> list[str]:
        """Somebody else's change: what a revert restores, as long as this controller has set nothing."""
        try:
            first = self._folder.first.keep(present, self._site.method())
        except (DeepSchedError, OSError) as error:
            self.steering.adopt(present, external=False)
            return [CHANGED, f"not recorded: {error}"[:300]]
        self._site.first_method = first.method
        self.steering.adopt(present, external=True, original=first.onto(present))
        return [CHANGED, *([KEPT] if first.sealed else [])]

    def _apply_orders(self) -> list[str]:
        """Applies the operator's orders; alarms when they cannot be read or applied."""
        try:
            stored = self._folder.orders.read()
        except DeepSchedError as error:
            return [str(error)]
        orders, self._orders_version = stored.value or Orders(), stored.version
        notes = [stored.problem] if stored.problem else []
        self.steering.override = orders.override
        self._to_revert = orders.pending
        initial, percent = self._initial_options, orders.canary_percent
        update = {
            "mode": orders.mode or initial.mode,
            "canary_percent": initial.canary_percent if percent is None else percent,
        }
        self.steering.options = self.steering.options.model_copy(update=update)
        if orders.bundle is None or orders.bundle == self._bundle or self._load is None:
            return notes
        self._bundle = orders.bundle
        try:
            self._adviser, frames = self._load(orders.bundle)
        except DeepSchedError as error:
            return [*notes, f"bundle not swapped: {error}"[:300]]
        self._recent = self._recent.moved(frames)
        self._expected = heartbeat.expectation(Path(orders.bundle))
        return [*notes, "bundle swapped"]

    def _write_status(self, status: dict[str, Any]) -> None:
        try:
            self._folder.write_status(status)
        except OSError as error:
            # A full disk must not stop the steering; the watchdog then restores the first weights, which is safe.
            self._log_new([f"no heartbeat: {error.strerror}"])

    def _log_new(self, alarms: list[str]) -> None:
        """Logs the alarms that were not present before."""
        new = tuple(alarm for alarm in alarms if alarm not in self._present_alarms)
        self._present_alarms = tuple(alarms)
        for alarm in new:
            self._log(f"ALARM {heartbeat.with_answer(alarm, self._folder.path)}")


def starting_steering(site: Site, folder: SteerFolder, steering: Callable[[Control], Steering]) -> Steering:
    """A steering that knows the control in force and the one from before any controller.

    Raises DeepSchedError when NGINX or the first weights cannot be read, OSError when they cannot be kept.
    """
    present = site.control()
    first = folder.first.keep(present, site.method())
    site.first_method = first.method
    made = steering(first.onto(present))
    made.adopt(present, external=False, canary=site.canary())
    return made


def steer(options: SteerOptions, stopped: threading.Event | None = None) -> None:
    """Steers until `duration_s` is over, `stopped` is set or a signal arrives; the weights in force then stay."""
    folder, report = SteerFolder(options.folder), partial(log_line, "steer")
    model = load_adviser(options.bundle)
    folder.make()
    with folder.locked(), contextlib.ExitStack() as stack:
        published = stack.enter_context(publishing(options.metrics_host, options.metrics_port))
        matching = stack.enter_context(contextlib.closing(_Matching(options, model.topology, folder, published)))
        match = matching.match(None)
        folder.record_access(access(options))
        rematch = None if access(options) is None else matching.match
        admission = stack.enter_context(site_admission(options, folder.admission))
        holding = steered_holding(options, match)
        controller = SiteController(
            match, folder, rematch=rematch, admission=admission, holding=holding, log=report, stopped=stopped
        )
        where = match.site.address or options.status_url or options.control_url
        report(f"{options.mode} mode on {where}, every {options.interval_s:g} s; decisions in {folder.audit}")
        for note in match.site.notes:
            report(note)
        _report_orders(folder, report)
        _run_until_ended(controller, options)
        report(f"ended; the weights in force stay{matching.lost()}")


def steered_holding(options: SteerOptions, match: Match) -> SiteHolding | None:
    """How requests are held under these options; None without late binding.

    Raises ConfigError for a bundle that sets weights, and for names that are not there; ActuationError for an NGINX
    whose locations ask for no slot.
    """
    if not options.late_binding:
        return None
    bundle = load_bundle(options.bundle)
    if not bundle.problem.options.action.estimator:
        remedy = "give a bundle that sets service times, or leave late_binding out"
        raise ConfigError(
            "late binding needs service times, and the bundle sets weights", where="bundle", remedy=remedy
        )
    require_slots(options.control_url)
    known = options.workers if options.given("workers") else None
    holding = SiteHolding(options.holding, known, HoldWatch(options.holding.guards, proved=False), bundle.request_cost)
    holding.binding(match.site.topology, match.steering.deadlines_s)
    return holding


class _Matching:
    """Opens the NGINX and makes what steers its present servers; the one before is closed when that succeeds."""

    def __init__(self, options: SteerOptions, model: Topology, folder: SteerFolder, published: Publication) -> None:
        self._options, self._model, self._folder, self._published = options, model, folder, published
        self._open = contextlib.ExitStack()
        self._logs: list[audit.AuditLog] = []

    def match(self, swapped: str | None) -> Match:
        """Raises DeepSchedError; what was open then stays open."""
        options = self._options
        bundle = Path(swapped) if swapped else options.bundle
        with contextlib.ExitStack() as stack:
            site = stack.enter_context(open_site(options, self._model))
            adviser = load_adviser(bundle, site, options.workers)
            deadlines_s = adviser.bundle.problem.deadlines_s
            now_s = time.monotonic()
            steering = starting_steering(
                site, self._folder, lambda first: Steering(deadlines_s, first, options, now_s, splits=site.splits)
            )
            asked = serve_first(options, site, adviser, stack)
            site.collector.begin()
            origin = {"folder": str(bundle.absolute()), **_origin(adviser)}
            start = audit.header(steering, deadlines_s, now_s, origin)
            log = audit.AuditLog(self._folder.audit, start, options.audit)
            self._open.close()
            self._open = stack.pop_all()
        self._logs.append(log)

        def load(path: str) -> tuple[Adviser, int]:
            new = load_adviser(Path(path), site, options.workers)
            return new, new.frames

        record = self._published.recording(log.header, log.write)
        return Match(site, steering, asked, adviser.frames, record, load, heartbeat.expectation(bundle))

    def lost(self) -> str:
        """A remark on lines that the audit log lacks; empty when it has all."""
        lost = sum(log.lost for log in self._logs)
        return f"; {lost} lines of the audit log were lost" if lost else ""

    def close(self) -> None:
        self._open.close()


def _report_orders(folder: SteerFolder, report: Callable[[str], None]) -> None:
    """Orders of an earlier time that are still in force."""
    orders = folder.orders.read().value
    if orders is not None and orders.override:
        report(f"still {orders.override} by an earlier order; end it: deepsched steer resume --folder {folder.path}")


def _run_until_ended(controller: SiteController, options: SteerOptions) -> None:
    try:
        controller.run(options.interval_s, options.duration_s)
    except Terminated:
        # A service is ended by SIGTERM: not a failure, and the weights in force stay.
        controller.end()
    except KeyboardInterrupt:
        controller.end()


def _origin(adviser: Adviser) -> dict[str, object]:
    keys = ("seed", "command", "versions")
    return {key: adviser.bundle.provenance[key] for key in keys if key in adviser.bundle.provenance}
