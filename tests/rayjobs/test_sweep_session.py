"""What a sweep says about its own session is not about the sessions before it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actuators.errors import DataError
from rayjobs.runs.usage import CpuUsage
from rayjobs.sweep import pace, write_usage


def test_the_pace_is_that_of_the_trials_that_ended_in_this_session() -> None:
    usage = CpuUsage("no session")
    assert pace(1, 32, usage).startswith("1 of 32 trials in 0.0 minutes, which used ")
    assert pace(32, 32, usage).startswith("32 trials in 0.0 minutes, which used ")


def test_the_usage_of_earlier_sessions_stays(tmp_path: Path) -> None:
    for ended in (31, 1, 0):
        write_usage(tmp_path / "usage.json", {"trials": 32, "ended": ended})
    last = json.loads((tmp_path / "usage.json").read_text())
    assert last.pop("earlier") == [{"trials": 32, "ended": 31}, {"trials": 32, "ended": 1}]
    assert last == {"trials": 32, "ended": 0}


@pytest.mark.parametrize("text", ["", "[]", "3", '{"earlier": 3}'])
def test_another_file_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "usage.json").write_text(text)
    with pytest.raises(DataError, match="not the usage of a sweep"):
        write_usage(tmp_path / "usage.json", {"trials": 32})
