"""A sweep whose driver or head is killed goes on with --resume and repeats nothing; PBT, Optuna, storage by URL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.support.orphans import SESSION, processes_with, wait_gone
from tests.support.paths import ROOT
from tuning.policy.bundle import load_bundle
from tuning.search.population import EXCHANGES
from tuning.search.space import structure

pytestmark = [pytest.mark.ray, pytest.mark.slow]
TRIALS = 3
PATIENCE_S = 900
"""A guard and no bar: all of these end within minutes, but not beside other work that takes the cores first."""
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


RATE = "training.algorithm.learning_rate"


def finished(folder: Path, experiment: str = "sweep") -> dict[str, list[dict[str, Any]]]:
    """Trials that have trained all their steps and have ended by the sweep's own record, with all their results.

    Results alone do not tell: the last one is stored some moments before the checkpoint that belongs to it.
    """
    ended = recorded(folder, experiment)
    found = {trial: rows for trial, rows in reported(folder, experiment).items() if trial in ended}
    return {trial: rows for trial, rows in found.items() if rows and rows[-1]["steps_trained"] >= 960}


def recorded(folder: Path, experiment: str) -> set[str]:
    """Trials that have ended, by the newest record of the sweep; none while that is being written."""
    try:
        (path,) = sorted(folder.glob(f"{experiment}/experiment_state-*.json"))[-1:]
        trials = [json.loads(state) for state, _ in json.loads(path.read_text())["trial_data"]]
    except ValueError:
        return set()
    return {trial["relative_logdir"] for trial in trials if trial["status"] == "TERMINATED"}


def reported(folder: Path, experiment: str = "sweep") -> dict[str, list[dict[str, Any]]]:
    """Trial → every result it has reported."""
    paths = folder.glob(f"{experiment}/trial-*/result.json")
    return {path.parent.name: [json.loads(line) for line in path.read_text().splitlines()] for path in paths}


def ended(process: subprocess.Popen[str]) -> str:
    """Everything that a sweep printed; it must have ended well."""
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    return output


def one_finished(
    process: subprocess.Popen[str], folders: Callable[[], Iterable[Path]], experiment: str = "sweep"
) -> dict[str, Any]:
    """`finished`, as soon as there is one in one of the folders."""
    deadline_s = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline_s:
        if found := next((finished(folder, experiment) for folder in folders()), {}):
            return found
        time.sleep(0.05)
    process.kill()
    raise AssertionError(process.communicate()[0])


@pytest.mark.parametrize("victim", ["driver", "head"])
def test_a_killed_sweep_is_resumed_and_no_finished_trial_is_repeated(tmp_path: Path, victim: str) -> None:
    first = start("--out", str(tmp_path), *(f"--set={setting}" for setting in SETTINGS))
    before = one_finished(first, tmp_path.iterdir)
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
    already = len(recorded(folder, "sweep"))
    output = ended(start("--resume", str(folder)))
    assert f"{TRIALS - already} of {TRIALS} trials in" in output
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_says_how_to_go_on_and_confirms_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """Before its first result, and while it is resumed: Tune would take Ctrl-C and return as if it had ended."""
    arguments = ["--out", str(tmp_path), *(f"--set={setting}" for setting in SETTINGS if "confirm" not in setting)]
    for _ in range(2):
        sweep, said = start(*arguments), ""
        assert sweep.stdout is not None
        while "sweep: started" not in said:
            line = sweep.stdout.readline()
            assert line, said
            said += line
        sweep.send_signal(number)
        said += sweep.communicate(timeout=PATIENCE_S)[0]
        assert sweep.returncode == 128 + number, said
        (folder,) = tmp_path.iterdir()
        assert f"go on with: deepsched sweep --resume {folder}\n" in said
        assert "confirm live: started" not in said
        assert wait_gone(f"{tmp_path}/", 20.0) == {}
        arguments = ["--resume", str(folder)]


def test_finalists_that_are_interrupted_go_on_and_repeat_nothing(tmp_path: Path) -> None:
    own = ("search.trials=2", "search.finalists=2", "search.seeds=2")
    first = start("--out", str(tmp_path), *(f"--set={setting}" for setting in (*SETTINGS, *own)))
    before = one_finished(first, tmp_path.iterdir, "finalists")
    first.send_signal(signal.SIGINT)
    said, _ = first.communicate(timeout=PATIENCE_S)
    (folder,) = tmp_path.iterdir()
    assert first.returncode == 128 + signal.SIGINT, said
    assert f"go on with: deepsched sweep --resume {folder}\n" in said
    assert len(before) < 4
    searched = reported(folder)
    output = ended(start("--resume", str(folder)))
    assert reported(folder) == searched
    after = finished(folder, "finalists")
    assert len(after) == 4
    for trial, rows in before.items():
        assert after[trial] == rows, f"{trial} was trained again"
    table = pd.read_parquet(folder / "finalists.parquet")
    assert (table["error"] == "").all()
    assert sorted(table.groupby("trial")["seed"].nunique()) == [2, 2]
    assert set(table["trial"]) == set(searched)
    best = load_bundle(folder / "best").provenance
    winner = table.groupby("trial")["score"].mean().idxmax()
    assert best["searched_as"] == winner
    assert best["seed"] in set(table["seed"])
    assert f"2 fresh seeds and validated on the same 2 fresh episodes, {winner} is the best" in output
    assert "0 of 2 trials in" in output
    usage = json.loads((folder / "usage.json").read_text())
    assert [one["ended"] for one in (*usage["earlier"], usage)] == [2, 0]


@pytest.mark.parametrize("cpus_each", [0.5, 1.0], ids=["all at once", "in turn"])
def test_a_population_exchanges_and_never_changes_what_a_network_is_built_for(tmp_path: Path, cpus_each: float) -> None:
    own = (
        "search.scheduler=pbt", "search.concurrent=0", f"search.trial_cpus={cpus_each}", "search.trials=4",
        "search.base.training.steps=4800",
    )  # fmt: skip
    ended(start("--out", str(tmp_path), *(f"--set={setting}" for setting in (*SETTINGS, *own))))
    (folder,) = tmp_path.iterdir()
    exchanges = [json.loads(line) for line in (folder / "sweep" / EXCHANGES).read_text().splitlines()]
    assert exchanges
    for *_, copied, new in exchanges:
        assert structure(new) == structure(copied)
        assert 0.0001 <= new[RATE] <= 0.001
    results = reported(folder)
    trained = {trial: {row["config"][RATE] for row in rows} for trial, rows in results.items()}
    changed = [trial for trial, rates in trained.items() if len(rates) > 1]
    assert changed
    assert {new[RATE] for *_, new in exchanges} & {rate for trial in changed for rate in trained[trial]}
    for rows in results.values():
        assert all(row["clusters"] == row["config"]["encoder.clusters"] for row in rows)
        assert rows[-1]["steps_trained"] >= 4800
    processes = {row["pid"] for rows in results.values() for row in rows}
    assert len(processes) <= 4, "an exchange cost a new process"
    table = pd.read_parquet(folder / "sweep.parquet")
    assert (table["error"] == "").all()
    for bundle, clusters in zip(table["bundle"], table["encoder.clusters"], strict=True):
        assert load_bundle(Path(bundle)).problem.encoder.clusters == clusters


def test_an_optuna_sweep_on_storage_by_url_is_resumed_from_there(tmp_path: Path) -> None:
    out, store = tmp_path / "out", tmp_path / "store"
    own = ("search.search=optuna", "search.scheduler=asha", f"storage=file://{store}")
    first = start("--out", str(out), *(f"--set={setting}" for setting in (*SETTINGS, *own)))
    before = one_finished(first, lambda: store.glob("*"))
    os.kill(first.pid, signal.SIGKILL)
    first.communicate(timeout=200)
    assert wait_gone(f"{tmp_path}/", 20.0) == {}
    assert len(before) < TRIALS
    (folder,) = out.iterdir()
    ended(start("--resume", str(folder)))
    after = reported(store / folder.name)
    assert len(after) == TRIALS
    for trial, rows in before.items():
        assert after[trial] == rows, f"{trial} was trained again"
    assert not (folder / "sweep").exists()
    assert (store / folder.name / "report.html").exists()
    table = pd.read_parquet(store / folder.name / "sweep.parquet")
    assert len(table) == TRIALS
    assert (table["error"] == "").all()
    assert load_bundle(folder / "best").problem.encoder.clusters == table["clusters"].iloc[0]
    assert 0 < json.loads((folder / "usage.json").read_text())["busy_share"] <= 1


def test_a_space_that_cannot_be_is_refused_before_anything_starts(tmp_path: Path) -> None:
    done = start("--out", str(tmp_path), "--set", "search.space={encoder.clusterz: [2]}")
    output, _ = done.communicate(timeout=100)
    assert done.returncode == 2
    assert "did you mean 'encoder.clusters'" in output
    assert "Traceback" not in output
