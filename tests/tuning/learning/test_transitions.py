"""Transitions come back from parquet as whole episodes of the spaces' types, or are refused in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium.spaces import Box, MultiDiscrete

from actuators.errors import DataError
from tuning.learning.recordings import FILE, Transition, read_transitions, write_transitions

OBSERVATIONS = Box(-np.inf, np.inf, (3, 2), np.float32)
ACTIONS = Box(-1.0, 1.0, (4,), np.float32)


def transition(episode: str, step: int, last: bool = False) -> Transition:
    """Every number says of which step it is."""
    here, there = (np.full((3, 2), float(number), np.float32) for number in (step, step + 1))
    return Transition(episode, here, np.full(4, step / 10, np.float32), -float(step), there, last)


def written(folder: Path, *transitions: Transition) -> Path:
    assert write_transitions(iter(transitions), folder) == len(transitions)
    return folder


def test_episodes_whose_rows_alternate_come_back_whole(tmp_path: Path) -> None:
    rows = [transition(name, step, step == 4) for step in range(5) for name in ("left", "right")]
    left, right = read_transitions([written(tmp_path, *rows)], OBSERVATIONS, ACTIONS)
    for episode in (left, right):
        assert len(episode) == 5
        assert not episode.terminated
        assert episode.observations.shape == (6, 3, 2)
        assert episode.observations[:, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
        assert episode.actions[:, 0].tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
        assert episode.rewards.tolist() == [0, -1, -2, -3, -4]
        assert {values.dtype for values in (episode.observations, episode.actions, episode.rewards)} == {
            np.dtype(np.float32)
        }


def test_rows_that_do_not_follow_each_other_are_parts(tmp_path: Path) -> None:
    steps = [(0, False), (1, False), (5, True), (6, False)]  # a gap, and a cut
    rows = [transition("one", step, last) for step, last in steps]
    parts = read_transitions([written(tmp_path, *rows)], OBSERVATIONS, ACTIONS)
    assert [part.rewards.tolist() for part in parts] == [[0, -1], [-5], [-6]]


def test_several_files_and_choices_among_ratios(tmp_path: Path) -> None:
    for number in range(2):
        row = transition("one", number)
        written(tmp_path, Transition("one", row.observation, np.array([4, 0, 26]), 1.0, row.after, True))
        (tmp_path / FILE).rename(tmp_path / f"part-{number}.parquet")
    parts = read_transitions([tmp_path], OBSERVATIONS, MultiDiscrete([27, 27, 27]))
    assert [part.observations[0, 0, 0] for part in parts] == [0, 1]
    assert parts[0].actions.tolist() == [[4, 0, 26]]
    assert parts[0].actions.dtype == np.int64


def test_what_does_not_fit_is_refused_in_words(tmp_path: Path) -> None:
    folder = written(tmp_path / "records", transition("one", 0), transition("one", 1))
    with pytest.raises(DataError, match=r"12 numbers in 2 rows, the space has shape \(3, 5\)"):
        read_transitions([folder], Box(-1, 1, (3, 5)), ACTIONS)
    with pytest.raises(DataError, match="no transitions"):
        read_transitions([tmp_path / "nothing.parquet"], OBSERVATIONS, ACTIONS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no transitions"):
        read_transitions([tmp_path / "empty"], OBSERVATIONS, ACTIONS)
    table = pq.read_table(folder / FILE)
    pq.write_table(table.drop_columns(["rewards"]), tmp_path / "less.parquet")
    with pytest.raises(DataError, match="rewards"):
        read_transitions([tmp_path / "less.parquet"], OBSERVATIONS, ACTIONS)
    nan = table.set_column(table.column_names.index("rewards"), "rewards", pa.array([np.nan, 1.0]))
    pq.write_table(nan, tmp_path / "nan.parquet")
    with pytest.raises(DataError, match="values that are not finite"):
        read_transitions([tmp_path / "nan.parquet"], OBSERVATIONS, ACTIONS)
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="no transitions"):
        read_transitions([tmp_path / "text.parquet"], OBSERVATIONS, ACTIONS)
    with pytest.raises(DataError, match="no transitions"):
        write_transitions(iter(()), tmp_path)
