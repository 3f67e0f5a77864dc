"""From a recording of somebody's system to a bundle for it: any groups, names and servers, by the verbs alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from envs.calibration.result import Calibration
from rayjobs.cli.main import main
from tests.support.own_systems import METHOD, SYSTEMS, record_own, their_weights
from tuning.policy.adviser import Adviser
from tuning.policy.bundle import load_bundle

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray")]

FIT = ("calibrate.workers=2", "calibrate.replicas=1", "calibrate.bootstraps=2", "calibrate.rounds=2")
TRAIN = (
    "training.steps=48", "training.environments=2", "training.episode_steps=6", "training.held_out.every_steps=0",
    "training.algorithm.batch_steps=48", "training.algorithm.minibatch_steps=24", "training.algorithm.epochs=1",
    "observe.duration_s=15", "observe.explore_s=8", "observe.encoder.clusters=2", "observe.encoder.restarts=1",
    "judge.rounds=2", "judge.measure_s=4", "judge.warm_up_s=1",
)  # fmt: skip
JUDGE = ("judge.rounds=2", "judge.measure_s=4", "judge.warm_up_s=1")


def run(out: Path, *words: str, sets: tuple[str, ...] = ()) -> Path:
    """The folder of a run of the verb."""
    known = set(out.glob("*"))
    assert main([*words, "--out", str(out), *(word for text in sets for word in ("--set", text))]) == 0
    (folder,) = set(out.glob("*")) - known
    return folder


DRILLED = ("1x2", "1x3", "2x5", "1x12", "3x3 names")
"""`make test` runs the system with several groups and shared servers; these run in the drills."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in DRILLED else n for n in SYSTEMS])
def test_a_recording_becomes_a_bundle_of_that_system(name: str, tmp_path: Path) -> None:
    topology, out = SYSTEMS[name], tmp_path / "runs"
    windows = record_own(tmp_path / "own.jsonl", topology)
    file = run(out, "calibrate", str(tmp_path / "own.jsonl"), sets=(*FIT, f"calibrate.method={METHOD}"))
    calibration = Calibration.load(file / "calibration.json")
    assert calibration.topology == topology
    assert calibration.today == their_weights(topology)
    trained = run(out, "train", "--scenario", str(file / "calibration.json"), sets=TRAIN)
    bundle = load_bundle(trained / "bundle")
    assert bundle.problem.topology == topology
    assert bundle.problem.deadlines_s.tolist() == pytest.approx(calibration.deadlines_s)
    assert "today" in json.loads((trained / "evaluation.json").read_text())["policies"]
    advice = Adviser(bundle).advise(windows[-1:])
    assert advice.policy is not None
    assert (np.array(advice.policy.as_weights().values > 0) == topology.mask).all()
    judged = run(
        out, "evaluate", str(trained / "bundle"), "--scenario", str(file / "calibration.json"),
        "--policies", "today,least_conn,expected_delay", sets=JUDGE,
    )  # fmt: skip
    found = json.loads((judged / "evaluation.json").read_text())
    assert set(found["policies"]) == {"today", "least_conn", "expected_delay", "learned"}
    assert [tuple(group["servers"]) for group in found["groups"]] == [group.servers for group in topology.groups]
