"""What cannot be judged is refused in one line before anything is made: a reference, and scenarios of one name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rayjobs.cli.main import main
from tests.support.paths import DATA


def refused(words: list[str], out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line; nothing was made."""
    assert main([*words, "--out", str(out)]) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert said.out == ""
    assert not out.exists()
    return line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["demo", "--testbed", "simulated"], "'random_two' is not judged (judge.reference)"),
        (["train"], "'random_two' is not judged (judge.reference)"),
        (["evaluate", "--policies", "least_conn,round_robin"], "'random_two' is not judged (judge.reference)"),
        (["evaluate", "--policies", "least_conn,random_two=nginx_fair"],
         "'random_two' cannot be judged on the simulated testbed: another balancer"),
        (["evaluate", "--policies", "least_conn,random_two=peak_ewma", "--testbed", "simulated,live"],
         "'random_two' cannot be judged on the live testbed: the simulator's own"),
    ],
)  # fmt: skip
def test_a_reference_that_will_not_be_judged_is_refused_at_once(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*words, "--set", "judge.reference=random_two"]
    assert told in refused(given, tmp_path / "runs", capsys)


def test_scenarios_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They would share a folder, and the second would get the deadlines and blocks of the first."""
    first, second, named = (tmp_path / f"{name}.yaml" for name in ("a", "b", "mine"))
    first.write_text("name: mine\nload: 0.5\n")
    second.write_text("name: mine\nload: 0.9\n")
    named.write_text("name: S3\nload: 0.5\n")
    calibration = tmp_path / "own" / "calibration.json"
    calibration.parent.mkdir()
    shutil.copy(DATA / "runs" / "calibration.json", calibration)
    later = Path(shutil.copy(calibration, calibration.with_name("later.json")))
    for pair in ((first, second), ("S3", named), (calibration, later), ("S3", "s3")):
        line = refused(["evaluate", "--scenario", ",".join(map(str, pair))], tmp_path / "runs", capsys)
        assert all(str(one) in line for one in pair)
        assert "give each its own name" in line
    twice = ["evaluate", "--scenario", "S3", "--testbed", "simulated,simulated"]
    assert "a testbed is given twice" in refused(twice, tmp_path / "runs", capsys)
