"""wrk2 as the second engine: a stand-in program that prints what wrk2 prints; its traps are refused or told."""

import json
import os
from pathlib import Path

import pytest

from actuators.contract.script import RateStep, Stream
from actuators.errors import ConfigError, LoadError, MissingToolError
from actuators.load.wrk2 import Wrk2Engine, Wrk2Options, parse_output
from rayjobs.cli.main import run_verb
from rayjobs.load import VERB
from tests.support.stand_in_wrk2 import OUTPUT, USAGE, fake_wrk2
from tests.support.waiting import wait_until


def constant(distribution: str = "exponential", rate_rps: float = 1000.0) -> list[Stream]:
    return [Stream("compose", (RateStep(0, rate_rps, distribution),))]  # type: ignore[arg-type]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "compose-post.lua"
    path.write_text("-- lua")
    return path


def test_its_output_becomes_our_summary() -> None:
    summary = parse_output(OUTPUT, "compose", 1000, 12)
    assert summary.planned.tolist() == [12000]
    assert summary.answered.tolist() == [11904]
    assert {name: int(counts[0]) for name, counts in summary.errors.items()} == {
        "connect": 3, "timeout": 2, "closed": 5, "status_4xx": 0, "status_5xx": 9, "not_sent": 0,
    }  # fmt: skip
    assert summary.sent.tolist() == [11911]
    assert summary.achieved_rps.tolist() == [pytest.approx((11904 - 9) / 12)], "not those of the histogram"
    assert parse_output(OUTPUT, "compose", 1000, 60).planned.tolist() == [12000], "an interrupted run"
    percentiles = summary.percentiles_ms(raw=True)["compose"]
    assert percentiles["p50"] == pytest.approx(1.132, rel=0.02)
    assert percentiles["p99"] == pytest.approx(2.307, rel=0.02)
    assert summary.raw_counts.sum() == 2000
    assert summary.raw_s_sum[0] == pytest.approx(2.426)
    assert summary.received_bytes.tolist() == [round(2.5 * 2**20)]


def test_the_users_binary_and_scripts_are_run(tmp_path: Path, script: Path) -> None:
    output = tmp_path / "output.txt"
    output.write_text(OUTPUT)
    options = Wrk2Options(path=fake_wrk2(tmp_path, f"cat {output}"), scripts={"compose": script}, connections=8)
    silent = Stream("home_read", (RateStep(0, 0.0),))  # needs no script
    with Wrk2Engine(options, tmp_path / "work") as engine:
        engine.start("http://127.0.0.1:8080", [*constant("zipf"), silent], duration_s=12.0)
        summary = engine.finish(10.0)
    assert summary.request_types == ("compose",)
    command = (tmp_path / "commands").read_text().split()
    assert command == [
        "-D",
        "zipf",
        "-t1",
        "-c8",
        "-d12s",
        "-R1000",
        "-L",
        "-r",
        "-s",
        str(script),
        "http://127.0.0.1:8080",
    ]
    assert any("first 10 s" in line for line in engine.warnings)
    assert any("run at least 30 s" in line for line in engine.warnings)
    assert any("exponent 3" in line for line in engine.warnings)
    assert any("compose: latencies are those of 2000 of 11904 answers" in line for line in engine.warnings)
    assert not any("in place of" in line for line in engine.warnings)


def test_one_that_does_not_tell_what_it_sent_is_not_asked(tmp_path: Path, script: Path) -> None:
    text = OUTPUT.replace("Sent 11911 requests\n", "")
    (tmp_path / "output.txt").write_text(text)
    options = Wrk2Options(
        path=fake_wrk2(tmp_path, f"cat {tmp_path}/output.txt", USAGE), scripts={"compose": script}, threads=4
    )
    with Wrk2Engine(options, tmp_path / "work") as engine:
        engine.start("http://127.0.0.1:8080", constant(rate_rps=10), duration_s=9.4)
        summary = engine.finish(10.0)
    assert "-r" not in (tmp_path / "commands").read_text().split()
    assert "-R8" in (tmp_path / "commands").read_text().split(), "whole requests per thread"
    assert (summary.planned[0], summary.sent[0], summary.errors["timeout"][0]) == (72, 11909, 0)
    assert any("does not tell how many" in line for line in engine.warnings)
    assert any("compose: wrk2 takes whole requests per second and thread, 8/s in place of 10/s" in line
               for line in engine.warnings)  # fmt: skip
    assert any("it runs for 9 s in place of 9.4 s" in line for line in engine.warnings)
    assert not any("first 10 s" in line for line in engine.warnings), "a short run keeps its whole histogram"


@pytest.mark.parametrize(
    ("usage", "what"),
    [
        ("wrk 4.1.0 [epoll]\\n-c, --connections\\n", "it is wrk, not wrk2"),
        ("wrk 4.0.0 [epoll]\\n-R, --rate\\n-U, --u_latency\\n", "it is wrk2, but not that of DeathStarBench"),
        ("hello\\n", "it is not wrk2"),
    ],
)
def test_another_program_is_recognised_before_anything_is_sent(tmp_path: Path, usage: str, what: str) -> None:
    with pytest.raises(MissingToolError, match=f"{what}: it has no option -D.*DeathStarBench"):
        Wrk2Engine(Wrk2Options(path=fake_wrk2(tmp_path, "", usage)), tmp_path)
    assert not (tmp_path / "commands").exists()


def test_a_script_that_does_not_load_ends_the_run_with_one_line(tmp_path: Path, script: Path) -> None:
    """wrk2 itself goes on and sends GET requests for the bare URL."""
    for said, match in (
        (f"{script}: x.lua:1: module 'socket' not found:", "module 'socket' not found.*apt-get install lua-socket"),
        ("PANIC: unprotected error in call to Lua API (x.lua:1: boom)", "boom.*correct the script"),
    ):
        wrk2 = fake_wrk2(tmp_path, f'echo "{said}" >&2; exec sleep 60')
        with Wrk2Engine(Wrk2Options(path=wrk2, scripts={"compose": script}), tmp_path) as engine:
            engine.start("http://127.0.0.1:1", constant(), duration_s=60.0)
            wait_until(lambda: said.split(":")[0] in (tmp_path / "wrk2-compose.txt").read_text())  # noqa: B023
            with pytest.raises(LoadError, match=match):
                engine.wait(0.1)


def test_a_failed_run_is_an_error_with_its_last_words(tmp_path: Path, script: Path) -> None:
    options = Wrk2Options(path=fake_wrk2(tmp_path, "echo unable to connect; exit 1"), scripts={"compose": script})
    with Wrk2Engine(options, tmp_path) as engine:
        engine.start("http://127.0.0.1:1", constant(), duration_s=1.0)
        with pytest.raises(LoadError, match=r"code 1.*unable to connect"):
            engine.finish(10.0)
    with pytest.raises(LoadError, match="printed no results"):
        parse_output("Running 12s test", "compose", 1, 12)


def test_what_wrk2_cannot_do_is_refused_with_the_reason(tmp_path: Path, script: Path) -> None:
    engine = Wrk2Engine(Wrk2Options(path=fake_wrk2(tmp_path, ""), scripts={"compose": script}), tmp_path)
    with pytest.raises(ConfigError, match="does not implement 'normal'"):
        engine.start("http://127.0.0.1:1", constant("normal"), duration_s=1.0)
    with pytest.raises(ConfigError, match="constant rate only"):
        engine.start("u", [Stream("compose", (RateStep(0, 1), RateStep(1, 2)))], duration_s=1.0)
    with pytest.raises(ConfigError, match="no Lua script"):
        engine.start("u", [Stream("home_read", (RateStep(0, 1),))], duration_s=1.0)
    with pytest.raises(ConfigError, match="no requests"):
        engine.start("u", constant(rate_rps=0.0), duration_s=1.0)
    assert not os.path.exists(tmp_path / "commands")


def test_a_missing_binary_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingToolError, match="is not a program"):
        Wrk2Engine(Wrk2Options(path=tmp_path / "wrk2"), tmp_path)
    with pytest.raises(ConfigError, match="no wrk2 binary"):
        Wrk2Engine(Wrk2Options(), tmp_path)


def test_the_verb_runs_it_and_tells_its_traps(tmp_path: Path, script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "output.txt"
    output.write_text(OUTPUT)
    wrk2 = fake_wrk2(tmp_path, f"cat {output}")
    words = ["--engine=wrk2", "--plan=constant", "--mix={compose: 1}", "--duration-s=12", f"--out={tmp_path / 'runs'}"]
    assignments = ["--set", f"wrk2.path={wrk2}", "--set", f"wrk2.scripts={{compose: {script}}}"]
    assert run_verb(VERB, [*words, *assignments, "--target=127.0.0.1:8080"]) == 0
    assert (tmp_path / "commands").read_text().split()[-1] == "http://127.0.0.1:8080"
    said = capsys.readouterr()
    assert "first 10 s" in said.err
    summary = json.loads(said.out.splitlines()[-1])
    assert summary["types"]["compose"]["answered"] == 11904
    (table,) = (tmp_path / "runs").glob("*/compose-raw.hgrm")
    assert "Total count    =         2000" in table.read_text()
