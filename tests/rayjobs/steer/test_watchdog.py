"""The watchdog in front of an NGINX that is none: it restores what a controller has set, once, and nothing else."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from actuators.contract.control import Control, MemoryMethod
from actuators.contract.testbed import Restored
from actuators.external.actuator import Actuator
from rayjobs.steer.folder import SteerFolder
from rayjobs.steer.watchdog import POLL_S, watch
from tests.support.steering_cases import EQUAL, UNEVEN
from tests.support.waiting import PATIENCE_S
from tests.support.windows import TOPOLOGY
from tuning.steering.audit import read_lines

AFTER_S = 0.01


@dataclass
class Proxy:
    """An NGINX without one: its control, and what was restored."""

    in_force: Control = UNEVEN
    topology = TOPOLOGY
    restored: list[Control] = field(default_factory=list)

    def control(self) -> Control:
        return self.in_force

    def restore(self, first: Control, method: MemoryMethod | None = None) -> Restored:
        self.restored.append(first)
        self.in_force = first
        return Restored(True, 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> SteerFolder:
    """Of a controller that has found equal weights, and set others."""
    used = SteerFolder(tmp_path)
    used.first.keep(EQUAL, None)
    used.first.seal()
    return used


def watched(folder: SteerFolder, proxy: Proxy, until: str, duration_s: float = PATIENCE_S) -> list[str]:
    """What the watchdog says of a controller that is silent, until a line with these words."""
    said, over = list[str](), threading.Event()

    def log(line: str) -> None:
        said.append(line)
        if until in line:
            over.set()

    watch(folder, lambda: cast(Actuator, proxy), AFTER_S, log, duration_s, over)
    return said


def test_what_a_controller_set_is_taken_back_once_also_by_the_next_watchdog(folder: SteerFolder) -> None:
    proxy = Proxy()
    (told,) = watched(folder, proxy, "are restored")
    assert "the weights from before it are restored" in told
    assert (proxy.restored, proxy.in_force) == ([EQUAL], EQUAL)
    assert [line["kind"] for line in read_lines(folder.audit)] == ["watchdog"]
    proxy.in_force = UNEVEN  # by an operator
    (told,) = watched(folder, proxy, "all stays")
    assert "nothing that it set is in force" in told
    assert (proxy.restored, proxy.in_force) == ([EQUAL], UNEVEN)


def test_an_operators_weights_stay_when_the_controller_has_set_nothing(tmp_path: Path) -> None:
    folder, proxy = SteerFolder(tmp_path), Proxy()
    folder.first.keep(EQUAL, None)
    watched(folder, proxy, "all stays")
    assert (proxy.restored, proxy.in_force) == ([], UNEVEN)


@pytest.mark.parametrize("ended", [True, False])
def test_the_end_of_a_controller_is_known_after_a_reboot(folder: SteerFolder, ended: bool) -> None:
    """Its last weights stay after a regular one; when the machine failed, the first ones come back."""
    status = {"now_s": 1e6, "boot": "an earlier one", "ended": ended}
    (folder.path / "status.json").write_text(json.dumps(status))
    proxy = Proxy()
    said = watched(folder, proxy, "are restored", 3 * POLL_S if ended else PATIENCE_S)
    assert (bool(said), proxy.restored) == ((False, []) if ended else (True, [EQUAL]))


def test_a_restore_that_cannot_be_recorded_is_told_and_not_repeated(folder: SteerFolder) -> None:
    folder.audit.mkdir()
    proxy = Proxy()
    said = watched(folder, proxy, "are restored")
    assert [line.split(":")[0] for line in said[:1]] == ["not recorded"]
    kept = folder.first.read()
    assert kept is not None
    assert not kept.sealed
    watched(folder, proxy, "all stays")
    assert proxy.restored == [EQUAL]
