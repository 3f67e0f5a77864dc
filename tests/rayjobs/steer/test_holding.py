"""Late binding under a controller, against a real NGINX: counted, held, ended by others, reverted, killed."""

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
from actuators.contract.late_binding import LateBinding, LateBindingNumbers, LateBindingPlan
from actuators.contract.topology import Topology
from actuators.external.actuator import MemoryActuator
from actuators.nginx.config import NginxOptions
from actuators.nginx.control_endpoint import MemoryControl
from actuators.nginx.instance import Nginx
from actuators.statistics.reader import StatusReader
from actuators.statistics.vts import HoldStatus
from actuators.testbed.options import LiveOptions
from rayjobs.cli.main import main
from rayjobs.holding.site import CHANGED, SiteHolding
from rayjobs.steer.site import Site
from tests.support.steer_site import INTERVAL_S, Drill, options, running_site, steer_process
from tests.support.steering_cases import times_bundle, trained_bundle
from tests.support.waiting import PATIENCE_S, wait_until
from tuning.steering.audit import read_lines, replay
from tuning.steering.holding import HoldGuards, HoldWatch
from tuning.steering.limits import differ

pytestmark = pytest.mark.nginx

GUARDS = HoldGuards(proving_windows=3, ordinary_held=0.2)


@pytest.fixture(scope="module")
def running() -> Iterator[Site]:
    live = LiveOptions(nginx=NginxOptions(method="least_conn", actuation="memory", late_binding=True))
    with tempfile.TemporaryDirectory(prefix="ds-") as folder, running_site(Path(folder), live) as site:
        yield site


@pytest.fixture
def site(running: Site) -> Site:
    """The one testbed of these tests, on least_conn with equal weights again, and nothing is counted."""
    running.first_method = "least_conn"
    running.watch(None)
    running.apply(Weights.equal(running.topology))
    wait_until(lambda: bool(running.load and running.load.poll()), "no load")
    return running


def holding(slots_per_worker: float = 2.0, guards: HoldGuards = GUARDS) -> SiteHolding:
    """Two workers each."""
    plan = LateBindingPlan(numbers=LateBindingNumbers(slots_per_worker=slots_per_worker, valid_s=3.0))
    return SiteHolding(plan, 2.0, HoldWatch(guards, proved=False))


def drill(site: Site, folder: Path, mode: str = "active", tight: bool = False) -> Drill:
    guards = GUARDS if not tight else HoldGuards(proving_windows=20, ordinary_held=0.0)
    made = times_bundle(trained=False)
    slots = 1.0 if tight else 2.0
    return Drill(site, made, folder / "steer", options(mode), holding=lambda: holding(slots, guards))


def status(site: Site) -> HoldStatus:
    nginx = site.actuator
    assert isinstance(nginx, Nginx)
    with StatusReader(nginx.status_url) as reader:
        balancer = reader.snapshot().balancer
    assert balancer is not None
    assert balancer.holding is not None
    return balancer.holding


def told(site: Site) -> str:
    """The method that NGINX says is in force."""
    nginx = site.actuator
    assert isinstance(nginx, Nginx)
    with contextlib.closing(MemoryControl(nginx.control_url, nginx.token, site.topology)) as endpoint:
        return endpoint.get()[0]


def test_shadow_counts_canary_counts_active_holds_and_a_revert_brings_the_method_back(
    site: Site, short_dir: Path
) -> None:
    run = drill(site, short_dir, "shadow")
    run.until(lambda step: step.line["holding"]["since_start"]["asked"] > 50, 20)
    assert (status(site).state, told(site)) == ("watching", "least_conn")
    assert run.lines[-1]["holding"]["reason"].startswith("shadow")
    assert run.lines[-1]["window"]["holding"]["state"] == "watching"
    run.folder.order(mode="canary", canary_percent=30.0)
    run.until(lambda step: step.decision.canary is not None and step.applied, 40)
    run.step()
    run.step()
    assert (status(site).state, told(site)) == ("watching", "expected_delay")
    run.folder.order(mode="active")
    run.until(lambda step: step.line["holding"]["holds"], 40)
    assert (status(site).state, told(site)) == ("holding", "late_binding")
    # It is renewed although nothing changes: NGINX would end it after three seconds.
    run.folder.order(override="paused")
    for _ in range(int(4.0 / INTERVAL_S)):
        run.step()
        assert status(site).state == "holding"
    run.folder.order(override="")
    run.until(lambda step: step.line["window"]["holding"]["state"] == "holding" and step.line["art"] is not None, 5)
    assert run.failed_requests() == 0
    run.folder.order(override="reverted")
    run.until(lambda step: step.applied, 5)
    run.step()
    assert (status(site).state, told(site)) == ("off", "least_conn")
    assert not differ(site.control(), Weights.equal(site.topology))
    again = list(replay(run.folder.audit, run.adviser))
    assert [one.line["reason"] for one in again if not one.same] == []
    assert run.failed_requests() == 0


def test_with_too_few_slots_nothing_is_held_and_an_alarm_says_so(site: Site, short_dir: Path) -> None:
    """Not one request of 20 windows may be without a slot, and every server has as many as workers."""
    run = drill(site, short_dir, tight=True)
    run.until(lambda step: any("late binding would hold" in alarm for alarm in step.line["alarms"]), 60)
    assert status(site).state == "watching"
    assert told(site) in ("least_conn", "expected_delay")


def test_what_somebody_else_ends_stays_ended_until_the_next_order(site: Site, short_dir: Path) -> None:
    run = drill(site, short_dir)
    run.until(lambda step: step.line["holding"]["holds"], 60)
    nginx = site.actuator
    assert isinstance(nginx, Nginx)
    with contextlib.closing(MemoryControl(nginx.control_url, nginx.token, site.topology)) as endpoint:
        endpoint.put("least_conn", Weights.equal(site.topology))
    wait_until(lambda: CHANGED in run.controller.step().line["alarms"], "the other control was not noticed")
    run.until(lambda step: not step.line["holding"]["holds"], 10)
    run.folder.order(override="")
    run.until(lambda step: step.line["holding"]["holds"] and status(site).state == "holding", 10)


def test_a_server_that_an_operator_drains_stays_out_while_requests_are_held(site: Site, short_dir: Path) -> None:
    """`weights set SERVER=down`, on an NGINX that anybody can change in memory."""
    nginx = site.actuator
    assert isinstance(nginx, Nginx)
    with contextlib.closing(MemoryControl(nginx.control_url, nginx.token, site.topology)) as endpoint:
        theirs = MemoryActuator(endpoint)
        run = drill(replace(site, actuator=theirs), short_dir)
        run.until(lambda step: step.line["holding"]["holds"], 60)
        server = site.topology.servers[0]
        theirs.rotate([f"{server}=down"])
        step = run.step()
        assert run.controller.steering.in_force.down[:, 0].all()
        assert not step.decision.control.down[:, 1:].any()
        run.until(lambda step: step.line["holding"]["holds"], 60)
        assert theirs.control().down[:, 0].all()
        assert status(site).state == "holding"
        # What was decided before somebody took another server out does not put it back.
        other = site.topology.servers[1]
        theirs.rotate([f"{other}=down"])
        run.site.apply(run.controller.steering.in_force)
        assert theirs.control().down[:, :2].all()
        theirs.rotate([f"{server}=up", f"{other}=up"])
        run.step()
        assert not theirs.control().down.any()
        # As after a restart of NGINX, which forgets: what the controller knows to be out goes out again.
        known = run.site.control()
        run.site.apply(replace(known, down=site.topology.mask & (np.arange(3) == 2)))
        assert theirs.control().down[:, 2].all()
        assert run.failed_requests() == 0


def says_that_it_holds(folder: Path, capsys: pytest.CaptureFixture[str]) -> bool:
    """`steer status`, which the controller writes after NGINX has confirmed."""
    assert main(["steer", "status", "--folder", str(folder)]) == 0
    return "late binding: holds, shortest, slots 4/4/4" in capsys.readouterr().out


def last_kind(folder: Path) -> str:
    return [str(line["kind"]) for line in read_lines(folder / "audit.jsonl")][-1]


@pytest.mark.slow
def test_killed_it_ends_by_itself_and_a_revert_or_the_watchdog_brings_the_method_back(
    site: Site, short_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times_bundle(trained=False).save(short_dir / "bundle")
    nginx = site.actuator
    assert isinstance(nginx, Nginx)
    held = (
        "run", "--interval-s", str(INTERVAL_S), "--mode", "active", "--late-binding", "--workers", "2",
        "--set", "guards.novel_above=1e9", "--set", "guards.reference_windows=3",
        "--set", "holding.guards.proving_windows=3", "--set", "holding.guards.ordinary_held=0.5",
        "--set", "holding.numbers.valid_s=2", "--set", "guards.min_between_changes_s=0.1",
    )  # fmt: skip
    for ended in ("revert", "watchdog"):
        folder = short_dir / ended
        folder.mkdir(mode=0o700)
        times_bundle(trained=False).save(folder / "bundle")
        with steer_process(folder, site, *held) as controller:
            wait_until(lambda: told(site) == "late_binding", lambda: controller.log_tail(20))
            wait_until(lambda folder=folder: says_that_it_holds(folder, capsys), "it does not say that it holds")
            controller.send_signal(signal.SIGKILL)
            controller.wait(PATIENCE_S)
        wait_until(lambda: status(site).state == "stale", "nobody renews it")
        if ended == "revert":
            assert main(["steer", "revert", "--folder", str(folder)]) == 0
            assert told(site) == "least_conn"
        else:
            with steer_process(folder, site, "watchdog", "--watchdog-after-s", "1") as watchdog:
                wait_until(lambda: told(site) == "least_conn", lambda: watchdog.log_tail(20))
                wait_until(lambda folder=folder: last_kind(folder) == "watchdog", lambda: watchdog.log_tail(20))
        assert status(site).state == "off"
        assert not differ(site.control(), Weights.equal(site.topology))


def test_requests_that_were_held_before_are_held_again_after_a_revert(site: Site, short_dir: Path) -> None:
    """Somebody has set late binding by hand; a controller without it only steers its service times."""
    topology = site.topology
    binding = LateBinding(topology, np.full(3, 0.5), np.full(3, 7), LateBindingNumbers(valid_s=1e6))
    theirs = ServiceTimes(topology, np.full(topology.shape, 0.02), np.full(3, 2.0), binding)
    site.apply(theirs)
    run = Drill(site, times_bundle(trained=False), short_dir / "steer", options())
    run.until(lambda step: step.applied and step.decision.source == "policy", 40)
    assert status(site).state == "holding"
    assert differ(site.control(), theirs)
    in_force = site.control()
    assert isinstance(in_force, ServiceTimes)
    assert in_force.holding == binding
    run.folder.order(override="reverted")
    run.until(lambda step: step.applied, 5)
    assert not differ(site.control(), theirs)
    site.actuator.restore(Weights.equal(topology), "least_conn")
    site.control()


def test_what_late_binding_needs_is_said_before_anything_starts(
    site: Site, short_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nginx = site.actuator
    assert isinstance(nginx, Nginx)
    times_bundle(trained=False).save(short_dir / "times")
    trained_bundle().save(short_dir / "weights")
    reach = ["--control-url", nginx.control_url, "--status-url", nginx.status_url, "--late-binding"]
    for bundle, more, named in (
        ("weights", ["--workers", "2"], "the bundle sets weights"),
        ("times", ["--set", "holding.slots={127.0.0.1:1: 3}"], "no server '127.0.0.1:1'"),
        ("times", ["--workers", "2", "--set", "holding.deadlines_ms={nobody: 3}"], "no group 'nobody'"),
    ):
        words = ["--bundle", str(short_dir / bundle), "--folder", str(short_dir / "run"), *reach, *more]
        assert main(["steer", "run", *words]) == 2
        shown = capsys.readouterr().err
        assert named in shown.splitlines()[-1], shown
    other = Topology(tuple(replace(group, servers=("127.0.0.1:1",)) for group in site.topology.groups))
    kept = LateBinding(site.topology, np.full(3, 0.5), np.full(3, 7))
    assert kept.onto(other).slots.tolist() == [7]
