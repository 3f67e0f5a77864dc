"""`deepsched service` as a person meets it: starts, answers, ends on Ctrl-C, refuses nonsense in one line."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from actuators.contract.script import Script, ServerProfile
from actuators.contract.topology import social_network
from actuators.http_client import http_session
from rayjobs.bench.service import mmc_response_s
from rayjobs.cli.main import main
from rayjobs.service import ServiceOptions, make_script
from tests.support.orphans import alive
from tests.support.waiting import PATIENCE_S

COMMAND = [sys.executable, "-m", "rayjobs.service"]
SMALL = ["--set", "network.users=20", "--set", "network.posts_per_user=1"]


def test_it_serves_until_ctrl_c_and_leaves_nothing() -> None:
    command = [*COMMAND, "--servers", "2", "--compose-ms", "1", "--speeds", "[[1,2,4],0.5]", *SMALL]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        while "Ctrl-C" not in (line := process.stderr.readline()):
            assert line, process.communicate()
            read = re.search(r"'(http://[^']+)'", line)
            if read:
                with http_session(5.0) as session:
                    assert session.get(read[1]).text.startswith("[{")
        started = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        assert len(started) == 4, "two servers, each under its guardian"
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0
    assert "0.825 ms" in output, "user reads at speed 4"
    assert "home_read 1 × 200" in output
    assert not [pid for pid in started if alive(pid)]


@pytest.mark.parametrize(("arguments", "says"), [
    (["--speeds", "1,2"], "2 speeds for 3 servers"),
    (["--speeds=1,1,0"], "greater than 0"),
    (["--scenario", "S33"], "did you mean 'S3'"),
    (["--script", "/none"], "cannot read the script"),
    (["--script", "/dev/zero"], "not a regular file"),
    (["--servers", "0"], "servers"),
    (["--port", "65535"], "port 65537 does not exist"),
    (["--database", "/none/network.sqlite"], "cannot write the database"),
    (["--set", "network.user=5"], "did you mean 'network.users'"),
])  # fmt: skip
def test_nonsense_is_one_line_and_exit_code_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["service", *arguments]) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_a_script_file_and_a_scenario_are_played_as_written(tmp_path: Path) -> None:
    topology = social_network()
    written = Script("mine", 3, 5, (), (ServerProfile((1.0, 1.0, 1.0)),) * 3, (0.01, 0.02, 0.03))
    path = tmp_path / "script.json"
    path.write_text(json.dumps(written.to_json()))
    assert make_script(ServiceOptions(script=path), topology) == written
    played = make_script(ServiceOptions(scenario="s5", seed=4), topology)
    assert played.seed == 4
    assert played.behaviours


def test_erlang_c_agrees_with_textbook_values() -> None:
    assert mmc_response_s(500, 0.005, 4) == pytest.approx(0.00607, abs=5e-6)
    assert mmc_response_s(50, 0.01, 1) == pytest.approx(0.02)
