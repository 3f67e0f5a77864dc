"""The search space: paths and values are checked before anything starts; structure never mutates."""

from __future__ import annotations

from typing import Any

import pytest

from actuators.errors import ConfigError
from rayjobs.sweep import SweepOptions
from tuning.search.space import (
    DEFAULT_SPACE,
    MUTABLE,
    Domain,
    Range,
    SearchOptions,
    TrialOptions,
    apply,
    check,
    mutable,
    trial_count,
)

BASE = TrialOptions()


def test_values_land_at_their_paths_and_nothing_else_changes() -> None:
    values = {"encoder.clusters": 4, "training.algorithm.learning_rate": 0.01, "training.method": "round_robin"}
    options = apply(BASE, values)
    assert options.encoder.clusters == (4,)
    assert options.training.algorithm.learning_rate == 0.01
    assert options.training.method == "round_robin"
    assert apply(options, {"encoder.clusters": BASE.encoder.clusters, **{
        "training.algorithm.learning_rate": BASE.training.algorithm.learning_rate,
        "training.method": BASE.training.method,
    }}) == BASE  # fmt: skip


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"training.algorithm.learning_rat": (0.1,)}, "did you mean 'training.algorithm.learning_rate'"),
        ({"encoderr.clusters": (2,)}, "did you mean 'encoder'"),
        ({"training.steps.more": (2,)}, "'training.steps' has no options below it"),
        ({"encoder.covariance": ("round",)}, "encoder.covariance"),
        ({"training.algorithm.clip": (-0.1,)}, "greater than 0"),
        ({"training.algorithm.clip": ()}, "list of values is empty"),
        ({"training.algorithm.clip": Range(low=0.3, high=0.1)}, "not a range"),
        ({"training.algorithm.clip": Range(low=0.0, high=0.1, log=True)}, "not a range"),
        ({"encoder.clusters": Range(low=2, high=8)}, "add integer: true"),
        ({"training.algorithm.epochs": Range(low=2, high=8)}, "add integer: true"),
        ({"training.model.hidden": Range(low=16, high=128)}, "add integer: true"),
        ({"training.steps": (12_000, 24_000)}, "set search.base.training.steps"),
        ({"training.algorithm.replay_steps": (100,)}, "no effect with base.training.algorithm.name=ppo"),
        ({"training.held_out.patience": (2,)}, "trials are validated after every iteration"),
        ({"training.algorithm.name": ("bc",)}, "bc learns from records"),
        ({}, "empty"),
    ],
)
def test_what_no_trial_could_use_is_refused(space: dict[str, Domain], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(SearchOptions(space=space, base=BASE, search="random"))
    assert said in str(caught.value)


def test_a_grid_needs_lists_and_pbt_something_to_change() -> None:
    with pytest.raises(ConfigError, match="a grid needs a list"):
        check(SearchOptions(space={"training.algorithm.clip": Range(low=0.1, high=0.3)}, search="grid"))
    with pytest.raises(ConfigError, match="nothing to change"):
        check(SearchOptions(space={"encoder.clusters": (2, 4)}, search="random", scheduler="pbt"))


def test_the_mixture_and_the_network_are_never_mutated() -> None:
    assert set(mutable(DEFAULT_SPACE)) == {path for path in DEFAULT_SPACE if path.startswith("training.algorithm.")}
    for path in MUTABLE:
        level: Any = BASE
        for part in path.split("."):
            level = getattr(level, part)
        assert isinstance(level, int | float)


def test_a_space_is_read_from_yaml_as_people_write_it() -> None:
    space = {"encoder.clusters": [2, 4], "training.interval_s": {"low": 0.5, "high": 2.0}}
    options = SweepOptions.model_validate({"search": {"space": space}})
    assert options.search.space == {"encoder.clusters": (2, 4), "training.interval_s": Range(low=0.5, high=2.0)}
    check(options.search)
    check(SearchOptions())


def test_a_range_of_whole_numbers_says_so_and_one_of_real_numbers_need_not() -> None:
    space: dict[str, Domain] = {
        "encoder.clusters": Range(low=2, high=8, integer=True),
        "training.algorithm.epochs": Range(low=2, high=8, integer=True),
        "training.algorithm.clip": Range(low=1, high=3),
    }
    check(SearchOptions(space=space, search="random"))


def test_a_grid_has_all_combinations_as_often_as_asked() -> None:
    space: dict[str, Domain] = {"encoder.clusters": (2, 4), "training.algorithm.clip": (0.1, 0.2, 0.3)}
    assert trial_count(SearchOptions(space=space, search="grid", trials=2)) == 12
    assert trial_count(SearchOptions(space=space, search="random", trials=2)) == 2


def test_hyperband_draws_as_populations_do() -> None:
    assert SweepOptions.model_validate({"search": {"scheduler": "hyperband"}}).resolved().search.search == "random"
    asked = SweepOptions.model_validate({"search": {"scheduler": "hyperband", "search": "optuna"}})
    with pytest.raises(ConfigError, match=r"optuna does not draw for hyperband.*search\.scheduler=asha"):
        asked.resolved()
