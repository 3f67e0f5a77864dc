"""A sweep whose driver is killed in the middle goes on with --resume; what had finished is not repeated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from orphans import wait_gone

from tuning.bundle import load_bundle

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
TRIALS = 3
SETTINGS = (
    f"search.trials={TRIALS}", "search.concurrent=1", "search.scheduler=none", "search.search=random",
    "search.base.training.steps=960", "search.base.training.environments=8", "search.base.training.episode_steps=20",
    "search.base.training.algorithm.batch_steps=240", "search.validation_episodes=2", "search.validation_s=10",
    "search.space={encoder.clusters: [2, 3], training.algorithm.learning_rate: {low: 0.0001, high: 0.001}}",
    "observe.duration_s=30", "observe.explore_s=10", "confirm.best=0",
)  # fmt: skip


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rayjobs.sweep", *arguments]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finished(folder: Path) -> dict[str, list[dict[str, object]]]:
    """Trials that have trained all their steps, with every result they reported."""
    found = {}
    for path in folder.glob("sweep/trial-*/result.json"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        if rows and rows[-1]["steps_trained"] >= 960:
            found[path.parent.name] = rows
    return found


def test_a_killed_driver_is_resumed_and_no_finished_trial_is_repeated(tmp_path: Path) -> None:
    first = start("--out", str(tmp_path), *(f"--set={setting}" for setting in SETTINGS))
    deadline_s = time.monotonic() + 200
    before: dict[str, list[dict[str, object]]] = {}
    while not before:
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
        before = next((finished(folder) for folder in tmp_path.iterdir()), {})
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert wait_gone(f"{tmp_path}/") == {}
    (folder,) = tmp_path.iterdir()
    assert len(before) < TRIALS
    second = start("--resume", str(folder))
    output, _ = second.communicate(timeout=300)
    assert second.returncode == 0, output
    table = pd.read_parquet(folder / "sweep.parquet")
    assert len(table) == TRIALS
    assert (table["steps_trained"] == 960).all()
    assert table["score"].is_monotonic_decreasing
    assert (table["error"] == "").all()
    after = finished(folder)
    for trial, rows in before.items():
        assert after[trial] == rows, f"{trial} was trained again"
    bundle = load_bundle(folder / "best")
    assert bundle.problem.encoder.clusters == table["clusters"].iloc[0]
    assert bundle.provenance["options"]["encoder.clusters"] == table["encoder.clusters"].iloc[0]
    assert "report.html" in output
    assert list(folder.glob("sweep/trial-*/events.out.tfevents.*"))


def test_a_space_that_cannot_be_is_refused_before_anything_starts(tmp_path: Path) -> None:
    done = start("--out", str(tmp_path), "--set", "search.space={encoder.clusterz: [2]}")
    output, _ = done.communicate(timeout=100)
    assert done.returncode == 2
    assert "did you mean 'encoder.clusters'" in output
    assert "Traceback" not in output
