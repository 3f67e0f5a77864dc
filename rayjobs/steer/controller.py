"""The controller's loop: collect, ask, decide, apply, record; every interval, for weeks, whatever fails."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from actuators.contract.control import Control
from actuators.contract.window import Window
from actuators.errors import DeepSchedError
from rayjobs.steer.folder import Orders, SteerFolder
from rayjobs.steer.site import Site
from tuning.policy.adviser import Advice, Advises, Recent, advisable
from tuning.steering import audit
from tuning.steering.decide import Decision, Steering
from tuning.steering.limits import differ

CHANGED = "weights were changed by someone else: a revert now goes back to theirs"


@dataclass(frozen=True)
class Step:
    """What one interval brought, and its line in the audit."""

    decision: Decision
    line: dict[str, Any]
    applied: bool


class Controller:
    """Steers one site.

    Args:
        load: gives the adviser of another bundle folder, and its frames; raises DeepSchedError.
        log: receives one line of the audit.
        say: receives what a person should hear of, once each time it begins.
    """

    def __init__(
        self,
        site: Site,
        steering: Steering,
        adviser: Advises,
        frames: int,
        folder: SteerFolder,
        log: Callable[[dict[str, Any]], None],
        *,
        load: Callable[[str], tuple[Advises, int]] | None = None,
        say: Callable[[str], None] = lambda line: None,
        stopped: threading.Event | None = None,
    ) -> None:
        self._site, self.steering, self._adviser, self._recent = site, steering, adviser, Recent(frames)
        self._folder, self._log, self._load, self._say = folder, log, load, say
        self._started = steering.options
        self._bundle: str | None = None
        self._said: tuple[str, ...] = ()
        self._last: dict[str, Any] = {"now_s": time.monotonic()}
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
        """Says to the watchdog that the end is wanted; what is in force stays."""
        self._heartbeat({**self._last, "ended": True})

    def step(self) -> Step:
        """One interval. Raises nothing that a restart could not raise, too."""
        began_s = time.monotonic()
        notes = self._obey()
        window = self._site.collector.window()
        notes += self._notice(window)
        before = self.steering.in_force
        window = replace(window, weight=before.as_weights().values)
        collected_s = time.monotonic()
        advice, unasked = self._ask(window)
        advised_s = time.monotonic()
        decision = self.steering.decide(window, advice, began_s)
        applied, problem = self._apply(decision, began_s)
        ended_s = time.monotonic()
        line = audit.decision_line(self.steering, before, window, advice, decision, began_s)
        line["applied"] = applied
        line["theirs"] = CHANGED in notes
        line["in_force"] = self.steering.in_force.as_weights().values.tolist()
        line["alarms"] += [*notes, *(said for said in (unasked, problem) if said)]
        line["guards"] += ["actuation"] if problem else []
        self.guards.update(line["guards"])
        line["latency_ms"] = {
            "collect": (collected_s - began_s) * 1e3, "advise": (advised_s - collected_s) * 1e3,
            "apply": (ended_s - advised_s) * 1e3, "total": (ended_s - began_s) * 1e3,
        }  # fmt: skip
        self._log(line)
        self._last = {"now_s": began_s, "guards": dict(self.guards), "reason": decision.reason}
        self._heartbeat(self._last)
        self._tell(line["alarms"])
        return Step(decision, line, applied)

    def _ask(self, window: Window) -> tuple[Advice | None, str]:
        """The advice, or why there is none although the window can be read."""
        if not advisable(window):
            return None, ""
        try:
            return self._recent.ask(self._adviser, window), ""
        except DeepSchedError as error:
            return None, f"no advice: {error}"[:300]

    def _apply(self, decision: Decision, now_s: float) -> tuple[bool, str]:
        """Whether the decision's weights were put in force, and what kept them from it."""
        if not decision.change:
            return False, ""
        try:
            self._site.apply(decision.control)
        except DeepSchedError as error:
            return False, f"not applied: {error}"[:300]
        self.steering.applied(decision, now_s)
        return True, ""

    def _notice(self, window: Window) -> list[str]:
        """After a restart or somebody's reload, what is in force must be read again."""
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

    def _obey(self) -> list[str]:
        """Takes the operator's orders; alarms when they cannot be read or followed."""
        try:
            orders = self._folder.orders()
        except DeepSchedError as error:
            return [str(error)]
        self.steering.override = orders.override
        update = {"mode": orders.mode or self._started.mode, "blend_percent": self._blend(orders)}
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

    def _blend(self, orders: Orders) -> float:
        return self._started.blend_percent if orders.blend_percent is None else orders.blend_percent

    def _heartbeat(self, status: dict[str, Any]) -> None:
        try:
            self._folder.write_status(status)
        except OSError as error:
            # A full disk must not stop the steering; the watchdog then finds us gone, which is its safe side.
            self._tell([f"no heartbeat: {error.strerror}"])

    def _tell(self, alarms: list[str]) -> None:
        new = tuple(alarm for alarm in alarms if alarm not in self._said)
        self._said = tuple(alarms)
        for alarm in new:
            self._say(f"ALARM {alarm}")


def starting_steering(site: Site, folder: SteerFolder, steering: Callable[[Control], Steering]) -> Steering:
    """A steering that knows what is in force and what was there before any controller.

    Raises DeepSchedError when NGINX cannot be read.
    """
    present, method = site.control(), site.method()
    original, site.first_method = folder.original(present, method)
    made = steering(original)
    made.adopt(present, external=False)
    return made
