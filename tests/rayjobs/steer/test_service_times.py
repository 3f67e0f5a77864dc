"""Steering the service times of expected_delay in a live NGINX: shadow, active, revert, a kill."""

from __future__ import annotations

import contextlib
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.control import ServiceTimes, Weights
from actuators.contract.topology import Topology, social_network
from actuators.nginx.config import NginxOptions
from actuators.nginx.control_endpoint import MemoryControl
from actuators.nginx.instance import Nginx
from actuators.testbed.options import LiveOptions
from rayjobs.cli.main import main
from rayjobs.steer.site import Site
from tests.support.http_server import ScriptedServer
from tests.support.nginx_site import answer
from tests.support.steer_site import (
    INTERVAL_S,
    Drill,
    controller_process,
    failed_requests,
    options,
    running_site,
    steer_process,
)
from tests.support.steering_cases import times_bundle
from tests.support.waiting import PATIENCE_S, wait_until
from tuning.steering.audit import read_lines, replay
from tuning.steering.limits import differ

pytestmark = pytest.mark.nginx


@pytest.fixture(scope="module")
def running() -> Iterator[Site]:
    live = LiveOptions(nginx=NginxOptions(method="least_conn", actuation="memory"))
    with tempfile.TemporaryDirectory(prefix="ds-") as folder, running_site(Path(folder), live) as site:
        yield site


@pytest.fixture
def site(running: Site) -> Site:
    """The one testbed of these tests, on least_conn with equal weights again."""
    running.first_method = "least_conn"
    running.apply(Weights.equal(running.topology))
    wait_until(lambda: bool(running.load and running.load.poll()), "no load")
    return running


def test_shadow_then_active_then_revert(site: Site, short_dir: Path) -> None:
    equal = Weights.equal(site.topology)
    drill = Drill(site, times_bundle(trained=False), short_dir / "steer", options("shadow"))
    drill.until(lambda step: isinstance(step.decision.control, ServiceTimes), 20)
    assert site.method() == "least_conn"
    assert site.control() == equal
    drill.folder.order(mode="active")
    drill.until(lambda step: step.applied and step.decision.source == "policy", 40)
    assert site.method() == "expected_delay"
    drill.until(lambda step: step.applied, 20)
    in_force = site.control()
    assert isinstance(in_force, ServiceTimes)
    # The slow server is known to be slow: 0.4 against 1.0.
    drill.until(lambda step: bool((_slowness(site) > 1.3).all()), 40)
    drill.folder.order(override="reverted")
    drill.until(lambda step: step.applied, 5)
    assert site.method() == "least_conn"
    assert site.control() == equal
    assert drill.failed_requests() == 0
    again = list(replay(drill.folder.audit, drill.adviser))
    assert [one.line["reason"] for one in again if not one.same] == []


def test_what_was_in_force_before_are_times_they_come_back(site: Site, short_dir: Path) -> None:
    """An NGINX that balances by service times already: a revert goes back to those."""
    theirs = ServiceTimes(site.topology, np.full(site.topology.shape, 0.02), np.full(3, 2.0))
    site.apply(theirs)
    drill = Drill(site, times_bundle(trained=False), short_dir / "steer", options())
    drill.until(lambda step: step.applied and step.decision.source == "policy", 40)
    drill.folder.order(override="reverted")
    drill.until(lambda step: step.applied, 5)
    assert not differ(site.control(), theirs)
    assert site.method() == "expected_delay"
    assert drill.failed_requests() == 0


@pytest.mark.slow
def test_killed_its_times_stay_and_the_watchdog_puts_method_and_weights_back(site: Site, short_dir: Path) -> None:
    times_bundle(trained=False).save(short_dir / "bundle")
    with controller_process(short_dir, site) as controller:
        wait_until(lambda: told(site) == "expected_delay", lambda: controller.log_tail(20))
        controller.send_signal(signal.SIGKILL)
        controller.wait(PATIENCE_S)
    assert isinstance(site.control(), ServiceTimes)
    with steer_process(short_dir, site, "watchdog", "--watchdog-after-s", str(4 * INTERVAL_S)) as watchdog:
        wait_until(lambda: told(site) == "least_conn", lambda: watchdog.log_tail(20))
        wait_until(lambda: any(line["kind"] == "watchdog" for line in read_lines(short_dir / "audit.jsonl")), "line")
    assert site.control() == Weights.equal(site.topology)
    assert failed_requests(site) == 0


def test_a_bundle_of_service_times_needs_an_nginx_in_memory(
    short_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times_bundle(trained=False).save(short_dir / "bundle")
    live = LiveOptions(nginx=NginxOptions(actuation="reload"))
    with running_site(short_dir, live) as site:
        config = short_dir / "testbed" / "nginx" / "nginx.conf"
        status_url = site.actuator.status_url  # type: ignore[attr-defined]
        words = ["--nginx-conf", str(config), "--status-url", status_url, "--folder", str(short_dir / "run")]
        assert main(["steer", "run", "--bundle", str(short_dir / "bundle"), *words]) == 2
    assert "balances in memory" in capsys.readouterr().err


def test_a_group_in_memory_of_which_the_bundle_knows_no_times_is_named(
    short_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times_bundle(trained=False).save(short_dir / "bundle")
    with ScriptedServer(lambda _: answer(200)) as server:
        known = social_network((server.address,))
        more = replace(known.groups[0], name="admin_backend", request_type="admin", path="/admin")
        whole = Topology((*known.groups, more))
        with Nginx(NginxOptions(method="least_conn", actuation="memory"), whole, work_dir=short_dir) as nginx:
            nginx.start()
            token = short_dir / "token"
            token.touch(0o600)
            token.write_text(nginx.token)
            words = ["--control-url", nginx.control_url, "--token-file", str(token), "--status-url", nginx.status_url]
            words += ["--bundle", str(short_dir / "bundle"), "--folder", str(short_dir / "run")]
            assert main(["steer", "run", *words]) == 2
    said = capsys.readouterr().err
    assert "no service times of admin_backend" in said
    assert f"--groups {','.join(sorted(group.name for group in known.groups))}" in said


def told(site: Site) -> str:
    """The method that NGINX says is in force: the site itself knows only of its own changes."""
    nginx = site.actuator
    assert isinstance(nginx, Nginx)
    with contextlib.closing(MemoryControl(nginx.control_url, nginx.token, site.topology)) as endpoint:
        return endpoint.get()[0]


def _slowness(site: Site) -> np.ndarray:
    """How much slower the last server is believed to be than the first, per group."""
    control = site.control()
    assert isinstance(control, ServiceTimes)
    return np.asarray(control.tau_s[:, 2] / control.tau_s[:, 0])
