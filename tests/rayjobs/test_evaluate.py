"""`deepsched evaluate`, `compare`, `reproduce` as typed: several scenarios, a resumed run, the same numbers again."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import jsonschema
import pyarrow.parquet as pq
import pytest

from rayjobs.cli.main import main
from tuning.judging.evaluation import SCHEMA_PATH

pytestmark = pytest.mark.thorough

SHORT = [
    "--set", "judge.rounds=2", "--set", "judge.measure_s=3", "--set", "judge.warm_up_s=1",
    "--set", "observe.duration_s=6", "--set", "observe.explore_s=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    policies = "round_robin,least_conn,expected_delay,shortest_delay,nginx_fair"
    words = ["--scenario", "S2b,S4", "--policies", policies]
    assert main(["evaluate", *words, "--seeds", "2", "--out", str(out), *SHORT]) == 0
    (folder,) = out.iterdir()
    return folder


def contents(folder: Path) -> dict[str, dict[str, object]]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/evaluation.json"))}


def test_each_scenario_has_its_evaluation_and_all_of_them_one_page_and_one_table(run: Path) -> None:
    found = contents(run)
    assert list(found) == ["S2b-simulated", "S4-simulated"]
    schema = json.loads(SCHEMA_PATH.read_text())
    for content in found.values():
        jsonschema.validate(content, schema)
        assert content["learned"] == "expected_delay"
        assert content["seeds"] == 2
        assert list(content["policies"]) == ["least_conn", "round_robin", "shortest_delay", "expected_delay"]  # type: ignore[call-overload]
    rows = pq.read_table(run / "evaluation.parquet").to_pylist()
    assert {row["scenario"] for row in rows} == {"S2b", "S4"}
    page = (run / "report.html").read_text()
    assert all(text in page for text in ("All scenarios", "S2b, simulated", "part-1-latency-all", "seeds 1 to 2"))


def former_names(path: Path) -> None:
    """A file as a version wrote it in which the policy `expected_delay` was called `idle`."""
    path.write_text(re.sub(r'"(policy|learned)": "expected_delay"', r'"\1": "idle"', path.read_text()))


def test_a_run_is_resumed_where_it_was_broken_off(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run)
    path = run / "S4-simulated" / "blocks.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    # Broken off between the seeds: policies start anew there, so nothing that they had learned is lost.
    path.write_text("".join(lines[:8]))
    former_names(path)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("- expected_delay", "- idle"))
    assert "- idle\n" in config.read_text()
    (run / "S4-simulated" / "evaluation.json").unlink()
    assert main(["evaluate", "--resume", str(run)]) == 0
    after = contents(run)
    assert after["S4-simulated"]["policies"] == before["S4-simulated"]["policies"]
    assert len(path.read_text().splitlines()) == len(lines) == 16
    said = capsys.readouterr()
    assert "left out on the simulated testbed: nginx_fair" in said.err
    assert "geometric mean over 2 scenarios, simulated: × least_conn" in said.out


def learns(block: dict[str, object]) -> bool:
    return block["policy"] == "expected_delay"


def test_policies_that_learn_begin_a_broken_seed_again_and_the_numbers_are_those_of_a_whole_run(run: Path) -> None:
    before = contents(run)["S4-simulated"]["policies"]
    path = run / "S4-simulated" / "blocks.jsonl"
    # Broken off in the second round of the second seed, before the block of the one policy that learns.
    lines = path.read_text().splitlines(keepends=True)
    end = next(n for n, line in enumerate(lines) if (block := json.loads(line))["round"] == 3 and learns(block))
    path.write_text("".join(lines[:end]))
    (run / "S4-simulated" / "evaluation.json").unlink()
    assert main(["evaluate", "--resume", str(run)]) == 0
    assert contents(run)["S4-simulated"]["policies"] == before
    again = [json.loads(line) for line in path.read_text().splitlines()[end:]]
    assert [block["round"] for block in again if learns(block)] == [2, 3]
    assert {block["round"] for block in again if not learns(block)} <= {3}


def test_a_run_is_reproduced_to_the_bit_and_not_on_another_seed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    former = Path(shutil.copytree(run, tmp_path / run.name))
    content = former / "S4-simulated" / "evaluation.json"
    former_names(content)
    content.write_text(content.read_text().replace('\n "expected_delay": {', '\n "idle": {'))
    assert '"idle": {' in content.read_text()
    assert main(["reproduce", str(former), "--out", str(tmp_path / "same")]) == 0
    assert capsys.readouterr().out.count("numbers are equal to the bit") == 2
    assert main(["reproduce", str(run), "--seed", "9", "--out", str(tmp_path / "other")]) == 1
    assert "differ" in capsys.readouterr().out
    (other,) = (tmp_path / "other").glob("reproduce-*/evaluate-9-*")
    assert main(["compare", str(run), str(other)]) == 0
    table = capsys.readouterr().out
    assert all(text in table for text in (run.name[:12], "S4, simulated", "expected_delay", "×"))


def test_a_run_becomes_markdown_tables_with_its_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(run), "--markdown", "--metric", "mean_ms,p99_ms"]) == 0
    text = capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["mean", "S2b", "S4", "geometric mean", "p99", "S2b", "S4", "geometric mean"]
    assert rows[0][1:] == ["`least_conn`", "`round_robin`", "`shortest_delay`", "`expected_delay`"]
    policies = contents(run)["S2b-simulated"]["policies"]
    learned = policies["expected_delay"]  # type: ignore[index]
    low, high = learned["intervals"]["mean_ms"]
    assert f"{learned['ratios']['mean_ms']:.2f}×" in rows[1][4]
    assert rows[1][4].startswith("**") == (high < 1)
    assert f"({low:.2f}–" in rows[1][4] or abs(low - 1) < 0.01
    ratios = [content["policies"]["expected_delay"]["ratios"]["mean_ms"] for content in contents(run).values()]  # type: ignore[index]
    assert f"{(ratios[0] * ratios[1]) ** 0.5:.2f}×" in rows[3][4]
    assert "seeds 1–2" in text


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["evaluate", "--policies", "least_conn,roundrobin"], "did you mean 'round_robin'"),
        (["evaluate", "--scenario", "S22"], "unknown scenario 'S22'"),
        (["evaluate", "--policies", "idle,round_robin"], "'least_conn' is not judged"),
        (["evaluate", "no/such/bundle"], "not a bundle"),
        (["evaluate", "--resume", "no-such-run"], "not the folder of a run"),
        (["reproduce", "no-such-run"], "no evaluation in this folder"),
        (["compare", "one"], "two or more"),
    ],
)
def test_a_misuse_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([*words, *(["--out", str(tmp_path)] if words[0] == "evaluate" else [])]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
