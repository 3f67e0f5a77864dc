"""The controller in front of live traffic: harm is undone, faults are survived, and no client ever notices."""

from __future__ import annotations

import json
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import requests

from actuators.contract.control import Weights
from actuators.contract.window import Fault
from actuators.files import write_private
from actuators.nginx.instance import Nginx
from actuators.processes.process import ManagedProcess
from actuators.statistics.reader import Collector
from rayjobs.cli.main import main
from rayjobs.steer.controller import CHANGED
from rayjobs.steer.folder import SteerFolder
from rayjobs.steer.order_store import Moment
from rayjobs.steer.replay import recalibrated
from rayjobs.steer.site import Site
from tests.support.bad_bundle import bad_bundle
from tests.support.http_server import CLOSE, Received, ScriptedServer
from tests.support.steer_site import (
    INTERVAL_S,
    Drill,
    controller_process,
    decisions,
    failed_requests,
    options,
    running_site,
    steer_process,
)
from tests.support.steering_cases import trained_bundle
from tests.support.waiting import PATIENCE_S, wait_until
from tuning.policy.bundle import load_bundle
from tuning.steering.audit import read_lines, replay

pytestmark = pytest.mark.nginx


@pytest.fixture(scope="module")
def running() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="ds-") as folder, running_site(Path(folder)) as site:
        yield site


@pytest.fixture
def site(running: Site) -> Site:
    """The one testbed of these tests, with equal weights and no failed request so far."""
    running.apply(Weights.equal(running.topology))
    wait_until(lambda: bool(running.load and running.load.poll()), "no load")
    return running


def test_a_bad_bundle_is_reverted_within_ten_windows_without_an_error(site: Site, short_dir: Path) -> None:
    # Windows of a busy machine differ in load more than those of a second elsewhere, which is not what this is about.
    drill = Drill(site, bad_bundle(), short_dir / "steer", options(load_rise_ratio=9.0))
    drill.until(lambda step: step.applied and step.decision.source == "policy", 40)
    took = drill.until(lambda step: bool({"art", "errors"} & set(step.decision.guards)), 20)
    assert took <= 10
    assert site.control() == Weights.equal(site.topology)
    assert drill.step().decision.source == "baseline"
    assert drill.failed_requests() == 0
    again = list(replay(drill.folder.audit, drill.adviser))
    assert [one.line["reason"] for one in again if not one.same] == []


def test_shadow_changes_nothing_and_unknown_traffic_is_recalibrated(site: Site, short_dir: Path) -> None:
    """The bundle was fitted to simulated traffic: live traffic is novel, until the encoder has seen it."""
    bundle = trained_bundle()
    # What follows a return to familiar traffic is tested in tests/tuning/steering; here it may be short.
    shadow = options("shadow", novel_above=1.0, novel_windows=2, familiar_windows=3, dwell_s=1.0)
    drill = Drill(site, bundle, short_dir / "steer", shadow)
    drill.until(lambda step: "recalibrate" in step.line["alarms"], 3)
    for _ in range(40):
        drill.step()
    used = recalibrated(short_dir / "steer" / "bundle", drill.folder.audit, short_dir / "new", 1)
    assert used >= 40
    drill.folder.order(bundle=str(short_dir / "new"))
    drill.until(lambda step: step.decision.source == "policy", 8)
    assert site.control() == Weights.equal(site.topology)
    assert not any(line["applied"] for line in drill.lines)
    # The clusters kept their places, so that the policy's input keeps its meaning.
    old, new = bundle.problem.encoder, load_bundle(short_dir / "new").problem.encoder
    assert old.names == new.names
    assert old.clusters == new.clusters


@pytest.mark.slow
@pytest.mark.drill
def test_killed_without_warning_its_weights_stay_and_the_watchdog_puts_the_first_ones_back(
    site: Site, short_dir: Path
) -> None:
    trained_bundle().save(short_dir / "bundle")
    equal = Weights.equal(site.topology)
    with controller_process(short_dir, site) as controller:
        wait_until(lambda: site.control() != equal, lambda: controller.log_tail(20))
        controller.send_signal(signal.SIGKILL)
        controller.wait(PATIENCE_S)
    left = site.control()
    assert left != equal
    with _watchdog(short_dir, site) as watchdog:
        wait_until(lambda: site.control() == equal, lambda: watchdog.log_tail(20))
        wait_until(lambda: any(line["kind"] == "watchdog" for line in read_lines(short_dir / "audit.jsonl")), "line")
    # Started again, it knows the first weights, and goes on.
    with controller_process(short_dir, site) as controller:
        wait_until(lambda: site.control() != equal, lambda: controller.log_tail(20))
        assert main(["steer", "revert", "--folder", str(short_dir)]) == 0
        wait_until(lambda: site.control() == equal, lambda: controller.log_tail(20))
        controller.send_signal(signal.SIGTERM)
        assert controller.wait(PATIENCE_S) == 0, controller.log_tail(20)
    assert json.loads((short_dir / "status.json").read_text())["ended"]
    assert main(["steer", "status", "--folder", str(short_dir)]) == 0
    assert failed_requests(site) == 0


def test_an_order_from_before_the_start_overrides_the_options_and_says_when_it_was_given(
    site: Site, short_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nginx = site.actuator
    assert isinstance(nginx, Nginx)
    trained_bundle().save(short_dir / "bundle")
    write_private(short_dir / "token", nginx.token)
    folder = SteerFolder(short_dir / "run")
    folder.make()
    orders = {"mode": "shadow", "bundle": str(short_dir / "other"), "override": "paused"}
    day = time.strftime("%F", time.localtime(folder.orders.give(orders, Moment.now()).value.given["mode"]))
    words = [
        "steer", "run", "--bundle", str(short_dir / "bundle"), "--control-url", nginx.control_url,
        "--token-file", str(short_dir / "token"), "--status-url", nginx.status_url, "--folder", str(folder.path),
        "--mode", "active", "--duration-s", "0.2", "--interval-s", "0.1",
    ]  # fmt: skip
    assert main(words) == 0
    told = capsys.readouterr().err
    assert "shadow mode on" in told
    assert "active mode on" not in told
    for line in (
        f"mode shadow: the order of {day} ", "overrides active; change it: deepsched steer mode active",
        f"bundle {short_dir / 'other'}: the order of {day} ", f"still paused by the order of {day} ",
    ):  # fmt: skip
        assert line in told


@pytest.mark.slow
def test_a_bundle_with_other_deadlines_begins_the_log_anew(site: Site, short_dir: Path) -> None:
    """A reader of the log then knows by which deadlines the guards decided."""
    bundle = trained_bundle()
    bundle.save(short_dir / "bundle")
    deadlines_s = 2 * bundle.problem.deadlines_s
    replace(bundle, problem=replace(bundle.problem, deadlines_s=deadlines_s)).save(short_dir / "other")
    with controller_process(short_dir, site) as controller:
        wait_until(lambda: site.control() != Weights.equal(site.topology), lambda: controller.log_tail(20))
        assert main(["steer", "swap", str(short_dir / "other"), "--folder", str(short_dir)]) == 0
        starts = [line for line in read_lines(short_dir / "audit.jsonl") if line["kind"] == "start"]
        assert [line["deadlines_s"] for line in starts] == [bundle.problem.deadlines_s.tolist(), deadlines_s.tolist()]
        assert starts[-1]["bundle"]["folder"] == str(short_dir / "other")
        known = len(decisions(short_dir))
        wait_until(
            lambda: any(line["source"] == "policy" for line in decisions(short_dir)[known:]),
            lambda: controller.log_tail(20),
        )
    assert [one.line["reason"] for one in replay(short_dir / "audit.jsonl") if not one.same] == []


def test_faults_of_the_world_are_survived(site: Site, short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Status cut and garbage, full disk, jumping clock, bundle swapped: weights are legal, no request fails."""
    nginx = site.actuator
    assert isinstance(nginx, Nginx)
    broken: list[bytes] = []

    def status(_: Received) -> bytes:
        if broken:
            return broken[0]
        body = requests.get(nginx.status_url, timeout=PATIENCE_S).content
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    with (
        ScriptedServer(status) as front,
        Collector(f"http://{front.address}/status", site.topology) as collector,
        monkeypatch.context() as behind_front,
    ):
        behind_front.setattr(site, "collector", collector)
        drill = Drill(site, trained_bundle(), short_dir / "steer", options(stale_after_s=1.0, dwell_s=1.0))
        drill.until(lambda step: step.applied and step.decision.source == "policy", 40)
        for answer in (CLOSE, b'HTTP/1.1 200 X\r\nContent-Length: 15\r\n\r\n{"nowMsec": "x"'):
            broken.append(answer)
            assert drill.step().decision.source == "hold"
            drill.until(lambda step: step.decision.source == "baseline", 10)
            assert site.control() == Weights.equal(site.topology)
            broken.clear()
            drill.until(lambda step: step.applied and step.decision.source == "policy", 20)
        monkeypatch.setattr("time.time", lambda: 4e9)
        assert drill.step().decision.source == "policy"
        monkeypatch.undo()
        drill.folder.audit.rename(short_dir / "elsewhere.jsonl")
        drill.folder.audit.mkdir()
        assert drill.step().decision.source == "policy"
        drill.folder.audit.rmdir()
        trained_bundle(seed=7).save(short_dir / "other")
        drill.folder.order(bundle=str(short_dir / "other"))
        assert "bundle swapped" in drill.step().line["alarms"]
        drill.folder.order(bundle=str(short_dir / "nowhere"))
        step = drill.step()
        assert any("not swapped" in alarm for alarm in step.line["alarms"])
        assert step.decision.source == "policy"
        assert drill.failed_requests() == 0


def test_someone_elses_change_is_noticed(site: Site, short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drill = Drill(site, trained_bundle(), short_dir / "steer", options("shadow"))
    drill.step()
    others = Weights(site.topology, np.full(site.topology.shape, 7) + np.eye(3, dtype=np.int64))
    site.apply(others)
    seen = site.collector.window()
    reloaded = replace(seen, faults=(Fault("reload", "somebody reloaded"),))
    monkeypatch.setattr(site.collector, "window", lambda: reloaded)
    step = drill.step()
    assert CHANGED in step.line["alarms"]
    assert not step.applied
    assert site.control() == drill.controller.steering.original == others
    kept = drill.folder.first.read()
    assert kept is not None
    assert (kept.onto(site.control()), kept.method, kept.sealed) == (others, site.method(), False)


def test_another_controller_in_the_same_folder_is_refused(short_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained_bundle().save(short_dir / "bundle")
    folder = SteerFolder(short_dir / "run")
    folder.make()
    with folder.locked():
        assert main(["steer", "run", "--bundle", str(short_dir / "bundle"), "--folder", str(folder.path)]) == 2
    assert "another controller is running" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mode", "actve"], "did you mean 'active'"),
        (["pause"], "no controller has run here"),
        (["run"], "option 'bundle' is missing"),
        (["swap", "nowhere"], "not a bundle"),
        (["run", "--bundle", "nowhere"], "not a bundle"),
        (["run", "--bundle", "{bundle}", "--status-url", "http://127.0.0.1:9/"], "without a way to set weights"),
        (["run", "--bundle", "{bundle}", "--nginx-conf", "/none"], "no statistics"),
        (["run", "--bundle", "{bundle}", "--nginx-conf", "/none", "--scenario", "S3"], "has no effect with nginx_conf"),
        (["watchdog", "--bundle", "{bundle}"], "no controller has run here"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained_bundle().save(tmp_path / "bundle")
    given = [word.format(bundle=tmp_path / "bundle") for word in words]
    assert main(["steer", *given, "--folder", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_log_that_cannot_be_read_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["steer", "replay", str(tmp_path / "none.jsonl")]) == 2
    assert "cannot read" in capsys.readouterr().err


def _watchdog(folder: Path, site: Site) -> ManagedProcess:
    return steer_process(folder, site, "watchdog", "--watchdog-after-s", str(4 * INTERVAL_S))


@pytest.mark.slow
def test_steering_an_nginx_by_reload(short_dir: Path) -> None:
    """Somebody else's configuration: edited in place, byte for byte the same after a revert."""
    from actuators.external.actuator import ActuatorOptions
    from actuators.nginx.config import NginxOptions
    from actuators.testbed.options import LiveOptions
    from rayjobs.steer.site import external_site

    live = LiveOptions(nginx=NginxOptions(actuation="reload"))
    with running_site(short_dir, live) as embedded:
        nginx = embedded.actuator
        config = short_dir / "testbed" / "nginx" / "nginx.conf"
        before = (config.parent / "upstreams.conf").read_bytes()
        status_url = nginx.status_url  # type: ignore[attr-defined]
        actuator = ActuatorOptions.model_validate({"reload": {"config": config, "status_url": status_url}})
        with external_site(embedded.topology, actuator, status_url, LiveOptions().collect) as site:
            site.load = embedded.load
            wait_until(lambda: bool(site.load and site.load.poll()), "no load")
            drill = Drill(site, trained_bundle(), short_dir / "steer", options(min_between_changes_s=1.0))
            drill.until(lambda step: step.applied and step.decision.source == "policy", 40)
            assert (config.parent / "upstreams.conf").read_bytes() != before
            drill.folder.order(override="reverted")
            drill.until(lambda step: step.applied, 5)
            assert (config.parent / "upstreams.conf").read_bytes() == before
            assert drill.failed_requests() == 0
