"""Half an hour of live traffic with a daily wave before a system that is not the demo's, from onboarding to active
steering, with the commands that an operator gives.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from actuators.contract.window import Window
from actuators.errors import DataError
from actuators.files import write_private
from actuators.processes.process import ManagedProcess
from actuators.testbed.options import LiveOptions
from rayjobs.bench.parts.own_systems import OwnSystem, running
from rayjobs.bench.parts.steadiness import CHANGE_S, SECONDS, WATCHED_S, Waving, switches
from rayjobs.onboard.__main__ import run as run_onboard
from rayjobs.onboard.options import OnboardOptions
from rayjobs.steer.folder import SteerFolder
from tuning.steering import audit

_STEP_S = 5.0
"""How often it is seen whether the controller lives."""


@dataclass(frozen=True)
class HalfHour:
    """What was seen: the switches between policy and baseline, decisions, and answers that clients got."""

    switched: tuple[tuple[int, str], ...]
    decisions: int
    acted: float
    answered: int
    failed: int


def half_hour(system: OwnSystem, folder: Path, seed: int, *, slower: bool, watch_s: float, seconds: int) -> HalfHour:
    """Onboards the system and steers it in active mode for `seconds`.

    Args:
        folder: receives what onboarding and steering write.
        slower: whether the first server takes twice as long from a third of the time on.
    """
    part = seconds / SECONDS
    with running(system, LiveOptions(), folder / "testbed", seed) as (testbed, nginx):
        token, steer = folder / "token", folder / "steer"
        write_private(token, nginx.token)
        testbed.set_method(system.method)
        testbed.reset(Waving(system, wave_s=WATCHED_S), seed)
        way = (
            OnboardOptions(status_url=nginx.status_url, control_url=nginx.control_url, token_file=token, folder=steer,
                           watch_s=watch_s, seed=seed, train_steps=0)
            if system.in_memory
            else OnboardOptions(status_url=nginx.status_url, nginx_conf=nginx.config_path, folder=steer,
                                watch_s=watch_s, seed=seed, train_steps=0)
        )  # fmt: skip
        if run_onboard(way) != 0:
            raise DataError("the onboarding failed", where=str(steer), remedy="see its lines above")
        testbed.reset(Waving(system, CHANGE_S * part if slower else None, SECONDS * part), seed + 100)
        command = [sys.executable, "-m", "rayjobs.steer", "run", "--mode", "active", "--folder", str(steer)]
        with ManagedProcess(command, name="steer", log_path=folder / "steer.log") as controller:
            ends_s, seen = time.monotonic() + seconds, list[Window]()
            while time.monotonic() < ends_s:
                # The testbed counts what its load engine saw; the controller reads NGINX by itself.
                seen.append(testbed.advance(_STEP_S))
                if controller.poll() is not None:
                    where = str(folder / "steer.log")
                    raise DataError("the controller ended", where=where, remedy="see its last lines")
        seen.append(testbed.drain())
    clients = [window.client for window in seen if window.client is not None]
    failed = sum(int(counts.sum()) for client in clients for counts in client.errors.values())
    lines = [line for line in audit.read_lines(SteerFolder(steer).audit) if line["kind"] == "decision"]
    acted = sum(line["source"] == "policy" for line in lines) / max(len(lines), 1)
    found = switches([(line["source"], line["reason"]) for line in lines])
    return HalfHour(tuple(found), len(lines), acted, sum(int(each.answered.sum()) for each in clients), failed)
