"""`deepsched benchmark`: rules, functions and bundles in one table, and the same in a file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envs.study import benchmark
from rayjobs.cli.main import main
from tests.support.paths import ROOT
from tests.support.steering_cases import trained_bundle


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite that takes a second."""
    small = replace(
        benchmark.SUITES["social-1"], name="tiny-1", scenarios=("S3",), seconds=20.0, held_out_seeds=(1001, 1002)
    )
    monkeypatch.setitem(benchmark.SUITES, "tiny-1", small)


def test_everything_that_may_take_part_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained_bundle().save(tmp_path / "mine" / "bundle")
    policies = f"expected_delay,{ROOT}/docs/examples/initial_rule.py,{tmp_path}/mine/bundle"
    assert main(["benchmark", "tiny-1", "--policies", policies, "--out", str(tmp_path / "scores.json")]) == 0
    said = capsys.readouterr()
    for name in ("least_conn", "oracle", "bound", "expected_delay", "initial_rule", "mine"):
        assert name in said.out
    assert "does not say how many steps" in " ".join(said.err.split())
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["benchmark"] == "tiny-1"
    assert scores["entries"]["least_conn"]["total"] == 0.0
    assert scores["entries"]["oracle"]["total"] == pytest.approx(1.0)
    assert len(scores["entries"]["mine"]["index_of_play"][0]) == 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["socal-1"], "did you mean 'social-1'"),
        (["tiny-1", "--policies", "expected_dealy"], "expected_delay"),
        (["tiny-1", "--policies", "nowhere.py"], "no such file"),
        (["tiny-1", "--policies", "nowhere/bundle"], "nowhere/bundle"),
        (["tiny-1", "--policies", "least_conn,least_conn"], "two entries have one name"),
        (["tiny-1", "--policies", "nothing.py"], "return positive numbers"),
        (["tiny-1", "--policies", "oracle.py"], "'oracle' is a reference (--policies oracle.py); rename it"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is called as a reference would have its score without being played."""
    monkeypatch.chdir(tmp_path)
    Path("nothing.py").write_text("def weights(seen, memory): pass\n")
    Path("oracle.py").write_text((ROOT / "docs/examples/initial_rule.py").read_text())
    assert main(["benchmark", *words]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert "Traceback" not in error


def test_a_bundle_is_played_on_the_method_that_it_was_trained_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said_by: dict[str, dict[str, Any]] = {
        "silent": {},
        "train": {"config": {"method": "round_robin", "interval_s": 1.0}},
        "sweep": {"method": "round_robin", "interval_s": 0.5, "config": {"seed": 1}},
        "old": {"config": {"training": {"method": "round_robin"}}},
        "unknown": {"config": {"method": "auto"}},
        "broken": {"config": [1], "interval_s": "soon"},
    }
    for name, provenance in said_by.items():
        replace(trained_bundle(), provenance=provenance).save(tmp_path / name / "bundle")
    policies = ",".join(f"{tmp_path}/{name}/bundle" for name in said_by)
    assert main(["benchmark", "tiny-1", "--policies", policies, "--out", str(tmp_path / "scores.json")]) == 0
    entries = json.loads((tmp_path / "scores.json").read_text())["entries"]
    found = {name: entries[name]["index_of_play"] for name in said_by}
    assert found["train"] == found["sweep"] == found["old"] != found["silent"]
    assert found["silent"] == found["unknown"] == found["broken"]
    remarks = [line for line in capsys.readouterr().err.splitlines() if "trained to decide" in line]
    assert remarks == [f"{tmp_path}/sweep/bundle: trained to decide every 0.5 s, decides every 1 s here"]
