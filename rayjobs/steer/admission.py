"""Admission control under a controller: counts in shadow, refuses a part in canary, and is taken back by a revert.

NGINX moves the limits by itself, so that protection goes on when the controller ends or is killed: the watchdog leaves
the rule alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from actuators.contract.admission import Admission
from actuators.contract.topology import Topology
from actuators.contract.window import AdmissionWindow, Window
from actuators.errors import ActuationError, ConfigError, DeepSchedError, closest
from actuators.files import read_token
from actuators.nginx.admission_endpoint import AdmissionEndpoint, from_text, to_text
from actuators.nginx.control_endpoint import MemoryControl, beside, topology_from_text
from actuators.nginx.endpoint import RefusedError
from actuators.other_proxies import names_another
from actuators.store import Store, Stored
from tuning.steering.admission import AdmissionVerdict, AdmissionWatch, IdleLatency
from tuning.steering.options import Ordered

if TYPE_CHECKING:
    from rayjobs.steer.options import SteerOptions

LEFT = "admission not applied: the rule of an earlier controller is not taken back"
CHANGED = "the rule of admission was changed outside the controller, and stays: steer resume sets ours again"
_RESTARTED = {"restart", "reset"}
_SUMS = ("offered", "refused", "spared", "finished", "late")


class FirstRule(BaseModel):
    """The rule from before any controller.

    Attributes:
        text: as the endpoint shows it; empty for none.
        sealed: a controller has set a rule since.
        ours: the rule that a controller set last; empty where none is known.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str = ""
    sealed: bool = False
    ours: str = ""


class FirstRuleStore:
    """`admission.json` of a controller."""

    def __init__(self, path: Path) -> None:
        self._store = Store(path, FirstRule, "a file of the first rule of admission")

    def read(self) -> FirstRule | None:
        """None when no controller with admission has run here. Raises DataError when the file cannot be read."""
        return self._store.read().value

    def keep(self, text: str) -> FirstRule:
        """The first rule, when this one is in force: it is the first as long as no controller has set one.

        Raises ConflictError, DataError, OSError.
        """

        def update(stored: Stored[FirstRule]) -> FirstRule:
            return stored.value if stored.value is not None and stored.value.sealed else FirstRule(text=text)

        return self._change(update)

    def seal(self, ours: str) -> None:
        """Call before a controller sets this rule. Raises ConflictError, DataError, OSError."""
        self._update(sealed=True, ours=ours)

    def unseal(self) -> None:
        """Call when the first rule is in force again. Raises ConflictError, DataError, OSError."""
        self._update(sealed=False, ours="")

    def _update(self, **values: Any) -> None:
        kept = self.read()
        if kept is not None and kept != kept.model_copy(update=values):
            self._change(lambda stored: (stored.value or kept).model_copy(update=values))

    def _change(self, update: Any) -> FirstRule:
        value = self._store.change(update).value
        assert value is not None
        return value


class SiteAdmission:
    """The rule of one site.

    Args:
        admission: with any percentage.
        store: of the rule from before any controller.
    """

    def __init__(
        self, endpoint: AdmissionEndpoint, admission: Admission, store: FirstRuleStore, watch: AdmissionWatch
    ) -> None:
        self._endpoint, self._admission, self._store, self._watch = endpoint, admission, store, watch
        present = endpoint.text()
        self.first = store.keep(present)
        self._expected, self._doubtful, self._yielded = present, False, -1
        self._in_force = present  # may differ from the expected one
        self._sealed, self._ours = self.first.sealed, self.first.ours
        self._idle = IdleLatency(admission)
        self._go_on(present)
        self._sums = dict.fromkeys(_SUMS, 0)
        self._late_beyond = 0

    def step(self, window: Window, orders: Ordered) -> tuple[dict[str, Any], list[str]]:
        """Puts in force what should be; the entry of the audit line, and alarms. Errors become alarms."""
        if self._own(self._in_force) is not None:  # another rule's refusals prove nothing about this one
            self._watch.see(window)
        self._idle.see(window)
        self._admission = replace(self._admission, idle_s=self._idle.measured(self._admission.idle_s))
        self._add(window)
        verdict = self._watch.decide(orders.mode, orders.canary_percent)
        alarms, reason = list(verdict.alarms) if orders.override == "" else [], verdict.reason
        try:
            self._look(window, orders)
            text, reason = self._wanted(verdict, orders)
            alarms += self._put(text, window, orders)
        except DeepSchedError as error:
            alarms.append(f"admission not applied: {error}"[:300])
        except OSError as error:
            alarms.append(f"admission not applied, as the first rule could not be marked as such: {error.strerror}")
        return self._entry(reason, window.admission), alarms

    @property
    def reverted(self) -> bool:
        """Whether the rule from before any controller is in force."""
        return self._expected == self.first.text

    def _go_on(self, text: str) -> None:
        """When a text is this rule as an earlier controller left it, response times that it measured count on, and what
        it has proved.
        """
        present = self._own(text)
        if present is not None:
            self._admission = replace(self._admission, idle_s=present.idle_s)
            self._watch.proved = self._watch.proved or present.percent > 0

    def _own(self, text: str) -> Admission | None:
        """The rule of a text when it is this one, with any percentage and any idle response times."""
        try:
            found = from_text(text, self._admission.topology)
        except ActuationError:
            return None
        if found is None or text != to_text(replace(self._admission, percent=found.percent, idle_s=found.idle_s)):
            return None
        return found

    def _look(self, window: Window, orders: Ordered) -> None:
        """Reads the rule in force. As long as no controller has set one, another one is what a revert restores."""
        present = self._in_force = self._endpoint.text()
        if self._sealed or present == self._expected:
            return
        ended = orders.override == "reverted" and self._doubtful and not _restarted(window)
        if present or ended:
            self.first = self._store.keep(present)
            self._expected, self._doubtful = present, False

    def _is_theirs(self, orders: Ordered) -> bool:
        """In shadow mode: whether a rule is in force that neither a controller has set nor was there before."""
        present = self._in_force
        if orders.mode != "shadow" or orders.override or present in ("", self.first.text, self._ours):
            return False
        return self._own(present) is None

    def _wanted(self, verdict: AdmissionVerdict, orders: Ordered) -> tuple[str | None, str]:
        """The rule that should be in force, None to leave it, and why."""
        if orders.override == "paused":
            return None, "paused by the operator"
        if orders.override == "reverted":
            return self.first.text, "reverted by the operator"
        if self._is_theirs(orders):
            return None, "shadow: a rule that was set outside the controller stays"
        if orders.mode == "shadow" and self.first.text:
            return self.first.text, "shadow: the rule from before the controller stays"
        return to_text(replace(self._admission, percent=verdict.percent)), verdict.reason

    def _put(self, text: str | None, window: Window, orders: Ordered) -> list[str]:
        """Sets the rule when it differs; alarms about one that somebody else has set, which stays."""
        present = self._in_force
        if present != self._expected and not self._lost(window, orders):
            return [CHANGED] if self._yielded == orders.version else []
        if text is not None and text != present:
            if text != self.first.text:
                self._store.seal(text)
                self._sealed, self._ours = True, text
            self._endpoint.put_text(text)
            present = self._in_force = text
        self._expected, self._doubtful = present, False
        if orders.override == "reverted" and present == self.first.text:
            self._store.unseal()
            self._sealed, self._ours = False, ""
        return []

    def _lost(self, window: Window, orders: Ordered) -> bool:
        """Whether another rule than the last one is there because NGINX was restarted, or is taken as it is, or may be
        set over.

        A restart may show in the next window only, so a change is taken for somebody's after that.
        """
        taken_back = orders.override == "reverted" and self._sealed
        if _restarted(window) or taken_back or self._is_theirs(orders):
            return True
        if not self._doubtful:
            self._doubtful = True
            return False
        if self._yielded not in (-1, orders.version):
            # An order was given since.
            self._yielded = -1
            return True
        self._yielded = orders.version
        return False

    def _add(self, window: Window) -> None:
        counts = window.admission
        if counts is None or not window.usable:
            return
        for name in _SUMS:
            self._sums[name] += int(getattr(counts, name).sum())
        if (counts.refused + counts.spared).any():
            self._late_beyond += int(counts.late.sum())

    def _entry(self, reason: str, counts: AdmissionWindow | None) -> dict[str, Any]:
        """What the audit log and the heartbeat tell; `late_beyond`: late in windows with requests beyond a limit."""
        return {
            "rule": _word(self._in_force, "rule") or "none",
            "percent": _percent(self._in_force),
            "reason": reason,
            "idle_ms": (1e3 * self._admission.idle_s).round(3).tolist(),
            "since_start": {**self._sums, "late_beyond": self._late_beyond},
            "counted": counts is not None,
        }


class LeftAdmission:
    """The rule that an earlier controller set, under a controller that sets none: a revert takes it back.

    Args:
        control_url: of the present NGINX; empty when it does not balance in memory, and then the rule is only told of.
    """

    def __init__(self, store: FirstRuleStore, control_url: str, token_file: Path | None) -> None:
        self._store, self._control_url, self._token_file = store, control_url, token_file
        self.reverted = not control_url

    def step(self, window: Window, orders: Ordered) -> tuple[dict[str, Any], list[str]]:
        """As `SiteAdmission.step`; without an entry."""
        if orders.override != "reverted" or (self.reverted and self._control_url):
            return {}, []
        try:
            restore_first_rule(self._store, self._control_url, self._token_file)
        except (DeepSchedError, OSError) as error:
            return {}, [f"{LEFT}: {error}"[:300]]
        self.reverted = True
        return {}, []


def _restarted(window: Window) -> bool:
    return bool(_RESTARTED & {fault.kind for fault in window.faults})


def _word(text: str, name: str) -> str:
    """The value of a line of a rule; empty where there is none."""
    return next((line.split()[1] for line in text.splitlines() if line.startswith(f"{name} ")), "")


def _percent(text: str) -> float:
    return float(_word(text, "percent") or 0.0)


@contextlib.contextmanager
def site_admission(options: SteerOptions, store: FirstRuleStore) -> Iterator[SiteAdmission | LeftAdmission | None]:
    """The rule that the options describe; without one, that of an earlier controller, or None.

    Raises ConfigError, also for a group that NGINX does not have; ActuationError when it has no admission control;
    DataError when the file of the first rule cannot be read.
    """
    if options.admission_calibration is None:
        first = store.read()
        in_memory = "" if names_another(options.control_url) else options.control_url
        yield LeftAdmission(store, in_memory, options.token_file) if first is not None and first.sealed else None
        return
    from envs.calibration.admission import calibrated_admission
    from envs.calibration.result import Calibration

    calibration = Calibration.load(options.admission_calibration)
    admission = calibrated_admission(calibration, options.admission, 0.0)
    _require_groups(topology_from_text(MemoryControl.read(options.control_url)), admission.topology)
    token = read_token(options.token_file)
    endpoint = AdmissionEndpoint(beside(options.control_url, "admission"), token, admission.topology)
    with contextlib.closing(endpoint):
        endpoint.require()
        watch = AdmissionWatch(options.admission.guards, admission.numbers.late_share, proved=False)
        yield SiteAdmission(endpoint, admission, store, watch)


def _require_groups(theirs: Topology, ours: Topology) -> None:
    names = {group.name for group in theirs.groups}
    for group in ours.groups:
        if group.name not in names:
            raise ConfigError(
                f"NGINX has no upstream '{group.name}'",
                where="admission_calibration",
                remedy=closest(group.name, names),
            )


def restore_first_rule(store: FirstRuleStore, control_url: str, token_file: Path | None) -> bool:
    """Puts the rule from before any controller in force again; False when no controller has set one.

    Raises ActuationError, ConfigError, ConflictError, DataError or OSError.
    """
    first = store.read()
    if first is None or not first.sealed:
        return False
    if not control_url or names_another(control_url):
        remedy = "start a controller with its --control-url"
        raise ActuationError("the control endpoint of its NGINX is not known", where="admission", remedy=remedy)
    token = read_token(token_file)
    topology = topology_from_text(MemoryControl.read(control_url))
    with contextlib.closing(AdmissionEndpoint(beside(control_url, "admission"), token, topology)) as endpoint:
        try:
            endpoint.require()
        except ActuationError as error:
            # Without admission control every request enters, as before the first controller.
            if first.text or not isinstance(error.__cause__, RefusedError):
                raise
        else:
            endpoint.put_text(first.text)
    store.unseal()
    return True
