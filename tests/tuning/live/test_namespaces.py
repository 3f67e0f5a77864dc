"""Testbeds over five hosts each, which have addresses of their own: one trains, is judged, and survives cut links and
the loss of a host; two are swept by a submitted job; and a bundle is served by replicas on several hosts.

The hosts have a token. Each has its own disk, with its own session of Ray and its own checkout.
"""

from __future__ import annotations

import json
import os
import re
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

import numpy as np
import pandas as pd
import pytest

from actuators.files import write_private
from actuators.processes.process import ManagedProcess
from tests.support.hosts import Hosts
from tests.support.orphans import wait_gone
from tests.support.paths import ROOT
from tests.support.serve_requests import bodies
from tests.support.steering_cases import trained_bundle
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.nginx, pytest.mark.usefixtures("root_only")]
ROLES = {"proxy": "proxy", "client": "client", "server1": "server", "server2": "server", "server3": "server"}
SECOND = {"proxy2": "proxy", "client2": "client", "server4": "server", "server5": "server", "server6": "server"}
NAMES = ("head", *ROLES, "spare", *SECOND)
PORT, DASHBOARD_PORT, SERVE_PORT = 6399, 8265, 8500
SETTINGS = (
    "search.testbed=live", "search.trials=2", "search.concurrent=2", "search.trial_cpus=0.5", "search.scheduler=none",
    "search.search=random", "search.base.training.steps=16", "search.base.training.interval_s=0.5",
    "search.base.training.episode_steps=4", "search.base.training.algorithm.batch_steps=8",
    "search.base.training.algorithm.minibatch_steps=8", "search.checkpoint_every=1", "search.validation_s=3",
    "search.space={encoder.clusters: [2, 3]}", "observe.duration_s=12", "observe.explore_s=8", "observe.skip_s=1",
    "observe.window_s=0.5", "confirm.best=1", "confirm.testbeds=1", "confirm.judge.rounds=2",
    "confirm.judge.warm_up_s=1", "confirm.judge.measure_s=3",
)  # fmt: skip
ASK = """
import json, sys, requests
from concurrent.futures import ThreadPoolExecutor
url, token, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
body = sys.stdin.buffer.read()
def ask(_):
    return requests.post(url + "/v1/weights", data=body, headers=headers, timeout=60).status_code
# At once, since Serve prefers replicas of the host that was asked as long as they are free.
with ThreadPoolExecutor(64) as clients:
    print(json.dumps(list(clients.map(ask, range(count)))))
print(json.dumps(requests.get(url + "/metrics", headers=headers, timeout=60).text))
"""
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
            [
                "--head",
                f"--port={PORT}",
                f"--dashboard-host={address}",
                f"--dashboard-port={DASHBOARD_PORT}",
                f"--temp-dir={self.disk}/ray",
                "--num-cpus=2",
            ]
            if name == "head"
            else [f"--address={self.hosts.address['head']}:{PORT}", "--num-cpus=1"]
        )
        role = {(ROLES | SECOND).get(name, "server"): 1} if name != "head" else {}
        command = [
            *self.hosts.inside(name), sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *joins,
            f"--node-ip-address={address}", f"--resources={json.dumps(role)}", "--object-store-memory=100000000",
            "--disable-usage-stats",
        ]  # fmt: skip
        self.nodes[name] = ManagedProcess(
            command, name=f"Ray on {name}", log_path=self.folder / f"{name}.log", env=self.environment,
            stop_signal=signal.SIGKILL,
        )  # fmt: skip

    def run(self, name: str, *command: str, text: str = "", code: int = 0) -> str:
        """What a command on a host says. Raises AssertionError when it ends with another code."""
        done = subprocess.run(
            [*self.hosts.inside(name), *command], env=self.environment, input=text, capture_output=True, text=True,
            check=False, timeout=600,
        )  # fmt: skip
        assert done.returncode == code, (done.stdout + done.stderr)[-3000:]
        return done.stdout

    def runs(self, name: str) -> bool:
        return name in self.nodes and self.nodes[name].poll() is None

    def await_started(self, name: str) -> None:
        log = self.folder / f"{name}.log"
        self.nodes[name].wait_ready(lambda: b"Ray runtime started" in log.read_bytes(), 180)

    def close(self) -> None:
        for node in self.nodes.values():
            node.close()


@pytest.fixture(scope="module")
def cluster(hosts: Hosts, folder: Path) -> Iterator[Cluster]:
    """The head and the hosts of a testbed."""
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


@pytest.fixture
def two_testbeds(cluster: Cluster) -> Cluster:
    """The hosts of two testbeds."""
    missing = [name for name in (*ROLES, *SECOND) if not cluster.runs(name)]
    for name in missing:
        cluster.start(name)
    for name in missing:
        cluster.await_started(name)
    return cluster


def test_a_submitted_job_sweeps_two_live_trials_on_testbeds_of_their_own(two_testbeds: Cluster, hosts: Hosts) -> None:
    # Tune wants a place that all hosts see for what trials leave; the sweep's own folder is on the disk of the head.
    shared, before = two_testbeds.folder / "shared", hosts.packets()
    ray = str(Path(sys.executable).with_name("ray"))
    url = f"http://{hosts.address['head']}:{DASHBOARD_PORT}"
    submit = [ray, "job", "submit", "--address", url, "--", sys.executable, "-m", "rayjobs.sweep"]
    words = [f"--set={one}" for one in SETTINGS]
    own_disk = f"--out={two_testbeds.disk}/sweeps"
    assert "would lose their checkpoints" in two_testbeds.run("client2", *submit, own_disk, *words, code=1)
    two_testbeds.run("client2", *submit, own_disk, f"--storage=file://{shared}", *words)
    (run,) = (hosts.disk_of("head") / "sweeps").iterdir()
    table = pd.read_parquet(run / "sweep.parquet")
    assert len(table) == 2
    assert (table["error"] == "").all()
    assert np.isfinite(table["score"]).all()
    assert (run / "best" / "bundle.json").exists()
    (judged,) = json.loads((run / "confirmed.json").read_text())
    assert judged["bundle"].startswith(f"{two_testbeds.disk}/sweeps/{run.name}/")
    assert (shared / run.name / "best" / "bundle.json").exists()
    after = hosts.packets()
    both = [name for name in (*ROLES, *SECOND) if name != "server3"]
    # Two trials at a time, each with its own proxy, client and servers.
    assert [name for name in both if after[name] - before[name] < 500] == []


def test_a_bundle_is_served_by_replicas_on_several_hosts(two_testbeds: Cluster, hosts: Hosts) -> None:
    disk, token = two_testbeds.disk, secrets.token_hex(16)
    for name in NAMES:
        trained_bundle().save(hosts.disk_of(name) / "bundle")
    write_private(hosts.disk_of("head") / "serve.token", token)
    command = [
        *hosts.inside("head"), sys.executable, "-m", "rayjobs.serve", f"{disk}/bundle",
        f"--address={hosts.address['head']}:{PORT}", f"--host={hosts.address['head']}", f"--port={SERVE_PORT}",
        "--replicas=4", "--cpus=0.5", f"--folder={disk}/state", f"--token-file={disk}/serve.token",
    ]  # fmt: skip
    url = f"http://{hosts.address['head']}:{SERVE_PORT}"
    ask = [sys.executable, "-c", ASK, url, token]
    body = bodies()[0].decode()
    log = two_testbeds.folder / "serve.log"
    with ManagedProcess(command, name="serve", log_path=log, env=two_testbeds.environment) as served:
        served.wait_ready(lambda: b"deepsched serve: http://" in log.read_bytes(), 240)
        statuses, _ = two_testbeds.run("client", *ask, "400", text=body).splitlines()
        assert json.loads(statuses) == [200] * 400

        def nodes() -> set[str]:
            page = json.loads(two_testbeds.run("client", *ask, "100", text=body).splitlines()[1])
            return set(re.findall(r'deepsched_answers_total{[^}]*node="([^"]+)"', page))

        wait_until(lambda: len(nodes()) > 1, "one host answers all")
        assert nodes() <= set(hosts.address.values())
