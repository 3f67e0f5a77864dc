"""The drill of an own system: onboard, shadow, canary, active, revert on a real NGINX, by reload and in memory.

Nothing is edited by hand, no request fails, and the first weights are back byte for byte.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.topology import Group, Topology
from actuators.files import write_private
from actuators.nginx.control_endpoint import MemoryControl
from actuators.nginx.instance import Nginx
from actuators.processes.process import ManagedProcess
from actuators.statistics.recording import read_snapshots
from actuators.testbed.live import LiveTestbed
from actuators.testbed.options import LiveOptions
from rayjobs.bench.parts.own_systems import OwnSystem, running
from rayjobs.cli.main import main
from tests.support.waiting import wait_until

pytestmark = pytest.mark.nginx

SHORT = (
    "train_steps=0", "calibrate.workers=2", "calibrate.bootstraps=2", "calibrate.replicas=1", "calibrate.rounds=3",
    "promise.measure_s=60", "promise.pairs=10", "promise.warm_up_s=10",
)  # fmt: skip
DECISIONS = 6


def topology(**groups: str) -> Topology:
    """Group name (`__` for a dash, a leading `n` before a digit) → names of its servers."""
    found = []
    for key, servers in groups.items():
        name = key.removeprefix("n").replace("__", ".") if key[1:2].isdigit() else key.replace("__", "-")
        places = tuple(f"{server}:80" for server in servers.split())
        found.append(Group(name, name, "GET", f"/emulated/{name}", 2.0, places))
    return Topology(tuple(found))


SYSTEMS = {
    "1x2": topology(app="a b"),
    "1x3": topology(n9__shop="a b c"),
    "2x5": topology(web="a b c d e", api__v2="f g h i j"),
    "4x3 shared": topology(one="a b c", two="b c d", three="e f g", four="g a h"),
    "3x3 names": topology(n2nd="a b c", search__api="a b c", Orders="a b c"),
    "1x12": topology(big="a b c d e f g h i j k l"),
}


def own(name: str, *, in_memory: bool = False) -> OwnSystem:
    """A light load, every second server half as fast."""
    of = SYSTEMS[name]
    groups, servers = of.shape
    speeds = np.where(np.arange(servers) % 2, 0.5, 1.0) * np.ones((groups, 1))
    return OwnSystem(
        0, of, "round_robin", in_memory, speeds, np.full(groups, 0.012), np.full(groups, 90.0 / groups), 2, 1.0, 600.0
    )  # fmt: skip


class Drill:
    """One system under load, with the command line in front of it."""

    def __init__(self, testbed: LiveTestbed, nginx: Nginx, folder: Path, *, in_memory: bool) -> None:
        self.testbed, self.nginx, self.folder, self.in_memory = testbed, nginx, folder, in_memory
        self.upstreams = folder / "testbed" / "nginx" / "upstreams.conf"
        self.steer = folder / "steer"

    def way(self) -> list[str]:
        if not self.in_memory:
            return ["--nginx-conf", str(self.upstreams.with_name("nginx.conf"))]
        token = self.folder / "token"
        write_private(token, self.nginx.token)
        return ["--control-url", self.nginx.control_url, "--token-file", str(token)]

    def onboard(self, watch_s: float) -> None:
        settings = [word for text in SHORT for word in ("--set", text)]
        words = ["--status-url", self.nginx.status_url, *self.way(), "--folder", str(self.steer)]
        assert main(["onboard", *words, "--watch-s", str(watch_s), *settings]) == 0
        assert (self.steer / "onboarding.html").exists()

    def in_force(self) -> str:
        """All that decides about weights, as text."""
        return MemoryControl.read(self.nginx.control_url) if self.in_memory else self.upstreams.read_text()

    def controller(self) -> ManagedProcess:
        command = [sys.executable, "-m", "rayjobs.steer", "run", "--mode", "shadow", "--folder", str(self.steer)]
        return ManagedProcess(command, name="steer", log_path=self.folder / "steer.log")

    def order(self, *words: str) -> None:
        assert main(["steer", *words, "--folder", str(self.steer)]) == 0
        self.wait_decisions()

    def wait_decisions(self) -> None:
        before = self._decisions()
        wait_until(lambda: self._decisions() >= before + DECISIONS)

    def _decisions(self) -> int:
        audit = self.steer / "audit.jsonl"
        return len(audit.read_bytes().splitlines()) if audit.exists() else 0


def drill(name: str, folder: Path, *, in_memory: bool, watch_s: float = 30.0) -> None:
    system = own(name, in_memory=in_memory)
    with running(system, LiveOptions(), folder / "testbed", 1) as (testbed, nginx):
        testbed.reset(system, 1)
        began_s = time.monotonic()
        here = Drill(testbed, nginx, folder, in_memory=in_memory)
        here.onboard(watch_s)
        first = here.in_force()
        with here.controller():
            here.wait_decisions()
            assert here.in_force() == first, "shadow changes nothing"
            here.order("mode", "canary")
            here.order("mode", "active")
            wait_until(lambda: here.in_force() != first, "active changed nothing")
            here.order("revert")
            assert here.in_force() == first
        seconds = time.monotonic() - began_s
        # The first window that is read since the reset: it holds the whole time.
        window = testbed.drain()
    assert window.client is not None
    # Connections that a reload closed before the first byte are repeated by the load engine, and counted as `retried`.
    failed = {kind: int(counts.sum()) for kind, counts in window.client.errors.items() if counts.sum()}
    assert failed == {}
    assert int(window.client.answered.sum()) > 0.9 * seconds * system.rates_rps.sum()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["by reload", "in memory"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_onboard_shadow_canary_active_revert(name: str, way: str, tmp_path: Path) -> None:
    drill(name, tmp_path, in_memory=way == "in memory")


@pytest.mark.slow
def test_an_nginx_of_strange_names_is_onboarded_while_it_reloads(tmp_path: Path) -> None:
    """A few seconds of watching; NGINX is reloaded meanwhile, which costs one window."""
    system = own("1x3")
    with running(system, LiveOptions(), tmp_path / "testbed", 1) as (testbed, nginx):
        testbed.reset(system, 1)
        here = Drill(testbed, nginx, tmp_path, in_memory=False)
        recording = here.steer / "onboard" / "snapshots.jsonl"

        def reload() -> None:
            wait_until(lambda: recording.exists() and recording.read_bytes().count(b"\n") > 3)
            os.kill(nginx.master_pid, signal.SIGHUP)

        reloading = threading.Thread(target=reload, daemon=True)
        reloading.start()
        here.onboard(14.0)
        reloading.join()
        page = (here.steer / "onboarding.html").read_text()
        testbed.drain()
    assert "9.shop" in page
    assert "round_robin" in page
    loads_ms = [snapshot.load_ms for snapshot in read_snapshots(recording).snapshots]
    assert max(loads_ms) - min(loads_ms) > 1000, "the reload fell into the watch"
