"""Recorded transitions for offline learning: from windows or simulation, to parquet and back, to RLlib's learners.

Replaces RLlib 2.60's pipeline (Ray Data), which starts an actor for every pass over the records (10 CPU seconds of
imports), reads 2-D observations as arrays of objects and computes MARWIL's value targets with the first network only.
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
import torch
from numpy.typing import NDArray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer
from ray.rllib.offline.offline_data import OfflineData

from actuators.contract.window import Window
from actuators.errors import DataError
from actuators.files import write_atomic
from envs.environment.problem import DecisionProblem
from envs.environment.rollout import explore_baseline
from envs.environment.vector_env import NextScript
from tuning.options import TrainingOptions

FILE = "transitions.parquet"
_REMEDY = "give a folder written by `tuning.learning.recordings` for a problem with the same observations and actions"


@dataclass(frozen=True, eq=False)
class Transition:
    """One step between two decisions; the last step of an episode is truncated, not terminal."""

    episode: str
    observation: NDArray[np.float32]
    action: NDArray[Any]
    reward: float
    after: NDArray[np.float32]
    last: bool


@dataclass(frozen=True, eq=False)
class RecordedEpisode:
    """Consecutive transitions of one episode.

    Attributes:
        observations: ``[steps + 1, …]``; the last one follows the last action.
        actions: ``[steps, …]``, of the action space's type.
        rewards: ``[steps]``.
        terminated: whether the episode ended in a terminal state; otherwise it was truncated.
    """

    observations: NDArray[np.float32]
    actions: NDArray[Any]
    rewards: NDArray[np.float32]
    terminated: bool

    def __len__(self) -> int:
        return len(self.rewards)


def write_transitions(transitions: Iterator[Transition], folder: Path) -> int:
    """Writes `transitions.parquet`, a row per transition in RLlib's columns, and returns the number of rows.

    Raises:
        DataError: there are no transitions.
    """
    recorded = list(transitions)
    if not recorded:
        raise DataError("no transitions", where=str(folder), remedy="record more windows without faults")
    nested_lists = pa.list_(pa.list_(pa.float32()))
    table = pa.table(
        {
            "eps_id": [one.episode for one in recorded],
            "obs": pa.array([one.observation.tolist() for one in recorded], nested_lists),
            "actions": [one.action.tolist() for one in recorded],
            "rewards": np.array([one.reward for one in recorded], dtype=np.float32),
            "new_obs": pa.array([one.after.tolist() for one in recorded], nested_lists),
            "terminateds": [False] * len(recorded),
            "truncateds": [one.last for one in recorded],
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / FILE, buffer.getvalue())
    return len(recorded)


def read_transitions(
    paths: Sequence[Path], observations: gym.Space[Any], actions: gym.Space[Any]
) -> list[RecordedEpisode]:
    """Reads all episodes of parquet files, or of folders of them; splits an episode where rows are not consecutive.

    Raises:
        DataError: a file or column is missing, a shape differs from the spaces', there are no rows, or a value is
            not finite.
    """
    files = [file for path in paths for file in (sorted(path.glob("*.parquet")) if path.is_dir() else [path])]
    if not files:
        raise DataError("no transitions", where=", ".join(map(str, paths)), remedy=_REMEDY)
    return [episode for file in files for episode in _episodes(file, observations, actions)]


class RecordedData(OfflineData):
    """All records in memory, for one local learner; RLlib sets `learner_handles` before it samples.

    Raises:
        DataError: the configured files do not match the configured spaces.
    """

    learner_handles: list[Any]

    def __init__(self, config: Any) -> None:
        # Does not call the parent's constructor, which opens a Ray dataset.
        self.config = config
        self.iter_batches_kwargs: dict[str, Any] = {}
        paths = [Path(path) for path in config.input_]
        self._episodes = read_transitions(paths, config.observation_space, config.action_space)
        self._connector = config.build_learner_connector(config.observation_space, config.action_space)
        self._generator = np.random.default_rng(config.seed)

    def sample(self, num_samples: int, return_iterator: bool = True, **kwargs: Any) -> list[_Passes]:
        """An object that RLlib's learner uses as a shard of a Ray dataset; the learner keeps the first one."""
        return [_Passes(self)]

    def rows(self) -> dict[str, torch.Tensor]:
        """Learner columns of the valid steps of all episodes, or of as many random ones as an iteration needs; RLlib's
        connector computes them with the current network."""
        most = self.config.train_batch_size_per_learner * self.config.dataset_num_iters_per_learner
        chosen, steps = [], 0
        for index in self._generator.permutation(len(self._episodes)):
            if steps >= most:
                break
            chosen.append(_episode(self._episodes[index], str(index)))
            steps += len(self._episodes[index])
        with torch.no_grad():
            batch = self._connector(
                rl_module=self.learner_handles[0].module, batch={}, episodes=chosen, shared_data={}, metrics=None
            )
        columns = {name: values for name, values in batch[DEFAULT_MODULE_ID].items() if torch.is_tensor(values)}
        # MARWIL's connector adds a step to every episode for its final value; that step is not training data.
        valid = columns.get(Columns.LOSS_MASK)
        return columns if valid is None else {name: values[valid] for name, values in columns.items()}

    def shuffled(self, rows: int, batch: int) -> torch.Tensor:
        """Indices of all rows in random order, each once; repeated when there are fewer rows than a batch."""
        rounds = max(1, -(-batch // rows))
        return torch.from_numpy(np.concatenate([self._generator.permutation(rows) for _ in range(rounds)]))


_DEVIATION = 0.3
"""Standard deviation of the recorded log weights around the baseline's: offline learning needs varied actions."""


def from_windows(windows: Sequence[Window], problem: DecisionProblem, episode: str) -> Iterator[Transition]:
    """Transitions of consecutive windows of one testbed; an unusable or empty window ends an episode.

    The action of a transition is the one of the problem's codec that is nearest to the weights in force.
    """
    observer = problem.observer()
    before, part = None, 0
    for index, window in enumerate(windows):
        if not window.usable or window.requests.sum() == 0:
            before, part = None, part + 1
            observer.reset()
            continue
        after = observer.observe_window(window)
        if before is not None:
            shares = np.asarray(after.weights, dtype=float)  # in force during the window
            action = problem.action_codec.action_of(shares, problem.base_shares(before), before.weights)
            reward, _ = problem.reward(window, after)
            follows = index + 1 < len(windows) and windows[index + 1].usable and windows[index + 1].requests.sum() > 0
            yield Transition(
                f"{episode}-{part}", problem.array(before), action, float(reward), problem.array(after), not follows
            )
        before = after


def from_simulation(
    problem: DecisionProblem, next_script: NextScript, options: TrainingOptions, seed: int
) -> Iterator[Transition]:
    """At least `recorded_steps` steps of the inverse-latency baseline with random noise on its weights."""
    episode = 0
    for step in explore_baseline(
        problem, next_script, options.environments, options.algorithm.recorded_steps, deviation=_DEVIATION,
        method=options.method, interval_s=options.interval_s, episode_steps=options.episode_steps, seed=seed,
    ):  # fmt: skip
        for row in np.flatnonzero(~step.reset):
            yield Transition(
                f"simulated-{episode}-{row}", step.rows[row], step.action[row], float(step.rewards[row]),
                step.after[row], bool(step.truncated[row]),
            )  # fmt: skip
        episode += bool(step.reset.any())


def _episodes(file: Path, observations: gym.Space[Any], actions: gym.Space[Any]) -> Iterator[RecordedEpisode]:
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
        raise DataError("no transitions, or values that are not finite", where=str(file), remedy="record it again")
    # Rows of environments that were stepped together alternate.
    order = np.argsort(names, kind="stable")
    names, before, after, done, rewards, over = (
        names[order], before[order], after[order], done[order], rewards[order], over[:, order],
    )  # fmt: skip
    follows = (names[1:] == names[:-1]) & ~over[:, :-1].any(axis=0)
    follows &= (after[:-1] == before[1:]).all(axis=tuple(range(1, before.ndim)))
    starts = [0, *(np.flatnonzero(~follows) + 1).tolist(), len(names)]
    for start, stop in pairwise(starts):
        seen = np.concatenate([before[start:stop], after[stop - 1 : stop]])
        yield RecordedEpisode(seen, done[start:stop], rewards[start:stop], bool(over[0, stop - 1]))


def _array(column: Any, space: gym.Space[Any]) -> NDArray[Any]:
    """Nested lists → ``[rows, *space.shape]``. Raises ValueError when the sizes differ."""
    rows = len(column)
    values = column.combine_chunks()
    while hasattr(values.type, "value_type"):
        values = values.flatten()
    numbers: NDArray[Any] = values.to_numpy(zero_copy_only=False).astype(space.dtype)
    if space.shape is None or len(numbers) != rows * int(np.prod(space.shape)):
        raise ValueError(f"{len(numbers)} numbers in {rows} rows, the space has shape {space.shape}")
    return numbers.reshape(rows, *space.shape)


class _Passes:
    """The part of `ray.data.DataIterator` that RLlib's learner uses."""

    def __init__(self, data: RecordedData) -> None:
        self._data = data

    def iter_torch_batches(self, *, batch_size: int, **kwargs: Any) -> _Batches:
        return _Batches(self._data, batch_size)


class _Batches:
    """An iterable of full batches of rows in random order; each iteration is one pass over the records."""

    def __init__(self, data: RecordedData, batch_size: int) -> None:
        self._data, self._batch_size = data, batch_size

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        columns = self._data.rows()
        order = self._data.shuffled(len(columns[Columns.REWARDS]), self._batch_size)
        for chosen in order.split(self._batch_size):
            if len(chosen) == self._batch_size:
                yield {f"{DEFAULT_MODULE_ID}/{name}": values[chosen] for name, values in columns.items()}


def _episode(recorded: RecordedEpisode, name: str) -> SingleAgentEpisode:
    def buffer(values: Any) -> InfiniteLookbackBuffer:
        return InfiniteLookbackBuffer(values, lookback=0)

    # Copies, because MARWIL's connector appends to the episode.
    return SingleAgentEpisode(
        id_=name,
        observations=buffer(recorded.observations.copy()),
        infos=buffer([{} for _ in range(len(recorded) + 1)]),
        actions=buffer(recorded.actions.copy()),
        rewards=buffer(recorded.rewards.copy()),
        terminated=recorded.terminated,
        truncated=not recorded.terminated,
        t_started=0,
        len_lookback_buffer=0,
    )
