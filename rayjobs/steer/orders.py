"""Orders of an operator to a controller: `deepsched steer mode`, `pause`, `resume`, `revert`, `swap`.

Each says what is in force afterwards. A revert needs no controller: without one it restores the first weights itself.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable
from typing import Any

from actuators.errors import ConfigError, ConflictError, DeepSchedError
from actuators.store import Stored
from rayjobs.cli.console import log_line
from rayjobs.cli.main import Verb
from rayjobs.steer.folder import SteerFolder
from rayjobs.steer.options import ModeOptions, OrderOptions, SwapOptions
from rayjobs.steer.order_store import GivenOrders, Moment, Orders

INTERVALS = 3
"""Control intervals within which a controller obeys and says so."""
LEAST_WAIT_S = 5.0
_POLL_S = 0.02


def set_mode(options: ModeOptions) -> int:
    """Orders another mode, and how far a canary goes."""
    changes: dict[str, Any] = {"mode": options.mode}
    if options.percent is not None:
        changes["canary_percent"] = options.percent
    return _order(options, **changes)


def swap(options: SwapOptions) -> int:
    """Orders another bundle, after checking it."""
    given = Moment.of_command()
    from rayjobs.steer.site import load_adviser

    load_adviser(options.bundle)
    return _order(options, given, bundle=str(options.bundle.absolute()))


def _overriding(override: str) -> Callable[[OrderOptions], int]:
    def run(options: OrderOptions) -> int:
        return _order(options, override=override)

    return run


def revert(options: OrderOptions) -> int:
    """Orders the first weights; restores them itself when no controller runs. 1 when they are not in force."""
    folder = SteerFolder(options.folder)
    changes = {"override": "reverted"}
    stored = _give(folder, Moment.of_command(), changes)
    while True:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(folder.locked())
            except ConfigError:
                told = _await(folder, stored, changes, options.wait_s)
                if told is not None:
                    return told
            else:
                return _restore(folder, stored.version)


def _order(options: OrderOptions, given: Moment | None = None, **changes: Any) -> int:
    """0 when the order is in force or will be when a controller starts, 1 when no answer came in time."""
    folder = SteerFolder(options.folder)
    stored = _give(folder, given or Moment.of_command(), changes)
    told = _await(folder, stored, changes, options.wait_s)
    if told is not None:
        return told
    now = folder.orders.read().value or Orders()
    when = f"{now.override or 'no override'}, mode {now.mode or 'as started'} when one starts"
    log_line("steer", f"order written; no controller is running: {when}")
    return 0


def _give(folder: SteerFolder, given: Moment, changes: dict[str, Any]) -> Stored[GivenOrders]:
    """The orders with these changes. Raises as `OrderStore.give`."""
    folder.require()
    try:
        return folder.orders.give(changes, given)
    except OSError as error:
        raise ConfigError(
            f"cannot write the order: {error.strerror}", where=str(folder.path),
            remedy="free some space; the controller continues unchanged until then",
        ) from error  # fmt: skip


def _await(
    folder: SteerFolder, stored: Stored[GivenOrders], changes: dict[str, Any], wait_s: float | None
) -> int | None:
    """Watches the controller's heartbeat until it has obeyed these orders, and says what is in force.

    1 when it does not within `wait_s`; None when no controller is running.
    Raises ConflictError when another order came after this one, ConfigError when the controller refuses the bundle.
    """
    wait_s = wait_s or max(INTERVALS * float(folder.status().get("interval_s", 0.0)), LEAST_WAIT_S)
    began_s = time.monotonic()
    while time.monotonic() - began_s < wait_s:
        if not folder.is_locked():
            _require_kept(folder, stored, changes)
            return None
        status = folder.status()
        if int(status.get("orders_version", -1)) >= stored.version and _obeyed(status, changes):
            _require_kept(folder, stored, changes)
            _require_taken(status, changes)
            log_line("steer", f"in force now: {in_force(status)}")
            return 0
        select.select([], [], [], _POLL_S)
    _require_kept(folder, stored, changes)
    if changes.get("override") == "reverted":
        # The sender has its answer here, so that a later order is obeyed.
        folder.orders.answer(stored.version)
    last_s = time.monotonic() - float(folder.status().get("now_s", began_s))
    log_line(
        "steer",
        f"order written, and not obeyed within {wait_s:g} s; the controller's last heartbeat was {last_s:.0f} s ago:"
        f" look at deepsched steer status --folder {folder.path}, or end the controller and repeat the order",
    )
    return 1


def _obeyed(status: dict[str, Any], changes: dict[str, Any]) -> bool:
    return bool(status.get("reverted")) or changes.get("override") != "reverted"


def _require_taken(status: dict[str, Any], changes: dict[str, Any]) -> None:
    """Raises ConfigError when the controller has refused the bundle that these changes order."""
    if "bundle" in changes and status.get("refused"):
        raise ConfigError(
            f"{status['refused']}: the controller keeps the previous bundle", where=str(changes["bundle"]),
            remedy="correct it and repeat this order, or order another one",
        )  # fmt: skip


def _require_kept(folder: SteerFolder, stored: Stored[GivenOrders], changes: dict[str, Any]) -> None:
    """Raises ConflictError when another order has replaced this one, or a revert given meanwhile overrides it."""
    now, then = folder.orders.read().value or Orders(), stored.value or Orders()
    lost = any(getattr(now, name) != value for name, value in changes.items())
    if lost or (now.override == "reverted" and then.override != "reverted"):
        raise ConflictError(
            f"another order came after this one and counts: {now.override or 'no override'}, mode"
            f" {now.mode or 'as started'}",
            where=str(folder.path), remedy=f"look at: deepsched steer status --folder {folder.path}",
        )  # fmt: skip


def _restore(folder: SteerFolder, version: int) -> int:
    """Restores the first weights without a controller, whose lock is held. 1 when that failed."""
    from actuators.external.actuator import ActuatorOptions, open_actuator
    from rayjobs.steer.admission import restore_first_rule
    from rayjobs.steer.first import restore

    first = folder.first.read()
    assert first is not None, "required before"
    try:
        access = ActuatorOptions.model_validate(folder.access())
        restored = restore(first, open_actuator(access))
        folder.first.seal(False)
    except DeepSchedError as error:
        log_line(
            "steer",
            f"no controller is running, and the first weights are not restored: {error};"
            f" repeat: deepsched steer revert --folder {folder.path}",
        )
        folder.orders.answer(version)
        return 1
    done = "restored" if restored.changed else "in force already"
    weights = f"no controller is running: the first weights are {done}{missing_in_words(restored.missing)}"
    try:
        admits = restore_first_rule(folder.admission, access.control_url, access.token_file)
    except (DeepSchedError, OSError) as error:
        log_line(
            "steer",
            f"{weights}, and the first rule of admission is not restored: {error};"
            f" repeat: deepsched steer revert --folder {folder.path}",
        )
        return 1
    finally:
        folder.orders.answer(version)
    log_line("steer", weights + (", and the first rule of admission" if admits else ""))
    return 0


def missing_in_words(missing: tuple[str, ...]) -> str:
    """A remark on servers that could not get their first weights back; empty when all did."""
    return f", but not of servers that are gone or cannot be set now: {', '.join(missing)}" if missing else ""


def in_force(status: dict[str, Any]) -> str:
    """A heartbeat in a few words."""
    if status["override"] == "reverted":
        return "reverted: the first weights"
    if status["override"] == "paused":
        return "paused: the weights stay as they are"
    mode = status["mode"] + (f" at {status['canary_percent']:g} %" if status["mode"] == "canary" else "")
    source = {"policy": "the policy's weights", "baseline": "the baseline", "hold": "unchanged weights"}
    shown = "changes nothing" if status["mode"] == "shadow" else source[status["source"]]
    return f"{mode}: {shown} ({status['reason']})"


MODE = Verb(
    "steer mode", "deepsched steer mode canary --percent 10 --folder runs/steer", ModeOptions, set_mode, ("mode",)
)
PAUSE = Verb("steer pause", "deepsched steer pause --folder runs/steer", OrderOptions, _overriding("paused"))
RESUME = Verb("steer resume", "deepsched steer resume --folder runs/steer", OrderOptions, _overriding(""))
REVERT = Verb("steer revert", "deepsched steer revert --folder runs/steer", OrderOptions, revert)
SWAP = Verb("steer swap", "deepsched steer swap runs/new/bundle --folder runs/steer", SwapOptions, swap, ("bundle",))
