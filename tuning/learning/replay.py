"""The replay buffer of SAC and DQN beside RLlib's checkpoint, which lacks it; `tuning.learning.trainer` calls this.

Without it a training that goes on would learn at once from the few steps since then.
"""

from __future__ import annotations

import pickle
from pathlib import Path

from ray.rllib.algorithms.algorithm import Algorithm

from actuators.errors import DataError
from actuators.files import replacing

_FILE = "replay.pkl"


def save_replay(algo: Algorithm, folder: Path) -> None:
    """Writes the buffer to the checkpoint in `folder`. Raises OSError."""
    with replacing(folder / _FILE) as path, path.open("wb") as file:
        pickle.dump(algo.local_replay_buffer.get_state(), file)


def load_replay(algo: Algorithm, folder: Path) -> None:
    """Fills the empty buffer of a new algorithm. Raises DataError for a checkpoint without one."""
    path = folder / _FILE
    if not path.exists():
        raise DataError(
            "the checkpoint has no replay buffer", where=str(path), remedy="begin a new run; it will be saved there"
        )
    # As trusted as RLlib's part of the checkpoint, which is pickled, too.
    with path.open("rb") as file:
        algo.local_replay_buffer.set_state(pickle.load(file))
