"""The end-to-end demo as a user runs it: to its end, interrupted, and killed; nothing is left or half-written."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.support.orphans import processes_with
from tests.support.started import GONE_S, Started
from tuning.judging.evaluation import SCHEMA_PATH
from tuning.policy.bundle import load_bundle

pytestmark = [pytest.mark.demo, pytest.mark.ray, pytest.mark.nginx]
# What is asked here does not depend on the length of the stages.
SHORT = ("--set", "training.steps=2000", "--set", "judge.measure_s=1")
POLICIES = ("least_conn", "inverse_latency", "round_robin", "expected_delay_static", "expected_delay", "learned")


def quick_demo(out: Path, *arguments: str) -> Started:
    return Started(out, "demo", "--quick", "--out", str(out), *arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Started:
    """A quick demo that ran to its end."""
    demo = quick_demo(tmp_path_factory.mktemp("demo") / "runs", "--seed", "3", *SHORT)
    assert demo.process.wait(300) == 0, demo.log.read_text()
    return demo


def test_it_leaves_nothing_running(finished: Started) -> None:
    assert finished.left() == {}


def test_the_run_folder_is_complete(finished: Started) -> None:
    names = {path.name for path in finished.folder.iterdir()}
    assert names >= {
        "config.yaml", "command.txt", "versions.txt", "snapshots.jsonl", "deadlines.json", "encoder.npz",
        "progress.csv", "checkpoints", "bundle", "evaluation.json", "windows.parquet", "report.html",
    }  # fmt: skip
    assert not list(finished.folder.rglob("*.tmp*"))
    config = yaml.safe_load((finished.folder / "config.yaml").read_text())
    assert (config["seed"], config["quick"]) == (3, True)
    assert load_bundle(finished.folder / "bundle").provenance["seed"] == 3
    phases = [line.split(",")[0] for line in (finished.folder / "progress.csv").read_text().splitlines()[1:]]
    assert set(phases) == {"simulated", "live"}
    snapshots = [json.loads(line) for line in (finished.folder / "snapshots.jsonl").read_text().splitlines()]
    assert len(snapshots) >= 10
    assert "compose_backend" in snapshots[0]


def test_every_request_is_accounted_for(finished: Started) -> None:
    evaluation = json.loads((finished.folder / "evaluation.json").read_text())
    jsonschema.validate(evaluation, json.loads(SCHEMA_PATH.read_text()))
    assert set(evaluation["policies"]) == set(POLICIES)
    for policy in evaluation["policies"].values():
        accounts = policy["accounting"]
        assert policy["requests"] == accounts["sent"] > 0
        assert accounts["difference"] == accounts["nginx_requests"] - accounts["sent"]
        assert accounts["difference"] == 0 or accounts["explanation"]
    assert evaluation["windows"]


def test_the_table_and_the_page_show_all_policies(finished: Started) -> None:
    text = finished.log.read_text()
    page = (finished.folder / "report.html").read_text()
    for policy in POLICIES:
        assert policy in text
        assert policy in page
    assert re.search(r"learned against least_conn", text)
    assert f"report: {finished.folder}/report.html" in text


def test_progress_says_what_is_next(finished: Started) -> None:
    text = finished.log.read_text()
    for stage, following in (("start", "observe"), ("observe", "train"), ("judge", "end")):
        assert re.search(rf"{stage}: started, about .*; next: {following}", text)


@pytest.mark.parametrize(
    ("number", "stage", "code"),
    [
        pytest.param(signal.SIGINT, "observe: started", 130, id="Ctrl-C", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "train: started", 143, id="SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_an_interrupt_ends_everything_and_says_what_was_kept(
    tmp_path: Path, number: signal.Signals, stage: str, code: int
) -> None:
    demo = quick_demo(tmp_path / "runs")
    demo.wait_until(stage, 120)
    snapshots = demo.folder / "snapshots.jsonl"
    demo.wait_for(lambda: snapshots.exists() and snapshots.stat().st_size > 0, "no snapshot")
    demo.process.send_signal(number)
    assert demo.process.wait(GONE_S) == code, demo.log.read_text()
    assert demo.left() == {}
    text = demo.log.read_text()
    assert f"kept in {demo.folder}" in text
    assert "Traceback" not in text
    assert not list(demo.folder.rglob("*.tmp*"))
    for line in snapshots.read_text().splitlines():
        json.loads(line)


@pytest.mark.slow
@pytest.mark.drill
def test_a_killed_parent_takes_everything_along(tmp_path: Path) -> None:
    demo = quick_demo(tmp_path / "runs")
    demo.wait_until("observe: started", 120)
    assert any("nginx" in command for command in processes_with(f"{demo.out}/").values())
    demo.process.kill()
    demo.process.wait()
    assert demo.left() == {}


@pytest.mark.slow
def test_equal_seeds_give_equal_numbers_on_simulated_testbeds(tmp_path: Path) -> None:
    results = []
    for name in ("one", "two"):
        demo = quick_demo(tmp_path / name, "--testbed", "simulated", "--seed", "7")
        assert demo.process.wait(200) == 0, demo.log.read_text()
        evaluation = json.loads((demo.folder / "evaluation.json").read_text())
        results.append((evaluation["policies"], (demo.folder / "progress.csv").read_text()))
    assert results[0] == results[1]
