"""`deepsched steer`: puts a bundle in front of an NGINX, safely; also its operator's orders, replay and watchdog."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from actuators.errors import ConfigError
from rayjobs.cli.console import console_err
from rayjobs.cli.interrupts import Terminated
from rayjobs.steer.folder import SteerFolder
from rayjobs.steer.options import SteerOptions

if TYPE_CHECKING:
    from rayjobs.steer.controller import Controller
    from tuning.policy.adviser import Adviser

T = TypeVar("T")


def steer(options: SteerOptions, folder: SteerFolder, stopped: threading.Event | None = None) -> None:
    """Steers until `duration_s` is over, `stopped` is set or a signal comes; the weights in force then stay."""
    from rayjobs.steer.controller import Controller, starting_steering
    from rayjobs.steer.site import ask_serve, load_adviser, open_site
    from tuning.steering.audit import AuditLog, header
    from tuning.steering.decide import Steering

    bundle = _need(options.bundle, "a bundle", "--bundle")
    model = load_adviser(bundle)
    folder.make()
    with folder.locked(), open_site(options, model) as site, contextlib.ExitStack() as stack:
        adviser = load_adviser(bundle, site, options.workers)
        deadlines_s = adviser.bundle.problem.deadlines_s
        now_s = time.monotonic()
        steering = starting_steering(site, folder, lambda first: Steering(deadlines_s, first, options, now_s))
        about = {"folder": str(bundle.absolute()), **_origin(adviser)}
        log = AuditLog(folder.audit, header(steering, deadlines_s, now_s, about), options.audit)
        asked = ask_serve(options, site, adviser, stack)
        site.collector.begin()

        def load(path: str) -> tuple[Adviser, int]:
            new = load_adviser(Path(path), site, options.workers)
            return new, new.frames

        controller = Controller(
            site,
            steering,
            asked,
            adviser.frames,
            folder,
            log.write,
            load=load,
            say=_say,
            stopped=stopped,
        )
        where = site.address or options.status_url
        _say(f"{options.mode} mode on {where}, every {options.interval_s:g} s; decisions in {folder.audit}")
        _until_ended(controller, options)
        _say(f"ended; the weights in force stay. {log.lost} lines of the audit were lost")


def _until_ended(controller: Controller, options: SteerOptions) -> None:
    try:
        controller.run(options.interval_s, options.duration_s)
    except Terminated:
        # SIGTERM is how a service is meant to end; what is in force stays.
        controller.end()
    except KeyboardInterrupt:
        controller.end()


def _origin(adviser: Adviser) -> dict[str, object]:
    keys = ("seed", "command", "versions")
    return {key: adviser.bundle.provenance[key] for key in keys if key in adviser.bundle.provenance}


def _need(value: T | None, what: str, where: str) -> T:
    if not value:
        raise ConfigError(f"give {what}", where=where, remedy="see deepsched steer --help")
    return value


def _say(line: str) -> None:
    console_err().print(f"deepsched steer: {line}", markup=False, soft_wrap=True)
