"""Puts the first weights back when a controller is gone without having said so; a process of its own."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

from actuators.errors import DeepSchedError
from rayjobs.steer.folder import SteerFolder
from rayjobs.steer.site import Site

POLL_S = 0.2


def watch(
    folder: SteerFolder,
    site: Site,
    after_s: float,
    say: Callable[[str], None],
    duration_s: float | None = None,
    stopped: threading.Event | None = None,
) -> None:
    """Watches the heartbeat until `stopped` or for `duration_s`.

    A controller that ended by itself is left alone: its last weights stay. One that is silent for `after_s`
    (killed, hung) has the weights from before it put back, once; a failure to do so is tried again.
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
        if status.get("ended") or silent_s < after_s:
            reverted = False
        elif not reverted:
            reverted = _revert(folder, site, silent_s, say)


def _revert(folder: SteerFolder, site: Site, silent_s: float, say: Callable[[str], None]) -> bool:
    kept = folder.kept_original(site.topology)
    if kept is None:
        say("the weights from before the controller are unknown, or of other servers")
        return True
    original, site.first_method = kept
    line: dict[str, Any] = {"kind": "watchdog", "time": time.time(), "silent_s": silent_s}
    try:
        changed = site.apply(original).changed
    except DeepSchedError as error:
        say(f"not reverted: {error}")
        return False
    line |= {"changed": changed, "weights": original.as_weights().values.tolist()}
    try:
        with open(folder.audit, "ab", buffering=0) as file:
            file.write(json.dumps(line).encode() + b"\n")
    except OSError as error:
        say(f"not recorded: {error.strerror}")
    say(f"the controller was silent for {silent_s:.0f} s: its first weights are back")
    return True
