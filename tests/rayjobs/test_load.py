"""`deepsched load`: lines by the published schema, files that remain, one clear line for what is wrong."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest

import actuators
from actuators.load.build import engine_path
from actuators.load.summary import LoadSummary
from rayjobs.cli.main import run_verb
from rayjobs.load import VERB, LoadReport, LoadRunOptions
from rayjobs.runs.folder import RunFolder
from tests.support.http_server import HANG, OK, ScriptedServer
from tests.support.stand_in_engine import fake_engine, part
from tests.support.stand_in_wrk2 import OUTPUT, fake_wrk2
from tests.support.waiting import PATIENCE_S

pytestmark = pytest.mark.thorough

SCHEMA = json.loads(Path(actuators.__file__).with_name("load").joinpath("load.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def deepsched(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "rayjobs.load", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def lines_of(text: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        VALIDATOR.validate(line)
    return lines


def test_the_schema_is_a_schema_and_refuses_others() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert not VALIDATOR.is_valid({"kind": "window"})


def test_gen_load_alone_sends_the_random_plan() -> None:
    bounds = ["--min-rate-rps=40", "--max-rate-rps=80", "--min-burst-s=0.2", "--max-burst-s=0.4"]
    pauses = ["--min-backoff-s=0.05", "--max-backoff-s=0.1"]
    with ScriptedServer() as server:
        command = [str(engine_path()), f"--target=http://{server.address}", "--duration-s=1", *bounds, *pauses]
        result = subprocess.run(
            [*command, "--window-s=0.25"], capture_output=True, text=True, timeout=PATIENCE_S, check=True
        )
        text = subprocess.run(
            [*command, "--output=text"], capture_output=True, text=True, timeout=PATIENCE_S, check=True
        )
    lines = lines_of(result.stdout)
    assert [line["kind"] for line in lines[:5]] == ["start", "window", "window", "window", "window"]
    summary = LoadSummary.from_json(lines[-1])
    assert summary.request_types == ("compose", "home_read", "user_read")
    assert (summary.answered > 0).all()
    again = LoadSummary.from_json(json.loads(json.dumps(summary.to_json("summary"))))
    assert again.to_json("summary") == summary.to_json("summary")
    ours, its = summary.to_json("summary")["types"]["compose"], lines[-1]["types"]["compose"]
    assert ours["corrected_ms"] == pytest.approx(its["corrected_ms"], rel=1e-4)
    assert re.search(r"^home_read +\d+", text.stdout, re.MULTILINE)


def test_a_run_of_errors_only_is_told_by_the_status(tmp_path: Path) -> None:
    refusal = b"HTTP/1.1 500 no\r\nContent-Length: 2\r\n\r\nno"
    with ScriptedServer(lambda _: refusal) as server:
        arguments = ["--plan=constant", "--rate-rps=50", "--duration-s=0.5", "--mix={compose: 1}", f"--out={tmp_path}"]
        result = deepsched(f"--target=http://{server.address}", *arguments)
    assert result.returncode == 1
    assert "no request was answered without an error" in result.stderr
    assert lines_of(result.stdout)[-1]["types"]["compose"]["errors"]["status_5xx"] > 0


def test_a_run_prints_lines_and_keeps_its_files(tmp_path: Path) -> None:
    with ScriptedServer() as server:
        arguments = ["--plan=constant", "--rate-rps=100", "--duration-s=1", "--window-s=0.5", "--mix={ping: 1}"]
        requests = ["--requests={ping: 'GET /ping'}", f"--out={tmp_path}", f"--target=http://{server.address}"]
        result = deepsched(*arguments, *requests)
        assert result.returncode == 0, result.stderr
        assert {request.line for request in server.requests} == {"GET /ping HTTP/1.1"}
    lines = lines_of(result.stdout)
    assert [line["kind"] for line in lines][:3] == ["start", "window", "window"]
    (folder,) = tmp_path.iterdir()
    kept = {path.name for path in folder.iterdir()}
    assert {
        "windows.jsonl",
        "summary.json",
        "latency.hlog",
        "ping-corrected.hgrm",
        "ping-raw.hgrm",
        "config.yaml",
    } <= kept
    assert (folder / "windows.jsonl").read_text() == result.stdout
    assert json.loads((folder / "summary.json").read_text()) == lines[-1]
    assert str(folder) in result.stderr


@pytest.mark.parametrize(("output", "told"), [("text", True), ("json", False)])
def test_a_long_run_says_how_far_it_is_where_no_windows_are_printed(output: str, told: bool, tmp_path: Path) -> None:
    """From its begin on; that lines follow every few seconds is up to `rayjobs.cli.progress`."""
    with ScriptedServer() as server:
        arguments = ["--plan=constant", "--rate-rps=50", "--duration-s=0.5", f"--output={output}", f"--out={tmp_path}"]
        result = deepsched(f"--target=http://{server.address}", *arguments)
    assert result.returncode == 0, result.stderr
    assert ("[1/1] send: started, about 0 s" in result.stderr) == told
    assert ("[1/1] send: done in" in result.stderr) == told


def test_windows_too_long_to_wait_for_are_not_all_that_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedServer() as server:
        target = f"--target=http://{server.address}"
        words = ["--plan=constant", "--duration-s=0.5", "--window-s=30", "--output=json", f"--out={tmp_path}"]
        assert run_verb(VERB, [target, *words]) == 0
    assert "[1/1] send: started" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["text", "json"])
def test_wrk2_tells_no_windows_so_that_the_run_is_followed(
    output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "home.lua"
    script.write_text("-- lua")
    binary = fake_wrk2(tmp_path, f"cat <<'E'\n{OUTPUT}E")
    chosen = [f"wrk2.path={binary}", f"wrk2.scripts={{home_read: {script}}}", "mix={home_read: 1}"]
    words = [word for text in chosen for word in ("--set", text)]
    assert run_verb(VERB, ["--engine=wrk2", "--plan=constant", "--rate-rps=1000", "--duration-s=12",
                           f"--output={output}", f"--out={tmp_path}", *words]) == 0  # fmt: skip
    told = capsys.readouterr().err
    assert "[1/1] send: started, about 12 s" in told
    assert "[1/1] send: done in" in told


def test_fixed_gaps_that_were_not_kept_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = replace(LoadSummary.empty(("ping",)), gap_error=0.08, send_delay_p99_ms=3.0)
    folder = RunFolder.create(tmp_path, "load", 1, LoadRunOptions())
    for fixed, error in ((True, 0.08), (True, 0.01), (False, 0.08)):
        with LoadReport(folder, 1.0, json_lines=True, live=False, fixed=fixed) as report:
            report.end(replace(summary, gap_error=error))
        told = "vary by 8.0% as sent" in capsys.readouterr().err
        assert told == (fixed and error > 0.02)


def test_ctrl_c_still_gives_the_summary(tmp_path: Path) -> None:
    with ScriptedServer() as server:
        command = [sys.executable, "-m", "rayjobs.load", "--plan=constant", "--window-s=0.2", "--output=text"]
        rest = [f"--target={server.address}", f"--out={tmp_path}"]
        process = subprocess.Popen([*command, *rest], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for_window(tmp_path)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, err
    assert "interrupted" in out
    assert "home_read" in out
    assert "written: " in out
    (summary,) = tmp_path.glob("*/summary.json")
    assert LoadSummary.from_json(json.loads(summary.read_text())).interrupted


def test_a_killed_engine_leaves_the_loss_counted(tmp_path: Path) -> None:
    answers = iter(range(10**9))
    with ScriptedServer(lambda _: OK if next(answers) < 20 else HANG) as server:
        command = [sys.executable, "-m", "rayjobs.load", "--plan=constant", "--window-s=0.2"]
        rest = [f"--target={server.address}", f"--out={tmp_path}"]
        process = subprocess.Popen([*command, *rest], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for_window(tmp_path)
        os.kill(command_of(process.pid), signal.SIGKILL)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert "the load engine died with code 137" in err
    assert "Traceback" not in err
    summary = LoadSummary.from_json(lines_of(out)[-1])
    assert not summary.complete
    assert summary.unaccounted.sum() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target=no url"], "is not http://HOST:PORT"),
        (["--target=http://[::1:8080"], "is not http://HOST:PORT"),
        (["--target=https://127.0.0.1"], "without TLS"),
        (["--target=h2c://127.0.0.1"], "use h2load"),
        (["--target=http://127.0.0.1:1"], "Connection refused"),
        (["--target=http://nowhere.invalid"], "nowhere.invalid"),
        (["--rate-rps=0"], "rate"),
        (["--duration-s=-3"], "duration"),
        (["--distribution=exponentail"], "exponential"),
        (["--set", "sending.body_files={compose: /nowhere/body}"], "no body file '/nowhere/body'"),
        (["--set", "sending.body_files={compse: /etc/hostname}"], "did you mean 'compose'"),
        (["--set", "sending.timeout_s=200"], "120"),
        (["--mix={compse: 1}"], "did you mean 'compose'"),
        (["--requests={ping: GET /ping}"], "the plan sends no requests of type 'ping'"),
        (["--requests={'a b': GET /ping}"], "invalid request type"),
        ([f"--requests={{{'p' * 128}: GET /ping}}"], "1 to 127 ASCII letters"),
        (["--requests={ping: GÉT /ping}"], "write 'METHOD /PATH'"),
        ([f"--requests={{ping: {'G' * 32} /ping}}"], "a method of 32 letters"),
        (["--requests={ping: GET /a b}"], "(requests.ping); percent-encode it (%20)"),
        (['--requests={ping: "GET /a\\tb"}'], "(requests.ping); percent-encode it (%20)"),
        ([f"--requests={{ping: GET /{'x' * 1023}}}"], "a path of 1024 bytes"),
        (["--engine=wrk2"], "no wrk2 binary"),
    ],
)
def test_what_is_wrong_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run_verb(VERB, ["--plan=constant", f"--out={tmp_path}", *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert said.out == ""


def test_windows_of_an_engine_that_died_are_in_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also those that it wrote just before."""
    windows = [part(("compose",), 0.0, answered=3), part(("compose",), 1.0, answered=4)]
    binary = fake_engine(tmp_path, windows, code=3)
    words = ["--plan=constant", "--mix={compose: 1}", "--set", f"sending.engine={binary}", f"--out={tmp_path / 'runs'}"]
    assert run_verb(VERB, words) == 2
    said = capsys.readouterr()
    assert "the load engine died with code 3" in said.err
    lines = lines_of(said.out)
    assert [line["kind"] for line in lines] == ["start", "window", "window", "summary"]
    assert (lines[-1]["complete"], lines[-1]["types"]["compose"]["answered"]) == (False, 7)


def test_the_given_engine_draws_the_plan(tmp_path: Path) -> None:
    whole = part(("compose",), 0.0, answered=3)
    plan = "stream compose POST /compose compose\nstep 0 5 fixed\n"
    binary = fake_engine(tmp_path, [whole], summary=whole, plan=plan)
    assert run_verb(VERB, ["--set", f"sending.engine={binary}", f"--out={tmp_path / 'runs'}"]) == 0
    (kept,) = (tmp_path / "runs").glob("*/plan.txt")
    assert kept.read_text().splitlines()[1:] == ["step 0.0 5.0 fixed"]


def wait_for_window(folder: Path) -> None:
    """Until the run's first window was written."""
    for _ in range(600):
        if any(path.read_text().count("\n") >= 3 for path in folder.glob("*/windows.jsonl")):
            return
        signal.sigtimedwait([], 0.05)
    raise AssertionError("no window came")


def command_of(pid: int) -> int:
    """The pid of the one command that a process runs under a guardian."""
    (guardian,) = psutil.Process(pid).children()
    (child,) = guardian.children()
    return child.pid
