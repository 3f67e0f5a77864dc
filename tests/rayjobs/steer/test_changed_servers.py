"""An administrator removes a server while a controller steers, and the controller dies: the first weights come back."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.control import ServiceTimes, Weights
from actuators.contract.topology import Group, Topology
from actuators.errors import ConfigError
from actuators.nginx.config import NginxOptions
from actuators.nginx.instance import Nginx
from actuators.processes.process import ManagedProcess
from actuators.testbed.options import LiveOptions
from rayjobs.cli.main import main
from rayjobs.steer.first import FirstStore, FirstWeights
from rayjobs.steer.folder import SteerFolder
from rayjobs.steer.site import Site
from tests.support.steer_site import INTERVAL_S, failed_requests, running_site
from tests.support.steering_cases import trained_bundle
from tests.support.waiting import PATIENCE_S, wait_until


@dataclass
class Reloaded:
    """An NGINX whose weights are changed by reload, and the folder of its controller."""

    folder: Path
    site: Site

    @property
    def upstreams(self) -> Path:
        return self.folder / "testbed" / "nginx" / "upstreams.conf"

    def controller(self) -> ManagedProcess:
        assert isinstance(self.site.actuator, Nginx)
        command = [
            sys.executable, "-m", "rayjobs.steer", "run", "--bundle", str(self.folder / "bundle"), "--mode", "active",
            "--nginx-conf", str(self.upstreams.with_name("nginx.conf")), "--status-url", self.site.actuator.status_url,
            "--folder", str(self.folder / "steer"), "--interval-s", str(INTERVAL_S),
            "--set", "guards.novel_above=1e9", "--set", "guards.reference_windows=2", "--set", "guards.art_margin=1e9",
            "--set", "reload.min_reload_interval_s=0.2",
        ]  # fmt: skip
        return ManagedProcess(command, name="steer", log_path=self.folder / "steer.log")

    def remove(self, server: str) -> None:
        """As an administrator does it: the line goes, NGINX is reloaded."""
        text = self.upstreams.read_text()
        self.upstreams.write_text(re.sub(rf"\n\s*server {re.escape(server)}\b[^;]*;", "", text))
        assert isinstance(self.site.actuator, Nginx)
        os.kill(self.site.actuator.master_pid, signal.SIGHUP)


@pytest.fixture
def reloaded(short_dir: Path) -> Iterator[Reloaded]:
    trained_bundle().save(short_dir / "bundle")
    live = LiveOptions(nginx=NginxOptions(actuation="reload", method="round_robin"))
    with running_site(short_dir, live) as site:
        yield Reloaded(short_dir, site)


@pytest.mark.slow
@pytest.mark.nginx
def test_a_server_goes_while_a_controller_steers_and_a_revert_needs_no_controller(
    reloaded: Reloaded, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, before = SteerFolder(reloaded.folder / "steer"), reloaded.upstreams.read_text()
    gone = reloaded.site.topology.servers[2]
    with reloaded.controller() as controller:
        # A change that is on disk and not yet in force would be taken back when the administrator meets it.
        wait_until(lambda: bool(folder.status().get("changes")), lambda: controller.log_tail(20))
        assert reloaded.upstreams.read_text() != before
        reloaded.remove(gone)
        wait_until(
            lambda: "going on with those that are there" in controller.log_tail(20), lambda: controller.log_tail(20)
        )
        known = len(folder.status()["changes"])
        assert known > 0
        wait_until(
            lambda: (
                all(gone not in servers for servers in folder.status()["groups"].values())
                and folder.status()["changes"][-1]["most"].rpartition("/")[2] != gone
                and bool(np.ptp(np.array(folder.status()["weights"]), axis=1).any())
            ),
            lambda: controller.log_tail(20),
        )
        controller.send_signal(signal.SIGKILL)
        controller.wait(PATIENCE_S)
    left = reloaded.upstreams.read_text()
    assert gone not in left
    assert main(["steer", "revert", "--folder", str(folder.path)]) == 0
    told = capsys.readouterr().err
    assert "no controller is running: the first weights are restored" in told
    assert f"home_read_backend/{gone}" in told
    # Byte for byte what was there first, but for the lines that the administrator removed.
    assert reloaded.upstreams.read_text() == re.sub(rf"\n\s*server {re.escape(gone)}\b[^;]*;", "", before)
    assert main(["steer", "revert", "--folder", str(folder.path)]) == 0
    assert "in force already" in capsys.readouterr().err
    # What was set is not taken for the first weights when a controller starts again.
    kept = folder.first.read()
    assert kept is not None
    assert {weight for servers in kept.weights.values() for weight in servers.values()} == {1}
    assert failed_requests(reloaded.site) == 0


def topology(*servers: str) -> Topology:
    return Topology((Group("app", "app", "GET", "/", 2.0, servers),))


OLD, NEW = topology("a:1", "b:1", "c:1"), topology("c:1", "a:1", "d:1")


def test_first_weights_follow_names_and_leave_out_of_rotation_who_is_out() -> None:
    first = FirstWeights.of(Weights(OLD, np.array([[3, 2, 1]])), None)
    now = first.onto(Weights(NEW, np.array([[90, 80, 7]]), np.array([[True, False, False]])))
    assert now == Weights(NEW, np.array([[1, 3, 7]]), np.array([[True, False, False]]))
    assert first.missing(NEW) == ("app/b:1",)


def test_first_service_times_follow_names_too() -> None:
    first = FirstWeights.of(ServiceTimes(OLD, np.array([[0.1, 0.2, 0.3]]), np.array([1.0, 2.0, 3.0])), "expected_delay")
    now = first.onto(Weights.equal(NEW))
    assert isinstance(now, ServiceTimes)
    assert now.tau_s == pytest.approx(np.array([[0.3, 0.1, 0.2]]))
    assert now.workers == pytest.approx(np.array([3.0, 1.0, 1.0]))
    out = np.array([[True, False, False]])
    assert first.onto(Weights(NEW, np.ones((1, 3)), out)).down.tolist() == out.tolist()
    times = ServiceTimes(NEW, np.full((1, 3), 0.1), np.ones(3), down=out)
    assert FirstWeights.of(Weights.equal(OLD), "least_conn").onto(times).down.tolist() == out.tolist()


def test_first_weights_are_the_administrators_until_a_controller_sets_something(tmp_path: Path) -> None:
    store = FirstStore(tmp_path / "original.json")
    store.keep(Weights(OLD, np.array([[1, 1, 1]])), None)
    assert store.keep(Weights(OLD, np.array([[3, 2, 1]])), None).weights["app"] == {"a:1": 3, "b:1": 2, "c:1": 1}
    store.seal()
    # Of a later change only servers are taken that were not known; those that went may come back.
    kept = store.keep(Weights(NEW, np.array([[90, 80, 7]])), None)
    assert kept.weights["app"] == {"a:1": 3, "b:1": 2, "c:1": 1, "d:1": 7}
    store.seal(False)
    assert store.keep(Weights(NEW, np.array([[5, 5, 5]])), None).weights["app"] == {"c:1": 5, "a:1": 5, "d:1": 5}


def test_first_weights_of_version_0_1_are_read_and_stay(tmp_path: Path) -> None:
    data = {"groups": {"app": ["a:1", "b:1"]}, "method": "least_conn", "values": [[3, 2]], "down": [[False, True]]}
    (tmp_path / "original.json").write_text(json.dumps(data))
    store = FirstStore(tmp_path / "original.json")
    assert store.keep(Weights(topology("a:1", "b:1"), np.array([[9, 8]])), None).weights == {
        "app": {"a:1": 3, "b:1": 2}
    }
    times = {"groups": {"app": ["a:1"]}, "method": "expected_delay", "tau_s": [[0.5]], "workers": [2.0]}
    (tmp_path / "times.json").write_text(json.dumps(times))
    read = FirstStore(tmp_path / "times.json").read()
    assert read is not None
    assert (read.service_times_s, read.workers) == ({"app": {"a:1": 0.5}}, {"a:1": 2.0})


def test_commands_that_another_user_wrote_are_not_run(tmp_path: Path, root_only: None) -> None:
    folder = SteerFolder(tmp_path)
    folder.record_access({"control_url": "http://127.0.0.1:1/control"})
    assert folder.access() == {"control_url": "http://127.0.0.1:1/control"}
    os.chown(tmp_path / "access.json", 65534, 65534)
    with pytest.raises(ConfigError, match="written by another user") as error:
        folder.access()
    assert "sudo -u '#65534'" in str(error.value)
