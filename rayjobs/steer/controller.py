"""The controller: opened from its options, then collect, advise, decide, apply, record in every interval, for weeks."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actuators.contract.control import Control
from actuators.contract.window import Window
from actuators.errors import DeepSchedError
from rayjobs.cli.console import log_line
from rayjobs.cli.interrupts import Terminated
from rayjobs.steer.folder import SteerFolder
from rayjobs.steer.metrics import publishing
from rayjobs.steer.site import Site, load_adviser, open_site, serve_first
from tuning.policy.adviser import Advice, Adviser, Advises, Recent, advisable
from tuning.steering import audit
from tuning.steering.decide import Decision, Steering
from tuning.steering.limits import differ

if TYPE_CHECKING:
    from rayjobs.steer.options import SteerOptions

CHANGED = "weights were changed outside the controller: a revert now restores those"


@dataclass(frozen=True)
class Step:
    """The decision of one interval, and its line in the audit log."""

    decision: Decision
    line: dict[str, Any]
    applied: bool


class SiteController:
    """Steers one site.

    Args:
        frames: windows that the adviser needs.
        record: receives each decision as a line of the audit log.
        load: returns the adviser of another bundle folder, and its frames; raises DeepSchedError.
        log: receives each alarm when it begins.
        stopped: ends `run` when set.
    """

    def __init__(
        self,
        site: Site,
        steering: Steering,
        adviser: Advises,
        frames: int,
        folder: SteerFolder,
        record: Callable[[dict[str, Any]], None],
        *,
        load: Callable[[str], tuple[Advises, int]] | None = None,
        log: Callable[[str], None] = lambda line: None,
        stopped: threading.Event | None = None,
    ) -> None:
        self._site, self.steering, self._adviser, self._recent = site, steering, adviser, Recent(frames)
        self._folder, self._record, self._load, self._log = folder, record, load, log
        self._initial_options = steering.options
        self._bundle: str | None = None
        self._present_alarms: tuple[str, ...] = ()
        self._status: dict[str, Any] = {"now_s": time.monotonic()}
        self.guards: Counter[str] = Counter()
        self.stopped = stopped or threading.Event()

    def run(self, interval_s: float, duration_s: float | None = None) -> None:
        """Steps at an even pace until `stopped` is set or the time is over; a late step is not made up for."""
        begin_s = next_s = time.monotonic()
        while duration_s is None or time.monotonic() - begin_s < duration_s:
            next_s = max(next_s + interval_s, time.monotonic())
            if self.stopped.wait(max(next_s - time.monotonic(), 0.0)):
                break
            self.step()
        self.end()

    def end(self) -> None:
        """Tells the watchdog that this end is regular; the weights in force stay."""
        self._write_status({**self._status, "ended": True})

    def step(self) -> Step:
        """One interval. Every DeepSchedError and OSError in it becomes an alarm."""
        began_s = time.monotonic()
        notes = self._apply_orders()
        window = self._site.collector.window()
        notes += self._reread_control(window)
        before = self.steering.in_force
        window = replace(window, weight=before.as_weights().values)
        collected_s = time.monotonic()
        advice, no_advice = self._advice(window)
        advised_s = time.monotonic()
        decision = self.steering.decide(window, advice, began_s)
        applied, problem = self._apply(decision, began_s)
        ended_s = time.monotonic()
        line = audit.decision_line(self.steering, before, window, advice, decision, began_s)
        line["applied"] = applied
        line["theirs"] = CHANGED in notes
        line["in_force"] = self.steering.in_force.as_weights().values.tolist()
        line["alarms"] += [*notes, *filter(None, (no_advice, problem))]
        line["guards"] += ["actuation"] if problem else []
        self.guards.update(line["guards"])
        line["latency_ms"] = {
            "collect": (collected_s - began_s) * 1e3, "advise": (advised_s - collected_s) * 1e3,
            "apply": (ended_s - advised_s) * 1e3, "total": (ended_s - began_s) * 1e3,
        }  # fmt: skip
        self._record(line)
        self._status = {"now_s": began_s, "guards": dict(self.guards), "reason": decision.reason}
        self._write_status(self._status)
        self._log_new(line["alarms"])
        return Step(decision, line, applied)

    def _advice(self, window: Window) -> tuple[Advice | None, str]:
        """The advice, or why there is none although the window is usable."""
        if not advisable(window):
            return None, ""
        try:
            return self._recent.ask(self._adviser, window), ""
        except DeepSchedError as error:
            return None, f"no advice: {error}"[:300]

    def _apply(self, decision: Decision, now_s: float) -> tuple[bool, str]:
        """Whether the decision's weights were applied, and the error if they could not be."""
        if not decision.change:
            return False, ""
        try:
            self._site.apply(decision.control)
        except DeepSchedError as error:
            return False, f"not applied: {error}"[:300]
        self.steering.applied(decision, now_s)
        return True, ""

    def _reread_control(self, window: Window) -> list[str]:
        """Reads the control in force again after a restart or an external reload; alarms when it differs."""
        kinds = {fault.kind for fault in window.faults} & {"restart", "reload", "reset"}
        if not kinds:
            return []
        try:
            present = self._site.control()
        except DeepSchedError as error:
            return [f"weights in force unknown: {error}"[:300]]
        if not differ(present, self.steering.in_force):
            return []
        theirs = "restart" not in kinds or self.steering.options.mode == "shadow"
        self.steering.adopt(present, external=theirs)
        if not theirs:
            return ["NGINX was restarted and has other weights"]
        self._site.first_method = self._site.method()
        self._folder.adopt(present, self._site.first_method)
        return [CHANGED]

    def _apply_orders(self) -> list[str]:
        """Applies the operator's orders; alarms when they cannot be read or applied."""
        try:
            orders = self._folder.orders()
        except DeepSchedError as error:
            return [str(error)]
        self.steering.override = orders.override
        initial, percent = self._initial_options, orders.canary_percent
        update = {
            "mode": orders.mode or initial.mode,
            "canary_percent": initial.canary_percent if percent is None else percent,
        }
        self.steering.options = self.steering.options.model_copy(update=update)
        if orders.bundle is None or orders.bundle == self._bundle or self._load is None:
            return []
        self._bundle = orders.bundle
        try:
            self._adviser, frames = self._load(orders.bundle)
        except DeepSchedError as error:
            return [f"bundle not swapped: {error}"[:300]]
        self._recent = self._recent.moved(frames)
        return ["bundle swapped"]

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
            self._log(f"ALARM {alarm}")


def starting_steering(site: Site, folder: SteerFolder, steering: Callable[[Control], Steering]) -> Steering:
    """A steering that knows the control in force and the one from before any controller.

    Raises DeepSchedError when NGINX cannot be read.
    """
    present, method = site.control(), site.method()
    original, site.first_method = folder.original(present, method)
    made = steering(original)
    made.adopt(present, external=False)
    return made


def steer(options: SteerOptions, stopped: threading.Event | None = None) -> None:
    """Steers until `duration_s` is over, `stopped` is set or a signal arrives; the weights in force then stay."""
    folder, report = SteerFolder(options.folder), partial(log_line, "steer")
    model = load_adviser(options.bundle)
    folder.make()
    with folder.locked(), open_site(options, model.topology) as site, contextlib.ExitStack() as stack:
        adviser = load_adviser(options.bundle, site, options.workers)
        deadlines_s = adviser.bundle.problem.deadlines_s
        now_s = time.monotonic()
        steering = starting_steering(site, folder, lambda first: Steering(deadlines_s, first, options, now_s))
        origin = {"folder": str(options.bundle.absolute()), **_origin(adviser)}
        log = audit.AuditLog(folder.audit, audit.header(steering, deadlines_s, now_s, origin), options.audit)
        published = stack.enter_context(publishing(options.metrics_host, options.metrics_port))

        def load(path: str) -> tuple[Adviser, int]:
            new = load_adviser(Path(path), site, options.workers)
            return new, new.frames

        first_asked = serve_first(options, site, adviser, stack)
        site.collector.begin()
        controller = SiteController(
            site, steering, first_asked, adviser.frames, folder, published.recording(log.header, log.write),
            load=load, log=report, stopped=stopped,
        )  # fmt: skip
        where = site.address or options.status_url
        report(f"{options.mode} mode on {where}, every {options.interval_s:g} s; decisions in {folder.audit}")
        _run_until_ended(controller, options)
        lost = f"; {log.lost} lines of the audit log were lost" if log.lost else ""
        report(f"ended; the weights in force stay{lost}")


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
