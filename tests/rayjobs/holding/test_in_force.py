"""`deepsched holding` against a real NGINX: counts, holds, shows, and goes back to the method from before."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.control import Weights
from actuators.nginx.config import NginxOptions
from actuators.nginx.control_endpoint import MemoryControl
from envs.calibration.result import Calibration
from rayjobs.cli.main import main
from tests.support.http_server import LATER
from tests.support.nginx_site import Site, answer, running_site
from tests.support.paths import DATA
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.nginx


def deepsched(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rayjobs.holding", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


@pytest.fixture
def site(short_dir: Path) -> Iterator[Site]:
    options = NginxOptions(method="round_robin", actuation="memory", late_binding=True)
    with running_site(short_dir, options) as site:
        yield site


@pytest.fixture
def calibration(site: Site, tmp_path: Path) -> Path:
    """The recorded calibration, of the servers of this site."""
    known = Calibration.load(DATA / "runs" / "calibration.json")
    path = tmp_path / "calibration.json"
    known.model_copy(update={"servers": site.topology.servers, "members": ()}).save(path)
    return path


@pytest.fixture
def reach(site: Site, tmp_path: Path) -> list[str]:
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text(site.nginx.token)
    return ["--control-url", site.nginx.control_url, "--token-file", str(token)]


def state(site: Site) -> str:
    holding = site.balancer().holding
    assert holding is not None
    return holding.state


def test_it_counts_holds_and_goes_back(
    site: Site, reach: list[str], calibration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Weights(site.topology, np.tile([5, 3, 1], (3, 1)), np.array([[False, False, True]] * 3))
    site.nginx.apply(before)
    given = ["--calibration", str(calibration), "--workers", "1"]
    result = deepsched("set", *reach, *given)
    assert result.returncode == 0, result.stderr
    assert "it is counted which requests would wait for a slot; slots:" in result.stderr
    assert "home_read_backend: deadline" in result.stderr
    assert (state(site), site.balancer().method) == ("watching", "round_robin")
    assert main(["holding", "set", *reach, *given, "--hold"]) == 0
    assert "round_robin was in force" in capsys.readouterr().err
    assert (state(site), site.balancer().method) == ("holding", "late_binding")
    assert main(["holding", "set", *reach, *given]) == 2, "requests are held, so that they cannot only be counted"
    told = capsys.readouterr().err
    assert "requests are held" in told
    assert "--hold changes how; deepsched holding off ends it" in told
    assert (state(site), site.balancer().method) == ("holding", "late_binding")
    for index in range(3):
        site.script[index] = lambda _: LATER
    pending = [site.pending() for _ in range(4)]
    assert [server.waiting for server in site.servers] == [2, 2, 0], "two slots each; one server is down"
    shown = deepsched("show", "--control-url", site.nginx.control_url).stdout
    assert "holding: requests wait for a slot" in shown
    assert f"{site.topology.servers[0]} 2" in shown
    assert "home_read_backend  4 requests, held 0.00%" in shown
    site.heal()
    for server in site.servers[:2]:
        for _ in range(2):
            server.answer_next(answer(200))
    for connection in pending:
        assert connection.getresponse().status == 200
        connection.close()
    with closing(MemoryControl(site.nginx.control_url, site.nginx.token, site.topology)) as endpoint:
        assert main(["holding", "off", *reach, "--method", "round_robin"]) == 0
        assert endpoint.get() == ("round_robin", before)
        assert main(["holding", "set", *reach, *given]) == 0
        assert main(["holding", "off", *reach]) == 0
        assert endpoint.get() == ("round_robin", before)
        assert main(["holding", "set", *reach, *given, "--hold"]) == 0
        assert main(["holding", "off", *reach, "--method", "expected_delay"]) == 0
        assert endpoint.get()[0] == "expected_delay"
        assert endpoint.weights() == before
        # From the service times in force, with deadlines that are given.
        deadlines = "{compose_backend: 300, home_read_backend: 60, user_read_backend: 50}"
        capsys.readouterr()
        assert main(["holding", "set", *reach, "--deadlines-ms", deadlines, "--hold"]) == 0
        assert "compose_backend: deadline 300 ms" in capsys.readouterr().err
    assert main(["weights", "get", *reach]) == 0
    assert "1 workers, 2 slots" in capsys.readouterr().out
    wait_until(lambda: state(site) == "holding")


def test_a_wrong_option_is_one_line_and_changes_nothing(
    site: Site, reach: list[str], calibration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--calibration", str(calibration)]
    for extra, named in (
        ([], "no service times are in force"),
        ([*given, "--slots", "{127.0.0.1:1: 3}"], "no server '127.0.0.1:1'"),
        ([*given, "--deadlines-ms", "{compose: 3}"], "did you mean 'compose_backend'?"),
        ([*given, "--set", "numbers.theta=0"], "numbers.theta"),
        ([*given, "--set", "numbers.valid_s=5"], "numbers.valid_s"),
        (["--calibration", "nowhere.json"], "nowhere.json"),
        (["--calibration", str(DATA / "runs" / "calibration.json")], "it has no server"),
    ):
        assert main(["holding", "set", *reach, *extra]) == 2, extra
        shown = capsys.readouterr().err
        assert named in shown, shown
        assert shown.count("\n") == 1
    assert state(site) == "off"


def test_an_nginx_whose_locations_ask_for_no_slot_is_told_what_to_do(
    short_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_site(short_dir, NginxOptions(actuation="memory")) as site:
        url = site.nginx.control_url
        assert main(["holding", "show", "--control-url", url]) == 1
        assert "memory.late_binding=true" in capsys.readouterr().err
        assert main(["holding", "off", "--control-url", url]) == 2
        assert "memory.late_binding=true" in capsys.readouterr().err
