"""Orders of an operator to a running controller, and its state: `deepsched steer mode`, `pause`, `status`, …"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from actuators.errors import ConfigError
from rayjobs.cli.console import console_out, log_line
from rayjobs.cli.main import Verb
from rayjobs.steer.folder import SteerFolder
from rayjobs.steer.options import FolderOptions, ModeOptions, SwapOptions


def set_mode(options: ModeOptions) -> int:
    """Orders another mode."""
    return _order(options, mode=options.mode)


def swap(options: SwapOptions) -> int:
    """Orders another bundle, after checking it."""
    from rayjobs.steer.site import load_adviser

    load_adviser(options.bundle)
    return _order(options, bundle=str(options.bundle.absolute()))


def status(options: FolderOptions) -> int:
    """Prints whether a controller runs, its orders, its last decision and how often each guard acted."""
    folder = SteerFolder(options.folder)
    folder.require()
    heartbeat, orders, out = folder.status(), folder.orders(), console_out()
    out.print(f"controller: {'running' if folder.is_locked() else 'not running'}", markup=False)
    out.print(f"orders: {orders.override or 'none'}; mode: {orders.mode or 'as started'}", markup=False)
    if heartbeat:
        age_s = time.monotonic() - heartbeat["now_s"]
        out.print(f"last decision {age_s:.1f} s ago: {heartbeat.get('reason', '')}", markup=False)
        for guard, count in sorted(heartbeat.get("guards", {}).items()):
            out.print(f"  {guard}: {count}", markup=False)
    return 0


def _overriding(override: str) -> Callable[[FolderOptions], int]:
    def run(options: FolderOptions) -> int:
        return _order(options, override=override)

    return run


def _order(options: FolderOptions, **changes: Any) -> int:
    folder = SteerFolder(options.folder)
    try:
        folder.order(**changes)
    except OSError as error:
        raise ConfigError(
            f"cannot write the order: {error.strerror}", where=str(folder.path),
            remedy="free some space; the controller continues unchanged until then",
        ) from error  # fmt: skip
    applied = "the controller applies it within one interval" if folder.is_locked() else "no controller is running"
    log_line("steer", f"order written; {applied}")
    return 0


MODE = Verb("steer mode", "deepsched steer mode canary --folder runs/steer", ModeOptions, set_mode, ("mode",))
STATUS = Verb("steer status", "deepsched steer status --folder runs/steer", FolderOptions, status)
PAUSE = Verb("steer pause", "deepsched steer pause --folder runs/steer", FolderOptions, _overriding("paused"))
RESUME = Verb("steer resume", "deepsched steer resume --folder runs/steer", FolderOptions, _overriding(""))
REVERT = Verb("steer revert", "deepsched steer revert --folder runs/steer", FolderOptions, _overriding("reverted"))
SWAP = Verb("steer swap", "deepsched steer swap runs/new/bundle --folder runs/steer", SwapOptions, swap, ("bundle",))
