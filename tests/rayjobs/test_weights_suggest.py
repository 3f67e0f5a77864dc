"""`deepsched weights suggest` on simulated systems, and files that it or `weights snippet` cannot write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from envs.calibration.result import Calibration
from rayjobs.cli.main import main

QUICK = ("--seeds", "2", "--duration-s", "30")


def test_a_suggestion_leaves_the_rest_of_the_server_lines_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "stock.json"
    assert main(["weights", "suggest", "S2b", *QUICK, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "  server server-1:80 weight=100;\n" in told
    assert "Other parameters of your server lines, and servers that are not listed, stay as they are.\n" in told
    assert len(json.loads(out.read_text())["weights"]) == 3


def test_the_title_says_what_today_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded = Calibration.load(Path("tests/data/runs/calibration.json"))
    recorded.changed({"method": "round_robin", "load_balancers": 8}).save(tmp_path / "calibration.json")
    assert main(["weights", "suggest", str(tmp_path / "calibration.json"), *QUICK]) == 0
    told = " ".join(capsys.readouterr().out.split())  # the title is as wide as the table
    assert "simulated, over today's round_robin, 8 workers that share no state" in told


@pytest.mark.parametrize("verb", ["suggest", "snippet"])
@pytest.mark.parametrize("place", ["missing/file", "file/below", "folder"])
def test_a_place_that_cannot_be_written_is_one_line_at_once(
    verb: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    config = tmp_path / "nginx.conf"
    config.write_text("events {}\nhttp { upstream app { server 127.0.0.1:9; } }\n")
    words = ["S2b", *QUICK] if verb == "suggest" else ["--set", f"reload.config={config}"]
    assert main(["weights", verb, *words, "--out", str(tmp_path / place)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()  # no progress: nothing was simulated
    assert line.startswith(f"deepsched weights {verb}: cannot write: ")
    assert line.endswith(f"({tmp_path / place}); choose another --out")
