"""A training goes on from its newest checkpoint with all that it had, also after a kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.utils.replay_buffers.episode_replay_buffer import EpisodeReplayBuffer

from actuators.errors import ConfigError, DataError
from envs.environment.actions import ActionOptions
from envs.environment.problem import DecisionOptions
from envs.scenarios.lookup import training_mixture
from tests.support.problems import observed
from tuning.learning.trainer import Trainer
from tuning.options import AlgorithmOptions, HeldOutOptions, TrainingOptions

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray")]


def options(steps: int, held_out: HeldOutOptions, **algorithm: object) -> TrainingOptions:
    chosen = AlgorithmOptions.model_validate({"batch_steps": 96, "minibatch_steps": 48, **algorithm})
    return TrainingOptions(steps=steps, environments=8, episode_steps=10, algorithm=chosen, held_out=held_out)


def trained(chosen: TrainingOptions, folder: Path, **action: object) -> Trainer:
    decision = DecisionOptions(action=ActionOptions.model_validate(action))
    trainer = Trainer(replace(observed().problem, options=decision), chosen, folder, 1)
    trainer.train_simulated(training_mixture(("S2", "S3"), duration_s=12.0))
    return trainer


def test_more_steps_continue_what_early_stopping_ended(tmp_path: Path) -> None:
    """With a ruinous step size training stops early; the same number of steps again changes nothing."""
    held_out = HeldOutOptions(every_steps=96, patience=2, episodes=4)
    chosen = options(480, held_out, learning_rate=0.5)
    first = trained(chosen, tmp_path)
    stopped = first.curve[-1].step
    assert stopped < 480
    again = trained(chosen, tmp_path)
    assert again.curve == first.curve
    longer = trained(chosen.model_copy(update={"steps": 960}), tmp_path)
    assert longer.curve[-1].step >= stopped + 2 * 96
    assert longer.curve[: len(first.curve)] == first.curve
    for name, tensor in first.net().state_dict().items():
        assert tensor.equal(longer.net().state_dict()[name]), name


def test_a_kill_while_a_checkpoint_is_saved_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = options(96, HeldOutOptions(every_steps=0))
    first = trained(chosen, tmp_path)
    longer, shorter = (chosen.model_copy(update={"steps": steps}) for steps in (192, 96))

    class Killed(BaseException):
        """Ends a run as a signal does."""

    def torn(algo: Algorithm, path: str) -> None:
        for name in ("algorithm_state.pkl", "class_and_ctor_args.pkl"):
            (Path(path) / name).write_bytes(b"torn")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Algorithm, "save_to_path", torn)
        for again in (longer, shorter):
            with pytest.raises(Killed):
                trained(again, tmp_path)
    second = trained(longer, tmp_path)
    assert [row.step for row in second.curve] == [96, 192]
    assert second.curve[:1] == first.curve
    assert second.checkpoint is not None
    # What the kills left, and the older checkpoint, are gone.
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"simulated.json", second.checkpoint.name}


def test_a_replay_buffer_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = options(200, HeldOutOptions(every_steps=0), name="sac", updates_per_step=0.02, learning_starts_steps=100)
    first = trained(chosen, tmp_path, kind="continuous")
    found: list[int] = []
    add = EpisodeReplayBuffer.add

    def noted(buffer: EpisodeReplayBuffer, *arguments: Any) -> None:
        found.append(buffer.get_num_timesteps())
        add(buffer, *arguments)

    monkeypatch.setattr(EpisodeReplayBuffer, "add", noted)
    more = first.curve[-1].step + 100
    second = trained(chosen.model_copy(update={"steps": more}), tmp_path, kind="continuous")
    assert second.curve[-1].step >= more
    assert found[0] == first.curve[-1].step
    assert second.checkpoint is not None
    for path in second.checkpoint.glob("replay*"):
        path.unlink()
    with pytest.raises(DataError, match="the checkpoint has no replay buffer"):
        trained(chosen.model_copy(update={"steps": more + 100}), tmp_path, kind="continuous")


def test_too_few_episodes_for_a_proof_are_refused_before_the_training(tmp_path: Path) -> None:
    chosen = options(96, HeldOutOptions(every_steps=0))
    for episodes in (1, 3):
        with pytest.raises(ConfigError, match=r"on 2 scenarios \(training\.proof_episodes\); set 4 or more"):
            trained(chosen.model_copy(update={"proof_episodes": episodes}), tmp_path)
    assert list(tmp_path.iterdir()) == []
    trainer = trained(chosen.model_copy(update={"proof_episodes": 4}), tmp_path)
    assert trainer.proof is not None
    assert (tmp_path / "proof.json").is_file()
