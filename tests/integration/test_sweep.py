"""A sweep whose driver or head is killed goes on with --resume and repeats nothing that had finished."""

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
from orphans import SESSION, processes_with, wait_gone

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


def ended(process: subprocess.Popen[str]) -> str:
    """Everything that a sweep printed; it must have ended well."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def one_finished(process: subprocess.Popen[str], out: Path) -> dict[str, list[dict[str, object]]]:
    """`finished`, as soon as there is one."""
    deadline_s = time.monotonic() + 250
    while process.poll() is None and time.monotonic() < deadline_s:
        if found := next((finished(folder) for folder in out.iterdir()), {}):
            return found
        time.sleep(0.05)
    process.kill()
    raise AssertionError(process.communicate()[0])


@pytest.mark.parametrize("victim", ["driver", "head"])
def test_a_killed_sweep_is_resumed_and_no_finished_trial_is_repeated(tmp_path: Path, victim: str) -> None:
    first = start("--out", str(tmp_path), *(f"--set={setting}" for setting in SETTINGS))
    before = one_finished(first, tmp_path)
    if victim == "driver":
        os.kill(first.pid, signal.SIGKILL)
    else:
        (head,) = (pid for pid, command in processes_with(SESSION).items() if "gcs/gcs_server" in command)
        os.kill(head, signal.SIGKILL)
    said, _ = first.communicate(timeout=200)
    assert first.returncode != 0, said
    assert wait_gone(f"{tmp_path}/", 20.0) == {}
    (folder,) = tmp_path.iterdir()
    assert len(before) < TRIALS
    output = ended(start("--resume", str(folder)))
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
