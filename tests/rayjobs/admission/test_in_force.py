"""`deepsched admission` against a real NGINX: show, set and off, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from actuators.nginx.config import NginxOptions
from envs.calibration.admission import calibrated_admission
from envs.calibration.options import AdmissionPlan
from envs.calibration.result import Calibration
from rayjobs.cli.main import main
from tests.support.nginx_site import Site, running_site
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.nginx


def deepsched(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rayjobs.admission", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


@pytest.fixture
def site(short_dir: Path) -> Iterator[Site]:
    with running_site(short_dir, NginxOptions(admission=True)) as site:
        yield site


@pytest.fixture
def arguments(site: Site, tmp_path: Path) -> list[str]:
    """How to reach the site with its token."""
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text(site.nginx.token)
    return ["--control-url", site.nginx.control_url, "--token-file", str(token)]


CALIBRATION = ["--calibration", "tests/data/runs/calibration.json"]


def test_a_rule_is_set_shown_and_taken_back(site: Site, arguments: list[str]) -> None:
    result = deepsched("set", *arguments, *CALIBRATION, "--never-refused", "compose_backend")
    assert result.returncode == 0, result.stderr
    assert "refusals are only counted" in result.stderr
    assert "compose_backend: deadline 316 ms" in result.stderr
    assert "never refused" in result.stderr
    balancer = site.collector.snapshot().balancer
    assert balancer is not None
    assert balancer.admission is not None
    assert (balancer.admission.rule, balancer.admission.percent) == ("aimd_thresh", 0.0)

    def limits() -> list[float | None]:
        shown = site.balancer().admission
        assert shown is not None
        return [entry.limit for entry in shown.groups]

    wait_until(lambda: limits()[1] is not None)
    assert site.get()[0] == 200
    shown = deepsched("show", "--control-url", site.nginx.control_url)
    assert shown.returncode == 0
    assert "aimd_thresh: refusals are only counted" in shown.stdout
    assert "home_read_backend  1 requests, refused 0.00%" in shown.stdout
    assert "compose_backend    0 requests" in shown.stdout
    assert "no limit" in shown.stdout.splitlines()[1]
    assert deepsched("off", *arguments).returncode == 0
    assert deepsched("show", "--control-url", site.nginx.control_url).stdout == "no rule: every request enters\n"


WRONG = (
    (["--importance", "{nobody: 2}"], "no group 'nobody' in the calibration"),
    (["--never-refused", "compose"], "did you mean 'compose_backend'?"),
    (["--importance", "{compose_backend: -1}"], "importance"),
    (["--deadlines-ms", "{compose_backend: .inf}"], "deadlines_ms"),
    (["--percent", "101"], "percent"),
    (["--rule", "fastest"], "rule"),
    (["--set", "numbers.tick_s=0"], "numbers.tick_s"),
    (["--calibration", "nowhere.json"], "nowhere.json"),
    (["--control-url", "nonsense"], "control_url"),
    (["--token-file", "nowhere"], "nowhere"),
)


def test_a_wrong_option_is_one_line_and_changes_nothing(
    site: Site, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for extra, named in WRONG:
        assert main(["admission", "set", *arguments, *CALIBRATION, *extra]) == 2, extra
        shown = capsys.readouterr().err
        assert named in shown
        assert shown.count("\n") == 1
    balancer = site.collector.snapshot().balancer
    assert balancer is not None
    assert balancer.admission is not None
    assert balancer.admission.rule == "none"


def test_an_nginx_without_admission_control_is_told_what_to_do(short_dir: Path, tmp_path: Path) -> None:
    with running_site(short_dir, NginxOptions()) as site:
        token = tmp_path / "token"
        token.touch(0o600)
        token.write_text(site.nginx.token)
        reach = ["--control-url", site.nginx.control_url, "--token-file", str(token)]
        result = deepsched("set", *reach, *CALIBRATION)
        assert result.returncode == 2
        assert "no admission control" in result.stderr
        assert "memory.admission=true" in result.stderr


def test_what_is_believed_comes_from_the_calibration() -> None:
    calibration = Calibration.load(Path("tests/data/runs/calibration.json"))
    plan = AdmissionPlan(
        rule="thresh", importance={"home_read_backend": 3.0}, deadlines_ms={"user_read_backend": 50.0}, load_balancers=2
    )
    found = calibrated_admission(calibration, plan, 100.0)
    assert found.deadlines_s == pytest.approx([0.31648, 0.06693, 0.05], rel=1e-3)
    assert found.importance.tolist() == [1.0, 3.0, 1.0]
    best = calibration.parameters
    equal = best.service_array_ms.mean(axis=1) + best.overhead_ms
    assert found.idle_s == pytest.approx(equal / 1e3)
    rates_rps = [np.mean([rate for _, rate in each.steps]) for each in calibration.arrivals]
    # One of two machines was recorded: of all traffic, half is in flight at each.
    assert found.rates_rps == pytest.approx(2 * np.array(rates_rps))
    assert found.nominal == pytest.approx(np.array(rates_rps) @ found.idle_s)
