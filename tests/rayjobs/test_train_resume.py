"""`deepsched train` goes on with an earlier run, and learns offline from what it records itself."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from actuators.errors import ConfigError
from envs.environment.phase import ObserveOptions
from rayjobs.cli.config import dump_yaml, load_options
from rayjobs.sweep import SweepOptions
from rayjobs.train import TrainOptions, run
from tuning.judging.plan import BlockOptions
from tuning.options import AlgorithmOptions, LearningOptions

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray")]


def options(folder: Path, **algorithm: object) -> TrainOptions:
    learning = AlgorithmOptions.model_validate({"batch_steps": 48, "minibatch_steps": 24, "epochs": 1, **algorithm})
    return TrainOptions(
        seed=5,
        out=folder,
        observe=ObserveOptions(duration_s=40.0, window_s=1.0),
        training=LearningOptions(steps=96, environments=4, episode_steps=6, algorithm=learning),
        judge=BlockOptions(rounds=2, measure_s=5.0),
    )


def steps_of(folder: Path) -> list[str]:
    return [row["step"] for row in csv.DictReader((folder / "progress.csv").open())]


def test_a_run_goes_on_in_its_folder_with_its_options(tmp_path: Path) -> None:
    assert run(options(tmp_path)) == 0
    (folder,) = tmp_path.iterdir()
    assert steps_of(folder) == ["48", "96"]
    longer = load_options(TrainOptions, assignments=["training.steps=192"], flags={"resume": folder})
    assert (longer.training.environments, longer.seed) == (4, 5)
    with pytest.raises(ConfigError, match="'seed' is 6, but 5 in the run that goes on"):
        load_options(TrainOptions, flags={"resume": folder, "seed": 6})
    assert run(longer) == 0
    assert steps_of(folder) == ["48", "96", "144", "192"]
    assert list(tmp_path.iterdir()) == [folder]
    assert load_options(TrainOptions, file=folder / "config.yaml") == longer.changed({"resume": None})


def test_a_storage_is_given_again_with_its_credentials(tmp_path: Path) -> None:
    url = "s3://KEY:SECRET@bucket/runs"
    began = SweepOptions(storage=url)
    (tmp_path / "config.yaml").write_text(dump_yaml(began))
    assert "SECRET" not in (tmp_path / "config.yaml").read_text()
    assert load_options(SweepOptions, flags={"resume": tmp_path, "storage": url}).storage == url
    with pytest.raises(ConfigError, match="'storage' is s3://other/runs"):
        load_options(SweepOptions, flags={"resume": tmp_path, "storage": "s3://KEY:SECRET@other/runs"})


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not the folder of a run"):
        run(TrainOptions(resume=tmp_path))


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"proof_episodes": 7}, r"7 episodes prove nothing on 4 scenarios \(training\.proof_episodes\); set 8 or more"),
        (
            {
                "algorithm": {"name": "dqn"},
                "decision": {"action": {"kind": "ratios", "joint": True, "ratios": [1, 2, 3, 5, 7]}},
            },
            r"joint actions \(decision\.action\.joint\)",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_run_has_a_folder(
    training: dict[str, object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        run(TrainOptions(out=tmp_path, training=LearningOptions.model_validate(training)))
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_on_with_other_episodes_for_its_proof(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(dump_yaml(TrainOptions(training=LearningOptions(proof_episodes=4))))
    with pytest.raises(ConfigError, match="set 8 or more"):
        run(TrainOptions(resume=tmp_path))
    again = load_options(TrainOptions, assignments=["training.proof_episodes=8"], flags={"resume": tmp_path})
    assert again.training.proof_episodes == 8


def test_offline_training_records_what_it_needs(tmp_path: Path) -> None:
    assert run(options(tmp_path, name="bc", recorded_steps=100)) == 0
    (folder,) = tmp_path.iterdir()
    assert (folder / "transitions" / "transitions.parquet").stat().st_size > 0
    assert (folder / "bundle" / "bundle.json").exists()
