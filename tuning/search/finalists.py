"""Trains the best settings of a search again, each with several fresh seeds, and validates them on fresh episodes.

The best of many trials is partly luck: its score rises with their number. A mean over fresh seeds has an interval, of
training seeds alone: all are validated on the same episodes, and the winner's is the best of several means. On live
testbeds a training is scored as in the search, by its last training intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from ray import tune
from ray.tune import ResultGrid

from tuning.search.space import ReporterName, SearchOptions
from tuning.search.sweep import SCORE, SweepStatus, columns_of, run_trials
from tuning.search.trial import Shared, SweepTrial

EXPERIMENT = "finalists"
FRESH_EPISODES = 100_000
"""Number of the first validation episode of finalists; the search takes those from 0 on."""
_FRESH_SEED = 1_000_003
_FINALIST = "finalist"


@dataclass(frozen=True)
class Finalist:
    """One training: the setting of that trial, with a seed that the search did not use."""

    trial: str
    searched: float
    values: Mapping[str, Any]
    seed: int


class FinalistTrial(SweepTrial):
    """A trial whose Tune configuration is a `Finalist`: a resumed experiment knows its own plan."""

    @property
    def values(self) -> dict[str, Any]:
        return dict(self.config[_FINALIST]["values"])

    def setup(self, config: dict[str, Any], shared: Shared | None = None) -> None:
        """Tune calls it, with `shared` from the object store."""
        assert shared is not None
        self._common = shared
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """As in the search: another training in the same process."""
        self.cleanup()
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        one, common = Finalist(**config[_FINALIST]), self._common
        provenance = {**common.provenance, "seed": one.seed, "searched_as": one.trial}
        own = replace(common, seed=one.seed, first_episode=FRESH_EPISODES, provenance=provenance)
        SweepTrial.setup(self, dict(one.values), own)


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
    reporter: ReporterName = "ours",
) -> ResultGrid:
    """Trains all of them to the end, or resumes those that `storage` already holds, regardless of `plan`.

    Raises DataError as `run_sweep`.
    """
    own = options.changed({"search": "grid", "scheduler": "none", "trials": 1})
    trainable = tune.with_parameters(FinalistTrial, shared=shared)
    space = {_FINALIST: tune.grid_search([asdict(one) for one in plan])}
    shown = [f"{_FINALIST}/{name}" for name in ("trial", "seed")]
    return run_trials(
        own, shared, trainable, space, EXPERIMENT, storage, at_once, report, reporter=reporter, shown=shown
    )


def finalist_table(results: ResultGrid) -> pd.DataFrame:
    """A row per training that has a result: `trial` of the search, `searched`, `seed`, and what `trial_table` has."""
    ran = [(result, (result.config or {}).get(_FINALIST)) for result in results]
    return pd.DataFrame([
        {**columns_of(result), "trial": one["trial"], "training": Path(result.path).name, "searched": one["searched"],
         "seed": one["seed"]}
        for result, one in ran
        if one is not None
    ])  # fmt: skip


def best_training(finalists: pd.DataFrame, trial: str) -> str:
    """The training of this setting whose score is the middle one: neither the lucky one nor the unlucky one."""
    own = finalists[(finalists["trial"] == trial) & (finalists["bundle"] != "")].sort_values(SCORE)
    return str(own["training"].iloc[len(own) // 2])


def _plain(value: Any) -> Any:
    """A value of a table's column as Python has it; pydantic's strict fields reject numpy's."""
    return value.item() if hasattr(value, "item") else value
