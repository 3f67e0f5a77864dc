"""Recorded transitions → batches for RLlib's offline learners, in this process instead of through Ray Data.

RLlib's own pipeline starts an actor (10 CPU seconds of imports) for every pass over the records, hands on 2-D
observations as objects, and computes MARWIL's value targets with the network of the first iteration for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer
from ray.rllib.offline.offline_data import OfflineData

from tuning.transitions_file import Recorded, read_transitions


class RecordedData(OfflineData):
    """All records in memory, for one local learner; RLlib sets `learner_handles` before it asks for samples.

    Raises DataError when the configured files are not of the configured spaces.
    """

    learner_handles: list[Any]

    def __init__(self, config: Any) -> None:
        # Not the parent's, which opens a Ray dataset.
        self.config = config
        self.iter_batches_kwargs: dict[str, Any] = {}
        paths = [Path(path) for path in config.input_]
        self._episodes = read_transitions(paths, config.observation_space, config.action_space)
        self._connector = config.build_learner_connector(config.observation_space, config.action_space)
        self._generator = np.random.default_rng(config.seed)

    def sample(self, num_samples: int, return_iterator: bool = True, **kwargs: Any) -> list[_Passes]:
        """What RLlib's learner takes for a shard of a Ray dataset; it keeps the first one for good."""
        return [_Passes(self)]

    def rows(self) -> dict[str, torch.Tensor]:
        """Learner columns of the valid steps of all episodes, or of some that make up one iteration; mapped by
        RLlib's own connector pieces with the network as it is now."""
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
        # MARWIL's connector adds a step to every episode, to value what comes after; it is nothing to learn from.
        valid = columns.get(Columns.LOSS_MASK)
        return columns if valid is None else {name: values[valid] for name, values in columns.items()}

    def shuffled(self, rows: int, batch: int) -> torch.Tensor:
        """Every row once in random order; more than once when all are fewer than a batch."""
        rounds = max(1, -(-batch // rows))
        return torch.from_numpy(np.concatenate([self._generator.permutation(rows) for _ in range(rounds)]))


class _Passes:
    """Stands in for a `ray.data.DataIterator` as far as RLlib's learner uses one."""

    def __init__(self, data: RecordedData) -> None:
        self._data = data

    def iter_torch_batches(self, *, batch_size: int, **kwargs: Any) -> _Batches:
        return _Batches(self._data, batch_size)


class _Batches:
    """One pass over the records per iteration over it: full batches of rows, in random order."""

    def __init__(self, data: RecordedData, batch_size: int) -> None:
        self._data, self._batch_size = data, batch_size

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        columns = self._data.rows()
        order = self._data.shuffled(len(columns[Columns.REWARDS]), self._batch_size)
        for chosen in order.split(self._batch_size):
            if len(chosen) == self._batch_size:
                yield {f"{DEFAULT_MODULE_ID}/{name}": values[chosen] for name, values in columns.items()}


def _episode(recorded: Recorded, name: str) -> SingleAgentEpisode:
    def buffer(values: Any) -> InfiniteLookbackBuffer:
        return InfiniteLookbackBuffer(values, lookback=0)

    # Copies: MARWIL's connector makes an episode longer.
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
