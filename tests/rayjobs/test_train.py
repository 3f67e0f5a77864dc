"""Training on Ray: equal seeds give equal numbers, the live stretch works, an interrupt leaves whole files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from actuators.errors import CapacityError
from envs.environment.env import BalancingEnv
from envs.environment.phase import ObserveOptions
from envs.scenarios.lookup import training_mixture
from envs.simulator.testbed import SimulatedTestbed
from rayjobs.cli.main import main
from rayjobs.train import TrainOptions, run
from tests.support.problems import demo_scenario, observed
from tests.support.witness import TRAINING, TRAINING_2, training_numbers, unequal
from tuning.judging.plan import BlockOptions
from tuning.learning.trainer import Trainer
from tuning.options import AlgorithmOptions, LearningOptions, ParallelOptions, TrainingOptions

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray")]
SMALL = LearningOptions(
    steps=96, environments=4, episode_steps=6, algorithm=AlgorithmOptions(batch_steps=48, minibatch_steps=24, epochs=2)
)


def train(folder: Path, seed: int) -> Trainer:
    trainer = Trainer(observed().problem, SMALL.extended(TrainingOptions), folder, seed)
    trainer.train_simulated(training_mixture(duration_s=10.0))
    return trainer


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trainer]:
    """Its folder, and what trained there; the live phase below goes on with it."""
    folder = tmp_path_factory.mktemp("first")
    return folder, train(folder, 3)


def test_equal_seeds_give_equal_numbers_and_another_does_not(first: tuple[Path, Trainer], tmp_path: Path) -> None:
    folder, trained = first
    folders = [folder, tmp_path / "second", tmp_path / "other"]
    for further in folders[1:]:
        further.mkdir()
    second, other = (train(further, seed) for further, seed in zip(folders[1:], (3, 4), strict=True))
    assert trained.curve == second.curve
    assert (folders[0] / "progress.csv").read_bytes() == (folders[1] / "progress.csv").read_bytes()
    for name, tensor in trained.net().state_dict().items():
        assert tensor.equal(second.net().state_dict()[name]), name
    assert trained.curve != other.curve
    rows = list(csv.DictReader((folders[0] / "progress.csv").open()))
    assert [row["step"] for row in rows] == ["48", "96"]
    assert list(folders[0].glob("events.out.tfevents.*"))


def test_the_live_phase_starts_from_the_simulated_one(first: tuple[Path, Trainer]) -> None:
    _, trainer = first
    before = {name: tensor.clone() for name, tensor in trainer.net().state_dict().items()}
    testbed = SimulatedTestbed(observed().problem.topology)
    still = AlgorithmOptions(learning_rate=1e-12, batch_steps=4, minibatch_steps=4, epochs=1)
    trainer.train_live(
        lambda: BalancingEnv(
            trainer.problem, lambda: testbed, lambda seed: demo_scenario(), episode_steps=4, closes_testbed=False
        ),
        steps=4,
        algorithm=still,
    )
    assert [row.phase for row in trainer.curve] == ["simulated", "simulated", "live"]
    for name, tensor in trainer.net().state_dict().items():
        assert tensor.allclose(before[name], atol=1e-6), name
    testbed.reset(demo_scenario(), 1)
    testbed.close()


@pytest.mark.slow
def test_the_verb_repeats_itself_to_the_last_digit(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        options = TrainOptions(
            seed=5,
            out=tmp_path / name,
            training=SMALL,
            observe=ObserveOptions(duration_s=40.0, window_s=1.0),
            judge=BlockOptions(rounds=2, measure_s=5.0),
        )
        assert run(options) == 0
        (folder,) = (tmp_path / name).iterdir()
        evaluation = json.loads((folder / "evaluation.json").read_text())
        found.append(
            (evaluation["policies"], (folder / "progress.csv").read_text(), (folder / "deadlines.json").read_text())
        )
        assert {path.name for path in folder.iterdir()} >= {
            "config.yaml", "command.txt", "versions.txt", "bundle", "checkpoints", "progress.csv", "windows.parquet",
        }  # fmt: skip
    assert found[0] == found[1]


def test_live_env_runners_without_a_cpu_each_are_refused_before_anything_starts(tmp_path: Path) -> None:
    options = TrainOptions(out=tmp_path, testbed="live", parallel=ParallelOptions(testbeds=4, env_runners=4))
    with pytest.raises(CapacityError, match=r"need 4 CPUs, the cluster has 3 \(parallel\.env_runners\)"):
        run(options)
    (folder,) = tmp_path.iterdir()
    assert not (folder / "testbeds").exists()


@pytest.mark.parametrize(("part", "command"), [("training", TRAINING), ("training_2", TRAINING_2)])
def test_a_short_training_gives_the_recorded_numbers(part: str, command: list[str], tmp_path: Path) -> None:
    assert main([*command, "--out", str(tmp_path)]) == 0
    (run,) = tmp_path.iterdir()
    assert unequal(part, training_numbers(run)) == []
