"""Trains the best settings of a search again, each with several fresh seeds, and validates them on fresh episodes.

The best of many trials is partly luck: its score rises with their number. What is trained and validated anew has an
interval, and its mean is not chosen by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from ray import tune
from ray.tune import ResultGrid

from tuning.search.space import SearchOptions
from tuning.search.sweep import SCORE, SweepStatus, columns_of, run_trials
from tuning.search.trial import Shared, SweepTrial

EXPERIMENT = "finalists"
FRESH_EPISODES = 100_000
"""Number of the first validation episode of finalists; the search takes those from 0 on."""
_FRESH_SEED = 1_000_003
_NUMBER = "finalist"


@dataclass(frozen=True)
class Finalist:
    """One training: the setting of that trial, with a seed that the search did not use."""

    trial: str
    searched: float
    values: Mapping[str, Any]
    seed: int


class FinalistTrial(SweepTrial):
    """A trial whose `config` is its number in the plan."""

    def setup(self, config: dict[str, Any], shared: Shared | None = None, plan: Sequence[Finalist] = ()) -> None:
        """Tune calls it, with `shared` and `plan` from the object store."""
        assert shared is not None
        self._common, self._plan = shared, plan
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """As in the search: another training in the same process."""
        self.cleanup()
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        one, common = self._plan[config[_NUMBER]], self._common
        self._number = config[_NUMBER]
        self.config = dict(one.values)
        provenance = {**common.provenance, "seed": one.seed, "searched_as": one.trial}
        own = replace(common, seed=one.seed, first_episode=FRESH_EPISODES, provenance=provenance)
        SweepTrial.setup(self, self.config, own)

    def step(self) -> dict[str, Any]:
        return {**super().step(), _NUMBER: self._number}


def finalists_of(table: pd.DataFrame, options: SearchOptions, seed: int) -> list[Finalist]:
    """The plan: the best settings that are different, each with every seed.

    Args:
        table: `tuning.search.sweep.trial_table`, best first.
        seed: of the sweep.
    """
    paths = list(options.space)
    done = table[table[SCORE].notna()]
    different = done.loc[~done[paths].astype(str).duplicated()].head(options.finalists)
    return [
        Finalist(
            str(row["trial"]), float(row[SCORE]), {path: _plain(row[path]) for path in paths}, seed_of(seed, number)
        )
        for row in different.to_dict("records")
        for number in range(options.seeds)
    ]


def seed_of(seed: int, number: int) -> int:
    """Seed of a finalist's training number 0, 1, …"""
    return seed + _FRESH_SEED * (number + 1)


def run_finalists(
    options: SearchOptions,
    shared: Shared,
    plan: Sequence[Finalist],
    storage: str,
    at_once: int,
    report: Callable[[SweepStatus], None],
) -> ResultGrid:
    """Trains all of them to the end, or goes on with what `storage` already holds. Raises DataError as `run_sweep`."""
    own = options.changed({"search": "grid", "scheduler": "none", "trials": 1})
    trainable = tune.with_parameters(FinalistTrial, shared=shared, plan=tuple(plan))
    space = {_NUMBER: tune.grid_search(list(range(len(plan))))}
    return run_trials(own, shared, trainable, space, EXPERIMENT, storage, at_once, report)


def finalist_table(results: ResultGrid, plan: Sequence[Finalist]) -> pd.DataFrame:
    """A row per training: `trial` of the search, `searched`, `seed`, then what `trial_table` has of a trial."""
    rows = []
    for result in results:
        number = (result.metrics or {}).get(_NUMBER, (result.config or {}).get(_NUMBER))
        if number is None:
            continue
        one = plan[int(number)]
        rows.append({**columns_of(result), "trial": one.trial, "training": Path(result.path).name,
                     "searched": one.searched, "seed": one.seed})  # fmt: skip
    return pd.DataFrame(rows)


def best_training(finalists: pd.DataFrame, trial: str) -> str:
    """The training of this setting whose score is the middle one: neither the lucky one nor the unlucky one."""
    own = finalists[(finalists["trial"] == trial) & (finalists["bundle"] != "")].sort_values(SCORE)
    return str(own["training"].iloc[len(own) // 2])


def _plain(value: Any) -> Any:
    """A value of a table's column as Python has it; pydantic's strict fields reject numpy's."""
    return value.item() if hasattr(value, "item") else value
