"""`deepsched reproduce`: the verb of a saved run, and what it says of live runs that nothing can be compared of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actuators.errors import ConfigError
from rayjobs.cli.main import main
from rayjobs.evaluate import VERB, EvaluateOptions
from rayjobs.reproduce import saved_verb
from tests.support.paths import DATA


def saved(folder: Path, command: str, content: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "command.txt").write_text(command + "\n")
    (folder / "config.yaml").write_text("scenario: [S2]\n")
    if content is not None:
        (folder / "evaluation.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("name", "command", "verb"),
    [
        ("evaluate-1-T", "deepsched evaluate --scenario S3", "evaluate"),
        ("mine", "python -m rayjobs.train --seed 3", "train"),
        ("evaluate-1-T", "deepsched reproduce runs/evaluate-1-T", "evaluate"),
        ("demo-0-T", "python -m rayjobs.reproduce train --out evaluate", "demo"),
    ],
)
def test_the_verb_of_a_run_is_never_reproduce(name: str, command: str, verb: str, tmp_path: Path) -> None:
    assert saved_verb(saved(tmp_path / name, command)) == verb


def test_the_folder_around_a_run_that_was_made_again_names_no_verb(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names no verb"):
        saved_verb(saved(tmp_path / "reproduce-0-T", "deepsched reproduce runs/evaluate-1-T"))


@pytest.mark.parametrize(
    ("interval", "status", "told"),
    [
        (None, 1, "S2, live: nothing can be compared: 2 ratios have no interval in one of the runs"),
        ([0.8, 1.2], 0, "S2, live: all 1 ratios are within both runs' intervals; 1 ratios have no interval"),
    ],
)
def test_live_runs_agree_by_intervals_and_by_nothing_else(
    interval: list[float] | None, status: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    content = json.loads((DATA / "runs" / "evaluation.json").read_bytes())
    content["testbed"] = "live"
    assert set(content["policies"]) == {"least_conn", "expected_delay"}
    content["policies"]["expected_delay"]["ratios"]["mean_ms"] = 1.0
    content["policies"]["expected_delay"]["intervals"] |= {"mean_ms": interval, "p99_ms": None}
    old = saved(tmp_path / "evaluate-7-T", "deepsched evaluate --testbed live", content)

    def again(options: EvaluateOptions) -> int:
        assert options.out is not None
        saved(options.out / "evaluate-7-U", "deepsched reproduce", content)
        return 0

    monkeypatch.setattr("rayjobs.reproduce.load_verb", lambda name: replace(VERB, run=again))
    assert main(["reproduce", str(old), "--out", str(tmp_path / "again")]) == status
    assert told in capsys.readouterr().out
