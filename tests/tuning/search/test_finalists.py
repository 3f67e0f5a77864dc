"""Which settings are trained again, with which seeds; that fresh episodes are fresh; what the winner's bundle is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
from ray.tune import CLIReporter

from tests.support.sweep_trials import PATHS, SPACE, finalists, trials
from tuning.search.finalists import FRESH_EPISODES, best_training, finalist_table, finalists_of, seed_of
from tuning.search.space import SearchOptions
from tuning.search.tune_parts import reporting


def options(**given: int) -> SearchOptions:
    return SearchOptions(space=SPACE).changed(dict(given))


def test_the_best_settings_that_differ_each_get_every_seed() -> None:
    table = trials(12)
    again = table.iloc[[0]].assign(trial="trial-again")
    plan = finalists_of(pd.concat([again, table]).reset_index(drop=True), options(finalists=2, seeds=3), 7)
    assert [one.trial for one in plan] == ["trial-again"] * 3 + [table["trial"].iloc[1]] * 3
    assert [one.seed for one in plan] == [seed_of(7, number) for number in (0, 1, 2)] * 2
    assert 7 not in {one.seed for one in plan}
    assert plan[0].values == {path: table[path].iloc[0] for path in PATHS}
    assert not any(isinstance(value, np.generic) for one in plan for value in one.values.values())


def test_fewer_scored_trials_than_finalists_are_all_of_them() -> None:
    table = trials(3)
    table.loc[table.index[2], "score"] = np.nan
    assert len(finalists_of(table, options(finalists=8, seeds=2), 1)) == 4


def test_fresh_episodes_lie_behind_those_of_the_search() -> None:
    assert SearchOptions().validation_episodes < FRESH_EPISODES


def test_the_bundle_of_a_winner_is_the_one_in_the_middle() -> None:
    assert best_training(finalists(), "trial-1") == "trial-again-0"
    assert best_training(finalists(), "trial-2") == "trial-again-5"


def test_tunes_own_reporter_shows_what_is_swept() -> None:
    assert reporting("ours", PATHS) == {"verbose": 0}
    own = reporting("tune", PATHS)
    assert own["verbose"] == 1
    assert isinstance(own["progress_reporter"], CLIReporter)
    # Tune does this with the metric of the search, and refuses a reporter that has one already.
    assert own["progress_reporter"].set_search_properties("score", "max")


def test_a_table_has_the_trainings_that_have_a_result() -> None:
    one = SimpleNamespace(
        path="/there/again-3",
        metrics={"score": 0.2},
        config={"finalist": {"trial": "trial-1", "searched": 0.3, "seed": 1000004, "values": {}}},
        metrics_dataframe=None, checkpoint=None, error=ValueError("it broke"),
    )  # fmt: skip
    without = SimpleNamespace(path="/there/again-4", config=None)
    table = finalist_table(cast("Any", [one, without]))
    (row,) = table.to_dict("records")
    assert (row["trial"], row["training"], row["seed"], row["error"]) == (
        "trial-1",
        "again-3",
        1000004,
        "it broke",
    )
