from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rayjobs.cli.main import main


def test_simulate_prints_a_row_per_rule(capsys: pytest.CaptureFixture[str]) -> None:
    command = "simulate --scenario S3 --rules least_conn,true_times --seeds 1,2 --duration-s 30"
    assert main(command.split()) == 0
    out, err = capsys.readouterr()
    assert [re.search(r"\[\d/2\] \w+: \w+", line)[0] for line in err.splitlines()[:4]] == [  # type: ignore[index]
        "[1/2] least_conn: started", "[1/2] least_conn: done", "[2/2] true_times: started", "[2/2] true_times: done",
    ]  # fmt: skip
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows] == ["least_conn", "true_times"]
    assert rows[0][2] == "1.00"
    assert float(rows[1][2]) < 0.85


def test_simulate_refuses_unknown_rules_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--rules", "least_con"]) == 2
    assert capsys.readouterr().err.strip().splitlines() == [
        "deepsched simulate: unknown rule 'least_con'; did you mean 'least_conn'?"
    ]


def test_scenarios_are_listed_and_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["scenarios", "list"]) == 0
    assert "S10" in capsys.readouterr().out
    script, page = tmp_path / "s7.json", tmp_path / "s7.html"
    assert main(["scenarios", "show", "S7", "--json-out", str(script), "--page", str(page)]) == 0
    assert "server 2" in capsys.readouterr().out
    assert json.loads(script.read_text())["name"] == "S7"
    assert "plotly" in page.read_text()[:5_000_000]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--duration-s 10.4", "10.4 s have no interval of 1 s after the first 10 s (duration_s); play at least 11 s"),
        ("--interval-s 500 --duration-s 600",
         "600 s have no interval of 500 s after the first 10 s (duration_s); play at least 1000 s"),
    ],
)  # fmt: skip
def test_simulate_refuses_what_leaves_nothing_to_judge(
    words: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--scenario", "S3", *words.split()]) == 2
    assert capsys.readouterr().err.splitlines() == [f"deepsched simulate: {line}"]
