"""`deepsched holding tune`: what it writes and says, how it goes on, and what `holding set` takes of it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from envs.calibration.tuned_holding import TunedHolding
from rayjobs.cli.config import load_options
from rayjobs.cli.main import main
from rayjobs.holding.tune import VERB
from tests.support.option_reads import OptionReads
from tests.support.waiting import PATIENCE_S, wait_until

CALIBRATION = "tests/data/runs/calibration.json"
QUICK = ("search.searches=1", "search.trials=2", "search.draws=2", "search.held_out=4", "search.seconds=20")
NUMBERS = "tests/tuning/search/test_holding_numbers.py::test_what_is_searched_are_numbers_of_the_rule"


def words(folder: Path, *more: str, quick: tuple[str, ...] = QUICK) -> list[str]:
    settings = [word for text in quick for word in ("--set", text)]
    return ["holding", "tune", "--calibration", CALIBRATION, "--out", str(folder), *settings, *more]


def test_numbers_are_written_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(tmp_path / "runs", "--workers", "4", "--set", "objective.goodput=5")) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    out = capsys.readouterr().out
    assert "simulated, 4 held-out systems" in out
    assert "expected_delay: objective" in out
    assert "expected_delay  home_read_backend: mean" in out
    assert f"numbers: {folder / 'holding.json'}" in out
    found = TunedHolding.load(folder)
    assert ("nothing was gained" in out) == (not found.gained)
    assert TunedHolding.load(folder / "holding.json") == found


def test_every_option_is_read(tmp_path: Path) -> None:
    flags = {"calibration": CALIBRATION, "out": tmp_path / "runs"}
    with OptionReads(load_options(VERB.options, assignments=QUICK, flags=flags)) as reads:
        reads.hand_over(reads.options.numbers, NUMBERS)
        assert VERB.run(reads.options) == 0
    assert reads.unread() == []


@pytest.mark.slow
def test_an_interruption_keeps_what_is_done(tmp_path: Path) -> None:
    many = ("search.searches=1", "search.trials=500", *QUICK[2:])
    command = [sys.executable, "-m", "rayjobs.holding", *words(tmp_path / "runs", quick=many)[1:]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: any((tmp_path / "runs").glob("*/trials.jsonl")))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    (folder,) = (tmp_path / "runs").iterdir()
    assert process.returncode == 130
    assert f"go on with: deepsched holding tune --resume {folder}" in err
    assert not (folder / "holding.json").exists()
    done = len((folder / "trials.jsonl").read_text().splitlines())
    config = (folder / "config.yaml").read_text().replace("trials: 500", f"trials: {max(done + 1, 2)}")
    (folder / "config.yaml").write_text(config)
    assert main(["holding", "tune", "--resume", str(folder)]) == 0
    assert len((folder / "trials.jsonl").read_text().splitlines()) == done + 1


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--calibration", "nowhere.json"], "nowhere.json"),
        (["--importance", "{nobody: 2}"], "no group 'nobody'"),
        (["--set", "objective.groups={home_read: 2}"], "did you mean 'home_read_backend'?"),
        (
            ["--set", "objective.mean=0", "--set", "objective.p99=0", "--set", "objective.goodput=0"],
            "every weight is 0",
        ),
        (["--set", "load_balancers=2"], "load_balancers"),
        (["--set", "search.trials=0"], "search.trials"),
        (["--resume", "nowhere"], "not the folder of a run"),
    ],
)
def test_a_wrong_option_is_one_line_and_leaves_nothing(
    more: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tmp_path / "runs", *more)) == 2
    err = capsys.readouterr().err
    assert named in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_without_a_system_it_says_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["holding", "tune"]) == 2
    assert "give calibration.json" in capsys.readouterr().err
