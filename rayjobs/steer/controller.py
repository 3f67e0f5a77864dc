"""The controller: opened from its options, then collect, advise, decide, apply, record in every interval, for weeks."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.control import Canary, Control, ServiceTimes
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from actuators.errors import ConfigError, DeepSchedError
from rayjobs.cli.console import log_line
from rayjobs.cli.interrupts import Terminated
from rayjobs.holding.site import SiteHolding, held_as_before
from rayjobs.holding.slots import require_slots
from rayjobs.steer import heartbeat
from rayjobs.steer.admission import LeftAdmission, SiteAdmission, site_admission
from rayjobs.steer.folder import SteerFolder
from rayjobs.steer.metrics import Publication, publishing
from rayjobs.steer.order_store import GivenOrders, Orders
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
LEFT = "weights from outside stay in force, as no heartbeat can be written"
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
        load: makes the same match with the bundle of another folder; raises DeepSchedError or OSError.
        expected: what the bundle's evaluation says of its gain; empty when unknown.
        problem: says why the latest line is not in the audit log; empty when it is.
    """

    site: Site
    steering: Steering
    adviser: Advises
    frames: int
    record: Callable[[dict[str, Any]], None]
    load: Callable[[str, Match], Match] | None = None
    expected: str = ""
    problem: Callable[[], str] = lambda: ""


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
        admission: the rule of admission that is steered with it, or that an earlier controller left; None for none.
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
        admission: SiteAdmission | LeftAdmission | None = None,
        holding: SiteHolding | None = None,
        log: Callable[[str], None] = lambda line: None,
        stopped: threading.Event | None = None,
    ) -> None:
        self._folder, self._rematch, self._admission, self._log = folder, rematch, admission, log
        self._holding = holding
        self._take(match, Recent(match.frames))
        if holding is not None:
            holding.begin(match.steering.in_force)
        self._initial_options = match.steering.options
        self._bundle: str | None = None
        self._present_alarms: tuple[str, ...] = ()
        self._orders_version, self._to_revert, self._reverted_version = 0, False, -1
        self._suspect, self._checked_s = False, float("-inf")
        self._known: Steering | None = None
        self._unwritten = self._leaves = False
        self._unread: set[str] = set()
        self._interval_s = 0.0
        self._changes: deque[dict[str, Any]] = deque(folder.status().get("changes", ()), KEPT_CHANGES)
        self._status: dict[str, Any] = {"now_s": time.monotonic()}
        self.guards: Counter[str] = Counter()
        self.stopped = stopped or threading.Event()

    def _take(self, match: Match, recent: Recent) -> None:
        self._match, self._recent = match, recent
        self._site, self.steering, self._adviser = match.site, match.steering, match.adviser
        # A bundle that was refused may fit these servers.
        self._refused, self._refused_version = "", -1

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
        self._log_new(self._write_status({**self._status, "ended": True}))

    def step(self) -> Step:
        """One interval. Every DeepSchedError and OSError in it becomes an alarm."""
        began_s = time.monotonic()
        window, notes = self._window(began_s)
        notes += [*self._apply_orders(), *self._found()]
        notes += [*self._reread_control(window), *([LEFT] if self._leaves else [])]
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
        if line["theirs"]:
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
        self._match.record(line)
        unrecorded = self._match.problem()
        line["alarms"] += [unrecorded] if unrecorded else []
        self._answer_revert(line["alarms"])
        if applied:
            self._changes.append(heartbeat.change(shares_before, self.steering, decision))
        self._status = {
            **heartbeat.of(self.steering, window, advice, decision, line["alarms"]),
            "now_s": time.monotonic(), "interval_s": self._interval_s, "guards": dict(self.guards),
            "orders_version": self._orders_version, "reverted": self._is_reverted(), "changes": list(self._changes),
            "bundle": self._bundle, "refused": self._refused, "expected": self._match.expected,
            "ours": self.steering.ours, **admission, **holding,
        }  # fmt: skip
        self._log_new([*line["alarms"], *self._write_status(self._status)])
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
        return {"admission": entry} if entry else {}, alarms

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
            match = self._rematch(self._bundle)
            self._take(match, Recent(match.frames))
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

        A revert that was ordered is made once even where the first weights seem to be in force. What the watchdog has
        restored stays in force while no heartbeat can be written: it restores once, and then watches nothing.
        """
        # Files or memory may say something else than this controller believes.
        ordered = not self._is_made
        # A control that cannot be read may be an operator's doing: a group without a server in rotation.
        if not ordered and (self._unread or not decision.change):
            return False, ""
        if self._leaves and "operator" not in decision.guards:
            return False, ""
        # Until the next heartbeat it is unknown whose control is in force.
        self._status = {**self._status, "ours": None}
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

    def _found(self) -> list[str]:
        """Alarms in a controller's first interval when others have set the weights that it found."""
        steering, known = self.steering, self._known
        self._known = steering
        theirs = differ(steering.in_force, steering.original) and not steering.ours
        return [CHANGED, KEPT] if theirs and steering is not known else []

    def _reread_control(self, window: Window) -> list[str]:
        """Reads the control in force again after a restart or an external reload, and every time where nothing tells of
        a change, where an operator's `maint` must not be undone, and while no heartbeat can be written, when the
        watchdog restores the first weights. Alarms when it differs, and as long as it cannot be read; until then only
        an ordered revert is applied.
        """
        kinds = self._unread | ({fault.kind for fault in window.faults} & {"restart", "reload", "reset"})
        if not kinds and not self._site.changes_silently and not self._unwritten:
            return []
        in_force = self.steering.in_force
        try:
            held = isinstance(in_force, ServiceTimes) and in_force.holding is not None
            if held and kinds <= {_UNREAD} and not self._unwritten:
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
        self._leaves = self._unwritten
        if "restart" in kinds and (kept is None or kept.sealed):
            self.steering.adopt(present, external=False, canary=canary)
            return ["NGINX was restarted and has other weights"]
        return self._adopt_theirs(present, canary)

    def _adopt_theirs(self, present: Control, canary: Canary | None = None) -> list[str]:
        """Somebody else's change: what a revert restores, as long as this controller has set nothing."""
        try:
            first = self._folder.first.keep(present, self._site.method())
        except (DeepSchedError, OSError) as error:
            original = replace(self.steering.original, down=present.down)
            self.steering.adopt(present, external=True, original=original, canary=canary)
            return [CHANGED, f"not recorded: {error}"[:300]]
        self._site.first_method = first.method
        self.steering.adopt(present, external=True, original=first.onto(present), canary=canary)
        return [CHANGED, *([KEPT] if first.sealed else [])]

    def _apply_orders(self) -> list[str]:
        """Applies the operator's orders; alarms when they cannot be read or applied."""
        try:
            stored = self._folder.orders.read()
        except DeepSchedError as error:
            return [str(error)]
        orders, self._orders_version = stored.value or Orders(), stored.version
        notes = [*([stored.problem] if stored.problem else []), *self._swap(orders.bundle)]
        self.steering.override = orders.override
        self._to_revert = orders.pending
        initial, percent = self._initial_options, orders.canary_percent
        update = {
            "mode": orders.mode or initial.mode,
            "canary_percent": initial.canary_percent if percent is None else percent,
        }
        self.steering.options = self.steering.options.model_copy(update=update)
        return notes

    def _swap(self, bundle: str | None) -> list[str]:
        """Takes the bundle that was ordered, and says so. Alarms as long as it is refused; another order, or a change
        of the servers, makes it try again.
        """
        load = self._match.load
        if bundle is None or bundle == self._bundle or load is None:
            self._refused = ""
            return []
        if self._refused and self._refused_version == self._orders_version:
            return [self._refused]
        try:
            match = load(bundle, self._match)
        except (DeepSchedError, OSError) as error:
            self._refused, self._refused_version = f"bundle not swapped: {error}"[:300], self._orders_version
            return [self._refused]
        self._take(match, self._recent.moved(match.frames))
        self._bundle = bundle
        return ["bundle swapped"]

    def _write_status(self, status: dict[str, Any]) -> list[str]:
        """Alarms when it cannot be written."""
        try:
            self._folder.write_status(status)
        except OSError as error:
            # A full disk must not stop the steering; the watchdog then restores the first weights, which is safe and
            # ends the steering until a heartbeat can be written again.
            self._unwritten = True
            return [f"no heartbeat: {error.strerror}"]
        self._unwritten = self._leaves = False
        return []

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
    original = first.onto(present)
    made = steering(original)
    theirs = not _as_left(folder.status(), present)
    made.adopt(present, external=theirs, original=original, canary=site.canary())
    return made


def _as_left(status: Mapping[str, Any], present: Control) -> bool:
    """Whether an earlier controller applied these values, by its last heartbeat; true where that does not tell.

    `down`, and servers that came or went since, do not count.
    """
    if status.get("ours") is None:
        return True
    by_times = isinstance(present, ServiceTimes)
    if not status["ours"] or by_times != (status["service_ms"] is not None):
        return False
    topology = present.topology
    values = 1e3 * present.tau_s if isinstance(present, ServiceTimes) else present.values
    rows = zip(status["groups"].items(), status["service_ms" if by_times else "weights"], strict=True)
    left = {(group, server): value for (group, names), row in rows for server, value in zip(names, row, strict=True)}
    return all(
        np.isclose(values[g, topology.server_index(server)], left[group.name, server], rtol=1e-4, atol=1e-4)
        for g, group in enumerate(topology.groups)
        for server in group.servers
        if (group.name, server) in left
    )


def with_deadlines(steering: Steering, deadlines_s: FloatArray, now_s: float) -> Steering:
    """The same steering when its deadlines are these; else a new one, as the guards have measured by the others.

    Args:
        deadlines_s: ``[groups]``.
        now_s: monotonic seconds.
    """
    if np.array_equal(steering.deadlines_s, deadlines_s):
        return steering
    made = Steering(deadlines_s, steering.original, steering.options, now_s, splits=steering.splits)
    made.adopt(steering.in_force, external=not steering.ours, original=steering.original, canary=steering.canary)
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
        orders = folder.orders.read().value or GivenOrders()
        mode = orders.mode or options.mode
        report(f"{mode} mode on {where}, every {options.interval_s:g} s; decisions in {folder.audit}")
        for note in (*match.site.notes, *_overriding(orders, options, folder)):
            report(note)
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
            self._open.close()
            self._open = stack.pop_all()
        record, problem = self._begin_log(steering, adviser, bundle, now_s)
        expected = heartbeat.expectation(bundle)
        return Match(site, steering, asked, adviser.frames, record, self._load, expected, problem)

    def _load(self, path: str, match: Match) -> Match:
        """`Match.load`: with other deadlines the guards measure anew, under a new start line of the log."""
        bundle, now_s = Path(path), time.monotonic()
        adviser = load_adviser(bundle, match.site, self._options.workers)
        steering = with_deadlines(match.steering, adviser.bundle.problem.deadlines_s, now_s)
        expected = heartbeat.expectation(bundle)
        swapped = replace(match, steering=steering, adviser=adviser, frames=adviser.frames, expected=expected)
        if steering is match.steering:
            return swapped
        record, problem = self._begin_log(steering, adviser, bundle, now_s)
        return replace(swapped, record=record, problem=problem)

    def _begin_log(
        self, steering: Steering, adviser: Adviser, bundle: Path, now_s: float
    ) -> tuple[Callable[[dict[str, Any]], None], Callable[[], str]]:
        """`record` and `problem` of a `Match`, after a start line."""
        origin = {"folder": str(bundle.absolute()), **_origin(adviser)}
        start = audit.header(steering, steering.deadlines_s, now_s, origin)
        log = audit.AuditLog(self._folder.audit, start, self._options.audit)
        self._logs.append(log)
        return self._published.recording(log.header, log.write), lambda: log.problem

    def lost(self) -> str:
        """A remark on lines that the audit log lacks; empty when it has all."""
        lost = sum(log.lost for log in self._logs)
        return f"; {lost} lines of the audit log were lost" if lost else ""

    def close(self) -> None:
        self._open.close()


def _overriding(orders: GivenOrders, options: SteerOptions, folder: SteerFolder) -> Iterator[str]:
    """A line for each earlier order that is still in force and says something else than the options."""
    where = f"--folder {folder.path}"
    if orders.mode not in (None, options.mode):
        answer = f"deepsched steer mode {options.mode} {where}"
        yield f"mode {orders.mode}: {_order_of(orders, 'mode')} overrides {options.mode}; change it: {answer}"
    percent, ordered = options.canary_percent, orders.canary_percent
    if (orders.mode or options.mode) == "canary" and ordered is not None and ordered != percent:
        answer = f"deepsched steer mode canary --percent {percent:g} {where}"
        told = f"canary at {ordered:g} %: {_order_of(orders, 'canary_percent')}"
        yield f"{told} overrides {percent:g} %; change it: {answer}"
    if orders.bundle is not None and Path(orders.bundle) != options.bundle.absolute():
        answer = f"deepsched steer swap {options.bundle} {where}"
        yield f"bundle {orders.bundle}: {_order_of(orders, 'bundle')} overrides {options.bundle}; change it: {answer}"
    if orders.override:
        yield f"still {orders.override} by {_order_of(orders, 'override')}; end it: deepsched steer resume {where}"


def _order_of(orders: GivenOrders, name: str) -> str:
    """When an order was given, in words; version 0.1 stored no times."""
    given = orders.given.get(name)
    return "an earlier order" if given is None else f"the order of {time.strftime('%F %T', time.localtime(given))}"


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
