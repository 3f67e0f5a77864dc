"""`deepsched calibrate` on snapshots of a live testbed whose speeds are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.topology import social_network
from actuators.contract.window import Window
from actuators.statistics.recording import SnapshotWriter
from actuators.testbed.options import LiveOptions
from actuators.testbed.parts import start_local_testbed
from envs.calibration.result import Calibration
from envs.environment.phase import ObserveOptions, watch
from envs.scenarios.lookup import scenario
from rayjobs.cli.main import main

pytestmark = pytest.mark.nginx

FASTER = "calibrate.workers=4", "calibrate.bootstraps=2", "calibrate.replicas=1", "calibrate.rounds=3"


SCENARIO = replace(scenario("demo", work_scale=4.0), load=0.45, service_cv=0.5)
"""Long service times at a low load: what the machine itself adds matters less."""


def record(path: Path, work_dir: Path) -> None:
    """Fifteen seconds of the scenario under least_conn."""
    options = ObserveOptions(duration_s=15.0, explore_s=0.0, skip_s=1.0)
    with (
        start_local_testbed(social_network(), LiveOptions(), work_dir, seed=1) as testbed,
        SnapshotWriter(path) as writer,
    ):

        def keep(window: Window, fraction: float) -> None:
            snapshot = testbed.latest_snapshot()
            if snapshot is not None:
                writer.write(snapshot)

        watch(testbed, SCENARIO, "least_conn", options, 1, keep)


@pytest.mark.slow
def test_speeds_of_a_live_testbed_are_recovered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path / "snapshots.jsonl", tmp_path / "testbed")
    words = ["calibrate", str(tmp_path), "--out", str(tmp_path / "runs")]
    assert main([*words, *(word for text in FASTER for word in ("--set", text))]) == 0
    out = capsys.readouterr().out
    assert "fitted parameters" in out
    assert "held-out windows" in out
    (file,) = (tmp_path / "runs").glob("calibrate-1-*/calibration.json")
    found = Calibration.load(file).parameters.speeds
    profiles = SCENARIO.script(social_network(), 1).servers
    speeds = np.array([profile.speeds for profile in profiles]).T
    # Relative to the first server; the machine's own delays are part of every answer.
    assert found / found[:, :1] == pytest.approx(speeds / speeds[:, :1], rel=0.4)


def test_a_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", str(tmp_path / "none.jsonl"), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("deepsched calibrate: cannot read: No such file")
