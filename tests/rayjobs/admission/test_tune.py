"""`deepsched admission tune`: what it writes and says, how it goes on, and what `admission set` takes of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from actuators.contract.admission import AdmissionNumbers
from actuators.files import write_json
from envs.admission.tuned import TunedNumbers
from envs.calibration.admission import calibrated_admission
from envs.calibration.options import AdmissionPlan
from envs.calibration.result import Calibration
from rayjobs.admission.tune import VERB
from rayjobs.cli.config import load_options
from rayjobs.cli.main import main
from tests.support.option_reads import OptionReads
from tests.support.problems import problem
from tests.support.waiting import PATIENCE_S, wait_until
from tuning.options import ModelOptions
from tuning.policy.bundle import Bundle, load_bundle
from tuning.policy.model import net_for

CALIBRATION = "tests/data/runs/calibration.json"
QUICK = ("search.searches=1", "search.trials=2", "search.draws=8", "search.held_out=16")
NUMBERS = "tests/tuning/search/test_admission_numbers.py::test_every_searched_number_is_one_of_the_rule"


def words(folder: Path, *more: str, quick: tuple[str, ...] = QUICK) -> list[str]:
    settings = [word for text in quick for word in ("--set", text)]
    return ["admission", "tune", "--calibration", CALIBRATION, "--out", str(folder), *settings, *more]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    Bundle(net_for(problem(), ModelOptions()), problem(), ModelOptions(), {}).save(folder)
    return folder


def test_numbers_are_written_told_and_carried_by_the_bundle(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load_bundle(bundle).admission is None
    assert main(words(tmp_path / "runs", "--bundle", str(bundle))) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    out = capsys.readouterr().out
    assert "simulated, 16 held-out systems of family H around yours" in out
    assert "without admission" in out
    assert f"numbers: {folder / 'admission.json'}" in out
    found = TunedNumbers.load(folder)
    assert ("nothing was gained" in out) == (not found.gained)
    loaded = load_bundle(bundle)
    assert loaded.admission == found == TunedNumbers.load(bundle)
    loaded.save(tmp_path / "copy")
    assert load_bundle(tmp_path / "copy").admission == found
    assert len(json.loads((folder / "searches.json").read_text())) == 1
    plan = AdmissionPlan(numbers_file=folder)
    assert calibrated_admission(Calibration.load(Path(CALIBRATION)), plan, 0.0).numbers == found.numbers


def test_every_option_is_read(tmp_path: Path, bundle: Path) -> None:
    given = {"calibration": CALIBRATION, "out": tmp_path / "runs", "bundle": bundle}
    with OptionReads(load_options(VERB.options, assignments=QUICK, flags=given)) as reads:
        reads.hand_over(reads.options.numbers, NUMBERS)
        assert VERB.run(reads.options) == 0
    assert reads.unread() == []
    (folder,) = (tmp_path / "runs").iterdir()
    with OptionReads(load_options(VERB.options, flags={"resume": folder})) as reads:
        assert VERB.run(reads.options) == 0


@pytest.mark.slow
def test_an_interruption_keeps_what_is_done(tmp_path: Path) -> None:
    many = ("search.searches=1", "search.trials=500", "search.draws=8", "search.held_out=16")
    command = [sys.executable, "-m", "rayjobs.admission", *words(tmp_path / "runs", quick=many)[1:]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: any((tmp_path / "runs").glob("*/trials.jsonl")))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    (folder,) = (tmp_path / "runs").iterdir()
    assert process.returncode == 130
    assert f"go on with: deepsched admission tune --resume {folder}" in err
    assert not (folder / "admission.json").exists()
    done = len((folder / "trials.jsonl").read_text().splitlines())
    # As if it had been begun with fewer trials, so that it soon ends.
    config = (folder / "config.yaml").read_text().replace("trials: 500", f"trials: {max(done + 1, 2)}")
    (folder / "config.yaml").write_text(config)
    assert main(["admission", "tune", "--resume", str(folder)]) == 0
    assert len((folder / "trials.jsonl").read_text().splitlines()) == done + 1
    assert TunedNumbers.load(folder).seed == 1


def test_a_search_goes_on_with_the_numbers_that_it_began_with(tmp_path: Path) -> None:
    before = AdmissionNumbers(most=3.0, least=0.7, start=2.0)
    given = tmp_path / "before.json"
    tuned = TunedNumbers(
        rule=AdmissionPlan().rule, numbers=before, groups=Calibration.load(Path(CALIBRATION)).groups, gained=True,
        gain=0.1, low=0.05, high=0.15, goodput=0.9, without=0.8, draws=16, seed=1,
    )  # fmt: skip
    write_json(given, tuned.model_dump(mode="json"))
    assert main(words(tmp_path / "runs", "--numbers-file", str(given))) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    found = TunedNumbers.load(folder)
    given.unlink()
    (folder / "admission.json").unlink()
    assert main(["admission", "tune", "--resume", str(folder)]) == 0
    assert TunedNumbers.load(folder) == found


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--rule", "none"], "'none' has no numbers"),
        (["--calibration", "nowhere.json"], "nowhere.json"),
        (["--importance", "{nobody: 2}"], "no group 'nobody'"),
        (["--bundle", "nowhere"], "nowhere"),
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
    assert main(["admission", "tune"]) == 2
    assert "give calibration.json" in capsys.readouterr().err
