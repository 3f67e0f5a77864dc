"""`deepsched steer`: puts a bundle in front of an NGINX, safely; also its operator's orders, replay and watchdog."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from actuators.errors import ConfigError, closest
from rayjobs.cli.console import console_err, console_out
from rayjobs.cli.main import Verb, run_verb
from rayjobs.steer.folder import SteerFolder
from rayjobs.steer.options import MODES, SteerOptions
from rayjobs.steer.run import _need, _say, steer

if TYPE_CHECKING:
    pass


def run(options: SteerOptions) -> int:
    """0 when the action was done."""
    folder = SteerFolder(options.folder)
    orders = {"pause": "paused", "resume": "", "revert": "reverted"}
    if options.action in orders:
        _order(folder, override=orders[options.action])
    elif options.action == "mode":
        if options.target not in MODES:
            raise ConfigError(
                f"'{options.target}' is no mode", where="steer mode", remedy=closest(options.target, MODES)
            )
        _order(folder, mode=options.target)
    elif options.action == "swap":
        from rayjobs.steer.site import load_adviser

        load_adviser(Path(_need(options.target, "a bundle folder", "steer swap")))
        _order(folder, bundle=str(Path(options.target).absolute()))
    elif options.action == "status":
        _status(folder)
    elif options.action == "replay":
        return _replay(options)
    elif options.action == "recalibrate":
        _recalibrate(options)
    elif options.action == "watchdog":
        _watchdog(options, folder)
    elif options.actor:
        from rayjobs.steer.actor import steer_on_proxy

        steer_on_proxy(options, _say)
        return 0
    else:
        steer(options, folder)
        return 0
    if options.action in (*orders, "mode", "swap"):
        alive = "a running controller obeys within one interval" if folder.is_locked() else "no controller runs now"
        console_err().print(f"deepsched steer: ordered; {alive}", markup=False)
    return 0


def _order(folder: SteerFolder, **changes: str) -> None:
    try:
        folder.order(**changes)
    except OSError as error:
        remedy = "make room for it; until then the controller goes on as it is"
        raise ConfigError(
            f"the order was not written: {error.strerror}", where=str(folder.path), remedy=remedy
        ) from error


def _status(folder: SteerFolder) -> None:
    folder.require()
    status = folder.status()
    alive = "runs" if folder.is_locked() else "does not run"
    console_out().print(f"controller: {alive}", markup=False)
    orders = folder.orders()
    console_out().print(f"orders: {orders.override or 'none'}, mode {orders.mode or 'as started'}", markup=False)
    if status:
        console_out().print(f"last decision {time.monotonic() - status['now_s']:.1f} s ago: {status.get('reason', '')}")
        for guard, count in sorted(status.get("guards", {}).items()):
            console_out().print(f"  {guard}: {count}", markup=False)


def _replay(options: SteerOptions) -> int:
    """1 when a decision is another than the recorded one."""
    from tuning.steering.audit import replay

    path = Path(_need(options.target, "a log", "steer replay"))
    adviser = None
    if options.bundle:
        from rayjobs.steer.replay import recorded_topology
        from tuning.policy.adviser import Adviser
        from tuning.policy.bundle import load_bundle

        adviser = Adviser(load_bundle(options.bundle, recorded_topology(path)))
    from rayjobs.steer.replay import report

    return report(replay(path, adviser, adviser.frames if adviser else 1), console_out())


def _recalibrate(options: SteerOptions) -> None:
    from rayjobs.steer.replay import recalibrated

    out = Path(_need(options.target, "a folder for the new bundle", "steer recalibrate"))
    bundle = _need(options.bundle, "a bundle", "--bundle")
    used = recalibrated(bundle, options.folder / "audit.jsonl", out, options.seed)
    _say(f"the encoder of {bundle} was fitted again to {used} windows: {out}; put it to work with: steer swap {out}")


def _watchdog(options: SteerOptions, folder: SteerFolder) -> None:
    from rayjobs.steer.site import load_adviser, open_site
    from rayjobs.steer.watchdog import watch

    bundle = _need(options.bundle, "the controller's bundle", "--bundle")
    folder.require()
    with contextlib.suppress(KeyboardInterrupt), open_site(options, load_adviser(bundle)) as site:
        watch(folder, site, options.watchdog_after_s, _say, options.duration_s)


VERB = Verb(
    name="steer",
    example="deepsched steer --bundle runs/demo/bundle --nginx-conf /etc/nginx/nginx.conf"
    " --status-url http://127.0.0.1:8081/status/format/json",
    options=SteerOptions,
    run=run,
    positional=("action", "target"),
)


if __name__ == "__main__":
    sys.exit(run_verb(VERB))
