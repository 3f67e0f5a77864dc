"""`deepsched steer watchdog`: restores the first weights when a controller has failed; runs as a separate process."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from actuators.errors import DeepSchedError
from rayjobs.cli.console import log_line
from rayjobs.cli.main import Verb
from rayjobs.steer.folder import SteerFolder
from rayjobs.steer.options import WatchdogOptions
from rayjobs.steer.orders import missing_in_words

if TYPE_CHECKING:
    from actuators.external.actuator import Actuator

POLL_S = 0.2


def run(options: WatchdogOptions) -> int:
    """0 when the time is over or the watchdog is interrupted."""
    from actuators.external.actuator import open_actuator
    from rayjobs.steer.site import actuator_options, load_adviser, open_external_site

    folder = SteerFolder(options.folder)
    folder.require()
    topology = load_adviser(options.bundle).topology

    def log(line: str) -> None:
        log_line("steer watchdog", line)

    with contextlib.suppress(KeyboardInterrupt):
        with open_external_site(options, topology):
            # Proves that the options reach the NGINX of this bundle.
            every = actuator_options(options)
        watch(folder, lambda: open_actuator(every), options.watchdog_after_s, log, options.duration_s)
    return 0


def watch(
    folder: SteerFolder,
    opened: Callable[[], Actuator],
    after_s: float,
    log: Callable[[str], None],
    duration_s: float | None = None,
    stopped: threading.Event | None = None,
) -> None:
    """Watches the heartbeat until `stopped` is set or `duration_s` is over; `opened` reaches NGINX as it is then.

    When a controller has ended regularly, its last weights stay, also after a reboot. When it is silent for `after_s`
    (killed, hung) and has set something, the weights from before it are restored once; a failed attempt is repeated.
    """
    stopped = stopped or threading.Event()
    began_s = time.monotonic()
    reverted = False
    while not stopped.wait(POLL_S):
        now_s = time.monotonic()
        if duration_s is not None and now_s - began_s > duration_s:
            return
        status = folder.status()
        silent_s = now_s - max(float(status.get("now_s", began_s)), began_s - after_s)
        if silent_s < after_s or folder.has_ended():
            reverted = False
        elif not reverted:
            reverted = _revert(folder, opened, silent_s, log)


def _revert(folder: SteerFolder, opened: Callable[[], Actuator], silent_s: float, log: Callable[[str], None]) -> bool:
    """Whether nothing is left to restore."""
    from rayjobs.steer.first import restore
    from tuning.steering.audit import append_line

    try:
        first = folder.first.read()
        if first is None:
            log("the weights from before the controller are unknown")
            return True
        if not first.sealed:
            log(f"the controller was silent for {silent_s:.0f} s; nothing that it set is in force, so all stays")
            return True
        restored = restore(first, opened())
    except DeepSchedError as error:
        log(f"not reverted: {error}; by hand: deepsched steer revert --folder {folder.path}")
        return False
    line = {
        "kind": "watchdog", "time": time.time(), "silent_s": silent_s, "changed": restored.changed,
        "missing": list(restored.missing),
    }  # fmt: skip
    # What somebody sets from now on is not the controller's, so that it is not restored again.
    for record in (lambda: folder.first.seal(False), lambda: append_line(folder.audit, line)):
        try:
            record()
        except (DeepSchedError, OSError) as error:
            log(f"not recorded: {error}")
    missing = missing_in_words(restored.missing)
    log(f"the controller was silent for {silent_s:.0f} s; the weights from before it are restored{missing}")
    return True


WATCHDOG = Verb(
    name="steer watchdog",
    example="deepsched steer watchdog --bundle runs/demo/bundle --nginx-conf /etc/nginx/nginx.conf"
    " --status-url http://127.0.0.1:8081/status/format/json",
    options=WatchdogOptions,
    run=run,
    common=(
        "bundle", "nginx_conf", "status_url", "control_url", "token_file", "folder", "watchdog_after_s", "duration_s",
    ),
)  # fmt: skip
