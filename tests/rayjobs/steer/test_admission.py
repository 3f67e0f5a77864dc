"""Admission under a controller, against a real NGINX: shadow, canary, active, revert, and what others do meanwhile."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actuators.contract.admission import Admission, AdmissionNumbers
from actuators.contract.window import Fault, Window
from actuators.errors import ActuationError
from actuators.files import write_private
from actuators.nginx.admission_endpoint import AdmissionEndpoint
from actuators.nginx.config import NginxOptions
from actuators.nginx.instance import Nginx
from actuators.testbed.options import LiveOptions
from envs.admission.tuned import TunedNumbers
from rayjobs.cli.config import load_options
from rayjobs.cli.main import main
from rayjobs.steer.admission import (
    CHANGED,
    LEFT,
    FirstRuleStore,
    LeftAdmission,
    SiteAdmission,
    restore_first_rule,
    site_admission,
)
from rayjobs.steer.folder import SteerFolder
from rayjobs.steer.options import SteerOptions
from tests.support import steer_site
from tests.support.http_server import Received, ScriptedServer
from tests.support.nginx_site import Site, running_site
from tests.support.steering_cases import trained_bundle
from tests.support.waiting import wait_until
from tests.support.windows import window
from tuning.policy.bundle import put_admission
from tuning.steering.admission import AdmissionGuards, AdmissionWatch
from tuning.steering.options import Mode, Ordered, Override

pytestmark = pytest.mark.nginx
CALIBRATION = Path(__file__).parents[3] / "tests" / "data" / "runs" / "calibration.json"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running_site(tmp_path_factory.mktemp("n"), NginxOptions(admission=True)) as site:
        yield site


@pytest.fixture
def site(running: Site) -> Site:
    running.nginx.admit(None)
    running.collector.begin()
    return running


def rule(site: Site, **more: Any) -> Admission:
    """Two requests at most."""
    ones = np.ones(len(site.topology.groups))
    numbers = AdmissionNumbers(multiple=2, most_refused=1)
    return replace(Admission(site.topology, "fixed", ones, ones, ones, ones / 3, numbers), **more)


class Steered:
    """The rule of a site, and a folder that outlives it."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site, self.store = site, FirstRuleStore(folder / "admission.json")
        self.version, self.alarms, self.entry = 0, [""], {"": ""}
        self.numbers = AdmissionNumbers(multiple=2, most_refused=1)
        self.rule = self.start()

    def start(self) -> SiteAdmission:
        endpoint = AdmissionEndpoint(self.site.nginx.admission_url, self.site.nginx.token, self.site.topology)
        watch = AdmissionWatch(AdmissionGuards(proving_windows=2), 0.14, proved=False)
        self.rule = SiteAdmission(endpoint, rule(self.site, numbers=self.numbers), self.store, watch)
        return self.rule

    def step(self, mode: Mode = "active", override: Override = "", window: Window | None = None) -> float | None:
        """One interval with a request; which percentage NGINX refuses then, None without a rule."""
        self.site.get()
        seen = window or self.site.collector.window()
        self.entry, self.alarms = self.rule.step(seen, Ordered(mode, 25.0, override, self.version))
        return self.percent()

    def percent(self) -> float | None:
        present = self.present()
        return None if present is None else present.percent

    def present(self) -> Admission | None:
        nginx = self.site.nginx
        with closing(AdmissionEndpoint(nginx.admission_url, nginx.token, self.site.topology)) as endpoint:
            return endpoint.get()


@pytest.fixture
def steered(site: Site, tmp_path: Path) -> Steered:
    return Steered(site, tmp_path)


def test_shadow_counts_canary_refuses_a_part_active_all_and_a_revert_takes_it_away(steered: Steered) -> None:
    assert [steered.step("shadow") for _ in range(3)] == [0, 0, 0]
    assert steered.entry["reason"].startswith("shadow")
    assert steered.step("canary") == 25
    assert steered.step("active") == 100
    assert steered.entry["percent"] == 100
    assert steered.entry["since_start"]["offered"] >= 4
    assert steered.step("active", "paused") == 100
    assert steered.step("active", "reverted") is None
    assert steered.rule.reverted
    assert steered.step("active") == 100
    assert steered.step("shadow") == 0
    assert steered.alarms == []


def numbers_file(bundle: Path, *assignments: str, **given: Any) -> Path | None:
    """Which file of numbers a controller of that bundle uses."""
    flags = {"folder": bundle.parent, "bundle": bundle, "control_url": "http://127.0.0.1:1/control", **given}
    return load_options(SteerOptions, assignments=assignments, flags=flags).admission.numbers_file


def test_the_numbers_of_the_bundle_are_used_unless_others_are_given(tmp_path: Path) -> None:
    bundle, admits = tmp_path / "bundle", {"admission_calibration": CALIBRATION}
    assert numbers_file(bundle, **admits) is None
    saved = trained_bundle()
    saved.save(bundle)
    assert numbers_file(bundle, **admits) is None
    names = tuple(group.name for group in saved.problem.topology.groups)
    tuned = TunedNumbers(
        rule="aimd_thresh", numbers=AdmissionNumbers(rise=0.3), groups=names, gained=True, gain=0.02, low=0.01,
        high=0.03, goodput=0.9, without=0.8, draws=200, seed=1,
    )  # fmt: skip
    put_admission(bundle, tuned)
    assert numbers_file(bundle) is None
    assert numbers_file(bundle, **admits) == bundle
    assert numbers_file(bundle, "admission.rule=thresh", **admits) is None
    assert numbers_file(bundle, "admission.numbers.rise=0.25", **admits) is None
    assert numbers_file(bundle, f"admission.numbers_file={tmp_path}", **admits) == tmp_path


def test_it_refuses_only_after_it_has_counted(steered: Steered) -> None:
    assert steered.step() == 0
    assert "only counts" in steered.entry["reason"]
    assert steered.step() == 0
    assert steered.step() == 100


def test_a_rule_from_before_stays_in_shadow_and_comes_back_with_a_revert(site: Site, tmp_path: Path) -> None:
    site.nginx.admit(rule(site, rule="thresh", percent=60.0))
    steered = Steered(site, tmp_path)
    assert steered.step("shadow") == 60
    # What the rule from before refuses proves nothing about this one.
    assert [steered.step("active") for _ in range(3)] == [0, 0, 100]
    assert steered.step("active", "reverted") == 60
    found = steered.present()
    assert found is not None
    assert found.rule == "thresh"


def test_another_controller_knows_the_first_rule_and_that_this_one_has_counted(steered: Steered) -> None:
    while steered.step() != 100:
        pass
    steered.start()
    assert steered.step() == 100
    assert steered.step("active", "reverted") is None


def test_a_response_time_that_is_another_at_low_load_changes_the_rule_and_outlives_the_controller(
    steered: Steered,
) -> None:
    while steered.step() != 100:
        pass
    quick = replace(window(1.0, 100, topology=steered.site.topology), admission=None)
    for _ in range(4):
        assert steered.step(window=quick) == 100
    present = steered.present()
    assert present is not None
    assert (present.idle_s < 0.01).all()
    steered.start()
    assert steered.step() == 100
    again = steered.present()
    assert again is not None
    assert again.idle_s == pytest.approx(present.idle_s)


def test_a_rule_that_somebody_else_sets_stays_until_the_next_order(steered: Steered) -> None:
    while steered.step() != 100:
        pass
    steered.site.nginx.admit(None)
    steered.step()
    for _ in range(3):
        assert steered.step() is None
        assert steered.alarms == [CHANGED]
    steered.version += 1
    assert steered.step() == 100
    assert steered.alarms == []
    steered.site.nginx.admit(rule(steered.site, percent=50.0))
    assert steered.step("active", "reverted") is None


def by_hand(site: Site, percent: float) -> str:
    """A rule of an operator is in force; its text."""
    site.nginx.admit(rule(site, rule="thresh", percent=percent))
    with closing(AdmissionEndpoint(site.nginx.admission_url, site.nginx.token, site.topology)) as endpoint:
        return endpoint.text()


def in_force(site: Site, tmp_path: Path, before: float | None) -> Steered:
    """A controller whose rule is in force, over that of an operator or over none."""
    if before is not None:
        by_hand(site, before)
    steered = Steered(site, tmp_path)
    while steered.step() != 100:
        pass
    return steered


@pytest.mark.parametrize("before", [None, 60.0])
def test_a_rule_that_an_operator_sets_while_a_revert_stands_stays(
    site: Site, tmp_path: Path, before: float | None
) -> None:
    steered = in_force(site, tmp_path, before)
    assert steered.step("active", "reverted") == before
    theirs = by_hand(site, 40.0)
    assert [steered.step("active", "reverted") for _ in range(4)] == [40.0] * 4
    assert (steered.rule.reverted, steered.alarms, steered.entry["percent"]) == (True, [], 40.0)
    # It is what the next revert goes back to.
    assert steered.step("active") == 100
    assert steered.step("active", "reverted") == 40.0
    kept = steered.store.read()
    assert kept is not None
    assert (kept.text, kept.sealed) == (theirs, False)
    site.nginx.admit(None)
    assert [steered.step("active", "reverted") for _ in range(4)] == [None] * 4
    assert steered.rule.reverted


@pytest.mark.parametrize("before", [None, 60.0])
def test_a_rule_that_an_operator_sets_between_two_controllers_stays_in_shadow(
    site: Site, tmp_path: Path, before: float | None
) -> None:
    steered = in_force(site, tmp_path, before)
    by_hand(site, 40.0)
    steered.start()
    assert [steered.step("shadow") for _ in range(4)] == [40.0] * 4
    assert "outside the controller stays" in steered.entry["reason"]
    steered.version += 1
    assert steered.step("shadow") == 40.0, "an order of another kind"
    assert steered.step("active") == 0, "as ordered; it counts first"
    assert steered.step("shadow") == (before or 0.0), "its own is taken back"
    by_hand(site, 30.0)
    assert [steered.step("shadow") for _ in range(4)] == [30.0] * 4
    assert steered.step("active", "reverted") == before


def test_a_controller_with_other_numbers_takes_the_rule_of_an_earlier_one_back_in_shadow(
    steered: Steered,
) -> None:
    while steered.step() != 100:
        pass
    steered.numbers = AdmissionNumbers(multiple=3, most_refused=1)
    steered.start()
    assert [steered.step("shadow") for _ in range(2)] == [0, 0]


def test_a_controller_without_admission_takes_the_rule_of_an_earlier_one_back_when_it_is_reverted(
    steered: Steered, tmp_path: Path
) -> None:
    nginx = steered.site.nginx
    write_private(tmp_path / "token", nginx.token)
    options = SteerOptions(
        bundle=tmp_path, folder=tmp_path, control_url=nginx.control_url, token_file=tmp_path / "token"
    )
    with site_admission(options, steered.store) as nothing:
        assert nothing is None
    while steered.step() != 100:
        pass
    with site_admission(options, steered.store) as left:
        assert isinstance(left, LeftAdmission)
        seen = steered.site.collector.window()
        assert left.step(seen, Ordered("active", 25.0, "", 1)) == ({}, [])
        assert (steered.percent(), left.reverted) == (100, False)
        (tmp_path / "token").write_text("not the token")
        alarm = left.step(seen, Ordered("active", 25.0, "reverted", 2))[1][0]
        assert alarm.startswith(LEFT)
        assert (steered.percent(), left.reverted) == (100, False)
        (tmp_path / "token").write_text(nginx.token)
        assert left.step(seen, Ordered("active", 25.0, "reverted", 2)) == ({}, [])
        assert (steered.percent(), left.reverted) == (None, True)
        by_hand(steered.site, 40.0)
        assert left.step(seen, Ordered("active", 25.0, "reverted", 2)) == ({}, [])
        assert steered.percent() == 40.0
    with site_admission(options, steered.store) as nothing:
        assert nothing is None


@pytest.mark.parametrize("late", [False, True])
def test_what_a_restart_of_nginx_has_lost_is_set_again(steered: Steered, late: bool) -> None:
    while steered.step() != 100:
        pass
    steered.site.nginx.admit(None)
    if late:
        # NGINX was restarted after it had been read for the window.
        assert steered.step() is None
    restarted = replace(steered.site.collector.window(), faults=(Fault("restart", "its counters began again"),))
    assert steered.step(window=restarted) == 100
    assert steered.alarms == []


def test_an_nginx_that_refuses_a_rule_is_an_alarm(site: Site, tmp_path: Path) -> None:
    steered = Steered(site, tmp_path)
    steered.rule = SiteAdmission(
        AdmissionEndpoint(site.nginx.admission_url, "not the token", site.topology), rule(site), steered.store,
        AdmissionWatch(AdmissionGuards(proving_windows=1), 0.14, proved=False),
    )  # fmt: skip
    assert steered.step() is None
    assert "admission not applied: wrong token" in steered.alarms[0]


@pytest.mark.slow
def test_a_controller_process_counts_refuses_is_killed_and_is_reverted(
    short_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command line: the rule outlives the controller, and a revert without one takes it back."""
    trained_bundle().save(short_dir / "bundle")
    live = LiveOptions(nginx=NginxOptions(method="round_robin", admission=True))
    with steer_site.running_site(short_dir, live) as site, ExitStack() as stack:
        nginx = site.actuator
        assert isinstance(nginx, Nginx)
        folder = SteerFolder(short_dir)

        def percent() -> float:
            return float(folder.status().get("admission", {}).get("percent", -1.0))

        controller = stack.enter_context(
            steer_site.steer_process(
                short_dir, site, "run", "--interval-s", str(steer_site.INTERVAL_S), "--mode", "shadow",
                "--admission-calibration", str(CALIBRATION), "--set", "admission.guards.proving_windows=3",
                "--set", "admission.numbers.least=50", "--set", "admission.numbers.most=60",
                "--set", "admission.numbers.start=50",
            )
        )  # fmt: skip
        wait_until(lambda: percent() == 0, lambda: controller.log_tail(20))
        assert main(["steer", "status", "--folder", str(short_dir)]) == 0
        assert "admission: aimd_thresh, 0 % refused: shadow" in capsys.readouterr().out
        assert main(["steer", "mode", "active", "--folder", str(short_dir)]) == 0
        wait_until(lambda: percent() == 100, lambda: controller.log_tail(20))
        os.kill(controller.pid, signal.SIGKILL)
        with closing(AdmissionEndpoint(nginx.admission_url, nginx.token, site.topology)) as endpoint:
            assert "percent 100" in endpoint.text()
            assert main(["steer", "revert", "--folder", str(short_dir)]) == 0
            assert "the first rule of admission" in capsys.readouterr().err
            assert endpoint.text() == ""


@pytest.mark.parametrize("first", ["", "rule fixed\n"])
def test_without_admission_control_an_empty_first_rule_is_in_force(tmp_path: Path, first: str) -> None:
    """The snippet has been written without it since."""
    store = FirstRuleStore(tmp_path / "admission.json")
    store.keep(first)
    store.seal("rule aimd\n")
    text = b"method round_robin\nweight app 10.0.0.1:80 1\n"

    def answer(request: Received) -> bytes:
        found = b"200 OK" if "/control" in request.line else b"404 Not Found"
        return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (found, len(text), text)

    with ScriptedServer(answer) as server:
        url = f"http://{server.address}/control"
        if first:
            with pytest.raises(ActuationError, match="no admission control"):
                restore_first_rule(store, url, None)
        else:
            assert restore_first_rule(store, url, None)
    left = store.read()
    assert left is not None
    assert left.sealed == bool(first)


@pytest.mark.slow
def test_a_revert_under_a_controller_without_admission_takes_the_rule_of_an_earlier_one_back(short_dir: Path) -> None:
    trained_bundle().save(short_dir / "bundle")
    live = LiveOptions(nginx=NginxOptions(method="round_robin", admission=True))
    with steer_site.running_site(short_dir, live) as site:
        nginx, folder = site.actuator, SteerFolder(short_dir)
        assert isinstance(nginx, Nginx)
        run = ["run", "--interval-s", str(steer_site.INTERVAL_S), "--mode", "active"]
        admits = ["--admission-calibration", str(CALIBRATION), "--set", "admission.guards.proving_windows=100000"]
        with (
            closing(AdmissionEndpoint(nginx.admission_url, nginx.token, site.topology)) as endpoint,
            steer_site.steer_process(short_dir, site, *run, *admits) as controller,
        ):
            wait_until(lambda: endpoint.text() != "", lambda: controller.log_tail(20))
        with (
            closing(AdmissionEndpoint(nginx.admission_url, nginx.token, site.topology)) as endpoint,
            steer_site.steer_process(short_dir, site, *run) as controller,
        ):
            began_s = time.monotonic()
            wait_until(lambda: folder.status().get("now_s", 0.0) > began_s, lambda: controller.log_tail(20))
            assert endpoint.text() != ""
            assert main(["steer", "revert", "--folder", str(short_dir)]) == 0
            assert endpoint.text() == ""
