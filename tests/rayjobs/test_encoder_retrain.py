"""`deepsched encoder recalibrate BUNDLE --retrain-steps N`: the policy is trained further with the new mixture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from actuators.contract.control import Weights
from actuators.contract.window import Window
from envs.mixture.fit import window_samples
from envs.mixture.refit import SAMPLES, save_samples
from envs.simulator.testbed import SimulationOptions
from rayjobs.cli.main import main
from tests.support.problems import TOPOLOGY, demo_scenario, observed, problem
from tests.support.recordings import record
from tuning.options import HeldOutOptions, ModelOptions, TrainingOptions
from tuning.policy.bundle import Bundle, check_bundle, load_bundle
from tuning.policy.model import net_for

MODEL = ModelOptions(hidden=8)


def trained_bundle(run: Path, algorithm: str) -> Path:
    """A bundle that says it was trained with this algorithm, beside what its mixture was fitted to."""
    training = TrainingOptions.model_validate({
        "environments": 4, "episode_steps": 6, "scenarios": ["S2"], "held_out": HeldOutOptions(every_steps=0),
        "algorithm": {"name": algorithm, "batch_steps": 48, "minibatch_steps": 24, "epochs": 1},
    })  # fmt: skip
    net = net_for(problem(), MODEL)
    torch.nn.init.normal_(net.action[-1].weight)
    Bundle(net, problem(), MODEL, {"config": {"training": training.model_dump(mode="json")}}).save(run / "bundle")
    seen = observed().windows
    known = window_samples([*seen.equal, *seen.exploring], TOPOLOGY, problem().deadlines_s, "server")
    save_samples(run / SAMPLES, known, problem().encoder.names)
    return run / "bundle"


def slower(path: Path) -> list[Window]:
    """Recorded of a system that takes 40 ms longer than the one that was observed."""
    equal = Weights.from_shares(TOPOLOGY, np.ones((3, 3)))
    return record(path, demo_scenario(), 5, lambda window: equal, 50, "least_conn", SimulationOptions(overhead_ms=40.0))


def acts(bundle: Bundle, windows: list[Window]) -> np.ndarray:
    """The weights that its policy sets in these windows, one after the other."""
    policy, observer = bundle.policy(), bundle.problem.observer()
    return np.array([policy.act(observer.observe_window(window)).as_weights().values for window in windows])


def recalibrate(folder: Path, snapshots: Path, out: Path) -> int:
    return main([
        "encoder", "recalibrate", str(folder), f"--snapshots={snapshots}", "--retrain-steps=96", f"--out={out}",
        "--seed=4", "--work-scale=1",
    ])  # fmt: skip


@pytest.mark.ray
@pytest.mark.slow
def test_the_policy_goes_on_learning_with_the_new_mixture_and_comes_back(tmp_path: Path) -> None:
    folder, snapshots = trained_bundle(tmp_path, "ppo"), tmp_path / "slower.json"
    windows = slower(snapshots)
    before = load_bundle(folder)
    old_acts = acts(before, windows)

    assert recalibrate(folder, snapshots, tmp_path / "runs") == 0
    after = load_bundle(check_bundle(folder))
    assert after.problem.encoder.clusters > before.problem.encoder.clusters
    # Of another width where the observation enters; everywhere else trained, not only widened or begun anew.
    old, new = before.net.arrays(), after.net.arrays()
    for name in ("encoder.2.weight", "action.0.weight", "action.2.weight", "value.0.weight", "log_std"):
        moved = np.abs(new[name] - old[name]).max()
        assert 0 < moved < 0.1, name
    assert np.isfinite(acts(after, windows)).all()
    (told,) = after.provenance["recalibrations"]
    assert told["retrain_steps"] == 96
    (run,) = (tmp_path / "runs").iterdir()
    assert told["run"] == str(run)
    steps = [line.split(",")[1] for line in (run / "progress.csv").read_text().splitlines()]
    assert steps[1:] == ["48", "96"]

    assert main(["observe", f"--rollback={folder}"]) == 0
    back = load_bundle(check_bundle(folder))
    assert (acts(back, windows) == old_acts).all()
    assert "recalibrations" not in back.provenance


def test_what_was_learned_from_records_is_not_trained_on_a_simulation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, snapshots = trained_bundle(tmp_path, "bc"), tmp_path / "slower.json"
    slower(snapshots)
    before = (folder / "policy.safetensors").read_bytes()
    assert recalibrate(folder, snapshots, tmp_path / "runs") == 2
    assert "bc learned this policy from records" in capsys.readouterr().err
    assert (folder / "policy.safetensors").read_bytes() == before
    assert not (tmp_path / "runs").exists()
