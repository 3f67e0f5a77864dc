"""Recorded transitions as parquet, one row each, in the columns that RLlib reads; and back, as whole episodes.

Observations have two dimensions here, lists of lists in a file. RLlib 2.60's own reader (Ray Data) hands these on as
arrays of objects, of which no learner connector that evaluates a network (MARWIL's advantages) can make a tensor.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from actuators.errors import DataError
from actuators.files import write_atomic

FILE = "transitions.parquet"
_REMEDY = "give a folder that `tuning.transitions_file` wrote, of a problem with the same observations and actions"


@dataclass(frozen=True, eq=False)
class Transition:
    """What was seen, done and gained between two decisions; the last of an episode is cut, not terminal."""

    episode: str
    observation: NDArray[np.float32]
    action: NDArray[Any]
    reward: float
    after: NDArray[np.float32]
    last: bool


@dataclass(frozen=True, eq=False)
class Recorded:
    """Consecutive transitions of one episode.

    Attributes:
        observations: ``[steps + 1, …]``; the last one is where the last action led.
        actions: ``[steps, …]``, of the action space's type.
        rewards: ``[steps]``.
        terminated: whether nothing comes after; otherwise the recording was only cut there.
    """

    observations: NDArray[np.float32]
    actions: NDArray[Any]
    rewards: NDArray[np.float32]
    terminated: bool

    def __len__(self) -> int:
        return len(self.rewards)


def write_transitions(transitions: Iterator[Transition], folder: Path) -> int:
    """Writes `transitions.parquet`; how many there are. Raises DataError when there are none."""
    found = list(transitions)
    if not found:
        raise DataError("no transitions", where=str(folder), remedy="record more windows without faults")
    rows = pa.list_(pa.list_(pa.float32()))
    table = pa.table(
        {
            "eps_id": [one.episode for one in found],
            "obs": pa.array([one.observation.tolist() for one in found], rows),
            "actions": [one.action.tolist() for one in found],
            "rewards": np.array([one.reward for one in found], dtype=np.float32),
            "new_obs": pa.array([one.after.tolist() for one in found], rows),
            "terminateds": [False] * len(found),
            "truncateds": [one.last for one in found],
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / FILE, buffer.getvalue())
    return len(found)


def read_transitions(paths: Sequence[Path], observations: gym.Space[Any], actions: gym.Space[Any]) -> list[Recorded]:
    """All episodes of the parquet files, or of the folders of them; one is split where its rows do not follow
    each other.

    Raises DataError for a missing file or column, other shapes than the spaces', no rows, or numbers that are none.
    """
    files = [file for path in paths for file in (sorted(path.glob("*.parquet")) if path.is_dir() else [path])]
    if not files:
        raise DataError("no transitions", where=", ".join(map(str, paths)), remedy=_REMEDY)
    return [episode for file in files for episode in _episodes(file, observations, actions)]


def _episodes(file: Path, observations: gym.Space[Any], actions: gym.Space[Any]) -> Iterator[Recorded]:
    try:
        table = pq.read_table(file).combine_chunks()
        names = np.array(table["eps_id"].to_pylist())
        before, after = (_array(table[name], observations) for name in ("obs", "new_obs"))
        done = _array(table["actions"], actions)
        rewards = table["rewards"].to_numpy().astype(np.float32)
        over = np.array([table[name].to_pylist() for name in ("terminateds", "truncateds")], dtype=bool)
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise DataError(f"no transitions: {error}", where=str(file), remedy=_REMEDY) from error
    if not len(names) or not all(np.isfinite(values).all() for values in (before, after, done, rewards)):
        raise DataError("no transitions, or some without numbers", where=str(file), remedy="record anew")
    # Of environments that were stepped together the rows alternate.
    order = np.argsort(names, kind="stable")
    names, before, after, done, rewards, over = (
        names[order], before[order], after[order], done[order], rewards[order], over[:, order],
    )  # fmt: skip
    follows = (names[1:] == names[:-1]) & ~over[:, :-1].any(axis=0)
    follows &= (after[:-1] == before[1:]).all(axis=tuple(range(1, before.ndim)))
    starts = [0, *(np.flatnonzero(~follows) + 1).tolist(), len(names)]
    for start, stop in pairwise(starts):
        seen = np.concatenate([before[start:stop], after[stop - 1 : stop]])
        yield Recorded(seen, done[start:stop], rewards[start:stop], bool(over[0, stop - 1]))


def _array(column: Any, space: gym.Space[Any]) -> NDArray[Any]:
    """Lists of any depth → ``[rows, *space.shape]``. Raises ValueError when they do not fit."""
    rows = len(column)
    values = column.combine_chunks()
    while hasattr(values.type, "value_type"):
        values = values.flatten()
    found: NDArray[Any] = values.to_numpy(zero_copy_only=False).astype(space.dtype)
    if space.shape is None or len(found) != rows * int(np.prod(space.shape)):
        raise ValueError(f"{len(found)} numbers in {rows} rows, the space has shape {space.shape}")
    return found.reshape(rows, *space.shape)
