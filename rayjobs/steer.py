"""`deepsched steer`: puts a bundle in front of an NGINX, safely; also its operator's orders, replay and watchdog."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import Field

from actuators.collect import CollectOptions
from actuators.errors import ConfigError, closest
from actuators.parts import LiveOptions
from actuators.weights import ActuatorOptions
from rayjobs.cli import Verb, run_verb
from rayjobs.console import remarks, results
from rayjobs.interrupts import Terminated
from rayjobs.steer_folder import SteerFolder
from tuning.steering_options import AuditOptions, SteeringOptions

if TYPE_CHECKING:
    from rayjobs.steer_loop import Controller
    from tuning.adviser import Adviser

MODES = ("shadow", "blend", "active")
T = TypeVar("T")

Action = Literal["run", "pause", "resume", "revert", "mode", "swap", "status", "replay", "recalibrate", "watchdog"]


class SteerOptions(SteeringOptions):
    """Which bundle acts on which NGINX, and how far it may go."""

    action: Action = "run"
    """run; pause, resume, revert, mode MODE, swap BUNDLE: orders to a running controller; status; replay LOG;
    recalibrate NEW-BUNDLE; watchdog: revert when the controller has gone."""
    target: str = ""
    """What the action needs: a mode, a bundle folder or a log."""
    bundle: Path | None = None
    """Folder of the trained policy."""
    nginx_conf: Path | None = None
    """Main configuration of an NGINX whose weights are changed by reload."""
    control_url: str = ""
    """Control endpoint of an NGINX that has our snippet, as http://127.0.0.1:8090/control: weights change in memory."""
    token_file: Path | None = None
    """Holds the token that the control endpoint asks for."""
    status_url: str = ""
    """vts JSON of that NGINX, as http://HOST:PORT/status/format/json."""
    serve_url: str = ""
    """A `deepsched serve` to ask first; the own copy of the bundle answers when it does not."""
    serve_app: str = ""
    """Name of a Serve application on this cluster (that of `deepsched serve` is deepsched), asked by its deployment
    handle instead of HTTP; needs --actor or a job on that cluster."""
    actor: bool = False
    """Run as a Ray actor on a node that offers `proxy`, which the actor claims; started again when it dies."""
    serve_token_file: Path | None = None
    """Holds the bearer token of that server, when it listens beyond loopback."""
    interval_s: float = Field(1.0, gt=0.02)
    """Time between two decisions."""
    duration_s: float | None = Field(None, gt=0)
    """End after this time; never when not given."""
    folder: Path = Path("runs/steer")
    """Audit, orders and state of the controller; one folder for one NGINX."""
    workers: float = Field(1.0, ge=0.25, le=1e4)
    """Requests that a server serves at once, for a bundle that sets service times; when in doubt too few."""
    watchdog_after_s: float = Field(30.0, gt=0)
    """watchdog: silence of the controller after which the weights found at the start are put back."""
    scenario: str = "demo"
    """Scenario of the embedded testbed, when no NGINX is given."""
    seed: int = Field(1, ge=0)
    """Seed of the embedded testbed."""
    audit: AuditOptions = AuditOptions()
    """The record of decisions."""
    reading: CollectOptions = CollectOptions()
    """How the statistics are read."""
    reload: ActuatorOptions = Field(default_factory=ActuatorOptions)
    """More about how weights are changed; the flags above win."""
    live: LiveOptions = LiveOptions()
    """Parts of the embedded testbed."""


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
        from rayjobs.steer_opening import load_adviser

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
        from rayjobs.steer_actor import steer_on_proxy

        steer_on_proxy(options, _say)
        return 0
    else:
        steer(options, folder)
        return 0
    if options.action in (*orders, "mode", "swap"):
        alive = "a running controller obeys within one interval" if folder.is_locked() else "no controller runs now"
        remarks().print(f"deepsched steer: ordered; {alive}", markup=False)
    return 0


def steer(options: SteerOptions, folder: SteerFolder, stopped: threading.Event | None = None) -> None:
    """Steers until `duration_s` is over, `stopped` is set or a signal comes; the weights in force then stay."""
    from rayjobs.steer_loop import Controller, starting_steering
    from rayjobs.steer_opening import ask_serve, load_adviser, open_site
    from tuning.audit import AuditLog, header
    from tuning.steering import Steering

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


def _order(folder: SteerFolder, **changes: str) -> None:
    try:
        folder.order(**changes)
    except OSError as error:
        remedy = "make room for it; until then the controller goes on as it is"
        raise ConfigError(
            f"the order was not written: {error.strerror}", where=str(folder.path), remedy=remedy
        ) from error


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


def _status(folder: SteerFolder) -> None:
    folder.require()
    status = folder.status()
    alive = "runs" if folder.is_locked() else "does not run"
    results().print(f"controller: {alive}", markup=False)
    orders = folder.orders()
    results().print(f"orders: {orders.override or 'none'}, mode {orders.mode or 'as started'}", markup=False)
    if status:
        results().print(f"last decision {time.monotonic() - status['now_s']:.1f} s ago: {status.get('reason', '')}")
        for guard, count in sorted(status.get("guards", {}).items()):
            results().print(f"  {guard}: {count}", markup=False)


def _replay(options: SteerOptions) -> int:
    """1 when a decision is another than the recorded one."""
    from tuning.audit import replay

    path = Path(_need(options.target, "a log", "steer replay"))
    adviser = None
    if options.bundle:
        from rayjobs.steer_replay import recorded_topology
        from tuning.adviser import Adviser
        from tuning.bundle import load_bundle

        adviser = Adviser(load_bundle(options.bundle, recorded_topology(path)))
    from rayjobs.steer_replay import report

    return report(replay(path, adviser, adviser.frames if adviser else 1), results())


def _recalibrate(options: SteerOptions) -> None:
    from rayjobs.steer_replay import recalibrated

    out = Path(_need(options.target, "a folder for the new bundle", "steer recalibrate"))
    bundle = _need(options.bundle, "a bundle", "--bundle")
    used = recalibrated(bundle, options.folder / "audit.jsonl", out, options.seed)
    _say(f"the encoder of {bundle} was fitted again to {used} windows: {out}; put it to work with: steer swap {out}")


def _watchdog(options: SteerOptions, folder: SteerFolder) -> None:
    from rayjobs.steer_opening import load_adviser, open_site
    from rayjobs.steer_watchdog import watch

    bundle = _need(options.bundle, "the controller's bundle", "--bundle")
    folder.require()
    with contextlib.suppress(KeyboardInterrupt), open_site(options, load_adviser(bundle)) as site:
        watch(folder, site, options.watchdog_after_s, _say, options.duration_s)


def _need(value: T | None, what: str, where: str) -> T:
    if not value:
        raise ConfigError(f"give {what}", where=where, remedy="see deepsched steer --help")
    return value


def _say(line: str) -> None:
    remarks().print(f"deepsched steer: {line}", markup=False, soft_wrap=True)


VERB = Verb(
    name="steer",
    summary="steer a live NGINX with a bundle: shadow, blend or active, guarded and recorded",
    example="deepsched steer --bundle runs/demo/bundle --nginx-conf /etc/nginx/nginx.conf"
    " --status-url http://127.0.0.1:8081/status/format/json",
    options=SteerOptions,
    run=run,
    positional=("action", "target"),
)

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
