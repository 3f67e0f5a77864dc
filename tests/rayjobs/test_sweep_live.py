"""A sweep whose trials train on live testbeds of their own, and what is said when there is no room for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from actuators.errors import CapacityError
from rayjobs.runs.local_ray import local_ray
from tests.support.orphans import wait_gone
from tests.support.paths import ROOT
from tuning.policy.bundle import load_bundle
from tuning.search.space import SearchOptions
from tuning.search.sweep import preflight

pytestmark = [pytest.mark.ray, pytest.mark.nginx, pytest.mark.slow]
STEPS = 16
SETTINGS = (
    "search.testbed=live", "search.trials=2", "search.concurrent=2", "search.trial_cpus=0.5", "search.scheduler=none",
    "search.search=random", f"search.base.training.steps={STEPS}", "search.base.training.interval_s=0.5",
    "search.base.training.episode_steps=4", "search.base.training.algorithm.batch_steps=8",
    "search.base.training.algorithm.minibatch_steps=8", "search.checkpoint_every=1", "search.validation_s=3",
    "search.space={encoder.clusters: [2, 3]}", "observe.duration_s=12", "observe.explore_s=8", "observe.skip_s=1",
    "observe.window_s=0.5", "confirm.best=0",
)  # fmt: skip


def test_every_trial_owns_a_live_testbed_and_ends_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rayjobs.sweep", "--out", str(tmp_path), *(f"--set={one}" for one in SETTINGS)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = tmp_path.iterdir()
    table = pd.read_parquet(folder / "sweep.parquet")
    assert len(table) == 2
    assert (table["error"] == "").all()
    assert (table["steps_trained"] >= STEPS).all()
    assert np.isfinite(table["score"]).all()
    assert (table["art_per_request"] >= 0).all()
    # NGINX, servers and load engines of both trials were there, each in a folder of its own.
    trials = {path.name.rsplit("-", 1)[0] for path in (folder / "testbeds").iterdir() if path.name != "observe"}
    assert trials == set(table["trial"])
    assert load_bundle(folder / "best").provenance["trial"] in trials
    assert wait_gone(f"{tmp_path}/", 20.0) == {}


def test_too_few_testbeds_are_said_before_anything_is_queued() -> None:
    with local_ray(testbeds=1):
        options = SearchOptions(testbed="live", concurrent=2, trial_cpus=0.5)
        with pytest.raises(CapacityError, match=r"room for 1: proxy 1/2, client 1/2, server 3/6"):
            preflight(options, servers=3)
        assert preflight(options.model_copy(update={"concurrent": 0}), servers=3) == 1


def test_live_trials_of_this_machine_run_one_at_a_time() -> None:
    with local_ray(testbeds=2):
        assert preflight(SearchOptions(testbed="live", trial_cpus=0.5), servers=3) == 1
