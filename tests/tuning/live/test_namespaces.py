"""A testbed over six hosts with addresses of their own: it trains, is judged, and survives the loss of a host.

The hosts have a token. Each has its own disk, with its own session of Ray and its own checkout.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actuators.files import write_private
from actuators.processes.process import ManagedProcess
from tests.support.hosts import Hosts
from tests.support.orphans import wait_gone
from tests.support.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.nginx, pytest.mark.usefixtures("root_only")]
NAMES = ("head", "proxy", "client", "server1", "server2", "server3", "spare")
ROLES = {"proxy": "proxy", "client": "client", "server1": "server", "server2": "server", "server3": "server"}
PORT = 6399
PACKAGES = ("actuators", "envs", "tuning", "rayjobs", "tests")
CUT_S = 6.0
"""Less than Ray needs to give a node up."""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ds-", ignore_cleanup_errors=True) as path:
        yield Path(path)
    assert wait_gone(f"{path}/", 15.0) == {}


@pytest.fixture(scope="module")
def hosts(folder: Path) -> Iterator[Hosts]:
    """Each with a checkout and the cluster's token on its own disk."""
    disk, token = folder / "d", secrets.token_hex(32)
    disk.mkdir()
    with Hosts(NAMES, disk) as made:
        for name in NAMES:
            own = made.disk_of(name)
            own.mkdir()
            for package in PACKAGES:
                # With compiled code, which belongs to files of this age.
                shutil.copytree(ROOT / package, own / package, copy_function=shutil.copy2)
            write_private(own / "token", token)
        yield made


class Cluster:
    """A Ray node on each host, which a driver joins with the token."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts, self.folder, self.disk = hosts, folder, folder / "d"
        self.environment = {
            **os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{self.disk}/token",
            "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "RAY_raylet_start_wait_time_s": "120",
            "PYTHONPATH": str(self.disk),
        }  # fmt: skip
        self.nodes: dict[str, ManagedProcess] = {}

    def start(self, name: str) -> None:
        address = self.hosts.address[name]
        joins = (
            ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={self.disk}/ray", "--num-cpus=2"]
            if name == "head"
            else [f"--address={self.hosts.address['head']}:{PORT}", "--num-cpus=1"]
        )
        role = {ROLES.get(name, "server"): 1} if name != "head" else {}
        command = [
            *self.hosts.inside(name), sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *joins,
            f"--node-ip-address={address}", f"--resources={json.dumps(role)}", "--object-store-memory=100000000",
            "--disable-usage-stats",
        ]  # fmt: skip
        self.nodes[name] = ManagedProcess(
            command, name=f"Ray on {name}", log_path=self.folder / f"{name}.log", env=self.environment,
            stop_signal=signal.SIGKILL,
        )  # fmt: skip

    def await_started(self, name: str) -> None:
        log = self.folder / f"{name}.log"
        self.nodes[name].wait_ready(lambda: b"Ray runtime started" in log.read_bytes(), 180)

    def close(self) -> None:
        for node in self.nodes.values():
            node.close()


@pytest.fixture(scope="module")
def cluster(hosts: Hosts, folder: Path) -> Iterator[Cluster]:
    made = Cluster(hosts, folder)
    try:
        made.start("head")
        made.await_started("head")
        for name in ROLES:
            made.start(name)
        for name in ROLES:
            made.await_started(name)
        yield made
    finally:
        made.close()


def told(driver: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    assert driver.stdout is not None
    for line in driver.stdout:
        if line.startswith("JSON "):
            content: dict[str, Any] = json.loads(line.removeprefix("JSON "))
            return content
    raise AssertionError(log.read_text()[-3000:])


def go_on(driver: subprocess.Popen[str]) -> None:
    assert driver.stdin is not None
    driver.stdin.write("go on\n")
    driver.stdin.flush()


def test_a_testbed_over_hosts_trains_is_judged_and_survives_a_lost_one(
    cluster: Cluster, hosts: Hosts, folder: Path
) -> None:
    before = hosts.packets()
    command = [*hosts.inside("head"), sys.executable, "-m", "tests.support.hosts_driver"]
    log = folder / "driver.log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [*command, f"{hosts.address['head']}:{PORT}", str(cluster.disk)], env=cluster.environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        ) as driver,
    ):  # fmt: skip
        try:
            first = told(driver, log)
            after = hosts.packets()
            assert first["trained"] >= 8
            # A block that the machine spoiled by a stall is run again.
            assert first["blocks"] >= 2
            assert first["requests"] > 50
            own = {name: hosts.address[name] for name in ROLES}
            assert {server.partition(":")[0] for server in first["servers"]} == {
                own[f"server{number}"] for number in (1, 2, 3)
            }
            parts: dict[str, set[str]] = {}
            for part, address in first["places"].items():
                parts.setdefault(part.split()[0], set()).add(address)
            assert parts["LoadGenerator"] == {own["client"]}
            assert parts["NginxActuator"] == parts["StatisticsCollector"] == {own["proxy"]}
            # Every request goes from the client to the proxy and on to a server, and comes back.
            for name in ROLES:
                assert after[name] - before[name] > first["requests"] / 10, name
            assert after["proxy"] - before["proxy"] > first["requests"]
            assert {name: list(hosts.disk_of(name).glob("ray/session_*")) != [] for name in ROLES} == dict.fromkeys(
                ROLES, True
            )
            # A link that is cut for a while, and not a process that ends: nothing is lost but intervals.
            for name in ("server2", "proxy"):
                go_on(driver)
                time.sleep(1.0)
                hosts.cut(name)
                time.sleep(CUT_S)
                hosts.mend(name)
                during = told(driver, log)
                assert during["trained"] >= during["wanted"], name
                assert during["places"] == first["places"], name
            cluster.nodes["server3"].close()
            cluster.start("spare")
            cluster.await_started("spare")
            go_on(driver)
            second = told(driver, log)
            assert second["trained"] >= 8
            assert second["builds"] >= 2
            assert hosts.address["spare"] in second["places"].values()
            assert hosts.address["server3"] not in second["places"].values()
            assert driver.wait(60) == 0
        finally:
            driver.kill()
