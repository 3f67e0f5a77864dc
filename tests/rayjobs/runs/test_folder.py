"""A run's folder and provenance."""

import sys
from pathlib import Path

import pytest

from actuators.errors import ConfigError
from actuators.options import Options
from rayjobs.cli.config import load_options
from rayjobs.runs import folder as runs
from rayjobs.runs.folder import RunFolder, command_line
from tests.support.paths import ROOT


class TrainOptions(Options):
    """Of a run."""

    seed: int = 3
    """Seed."""
    out: Path | None = None
    """Folder."""


def test_a_folder_can_be_retold(tmp_path: Path) -> None:
    options = TrainOptions(out=tmp_path)
    run = RunFolder.create(tmp_path, "train", 3, options, ["--out", "my runs"])
    assert run.path.parent == tmp_path
    assert run.path.name.startswith("train-3-20")
    assert load_options(TrainOptions, file=run.path / "config.yaml") == options
    assert (run.path / "command.txt").read_text() == "deepsched train --out 'my runs'\n"
    versions = dict(line.split(": ", 1) for line in (run.path / "versions.txt").read_text().splitlines())
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"time", "commit", "machine", "nginx", "torch", "ray", "numpy"} <= set(versions)


def test_two_runs_in_one_second_get_two_folders(tmp_path: Path) -> None:
    paths = {RunFolder.create(tmp_path, "train", 3, TrainOptions(), []).path for _ in range(3)}
    assert len(paths) == 3


def test_files_are_written_below_it(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "train", 3, TrainOptions(), [])
    assert run.write("bundle/bundle.json", "{}") == run.path / "bundle" / "bundle.json"
    assert run.file("checkpoints", "1").parent.is_dir()


def test_an_unwritable_place_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write in this folder.*--out"):
        RunFolder.create(tmp_path / "file", "train", 3, TrainOptions(), [])


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["/x/.venv/bin/deepsched", "train", "--seed", "3"], "deepsched train --seed 3"),
        ([str(ROOT / "rayjobs" / "train.py"), "--seed", "3"], "python -m rayjobs.train --seed 3"),
        ([str(ROOT / "rayjobs" / "steer" / "__main__.py"), "status"], "python -m rayjobs.steer status"),
        (["/x/rayjobs/study.py", "--seed", "3"], "python /x/rayjobs/study.py --seed 3"),
    ],
)
def test_the_command_is_as_typed(monkeypatch: pytest.MonkeyPatch, argv: list[str], line: str) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    assert command_line("train") == line


def test_without_nginx_or_git_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runs.shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "rayjobs" / "runs" / "folder.py"))
    assert runs.versions()["nginx"] == "not installed"
    assert runs.commit() == "unknown"
