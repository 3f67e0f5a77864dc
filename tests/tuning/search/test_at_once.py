"""How many trials run at once: the limit reaches Tune with every search, and anew when a sweep goes on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import tune

from envs.environment.phase import Watched
from tests.support.problems import demo_scenario
from tests.support.windows import TOPOLOGY, window
from tuning.search.space import SearchOptions, TrialOptions
from tuning.search.sweep import SCORE, preflight, run_trials
from tuning.search.trial import Shared

RATE = "training.algorithm.learning_rate"


class NoTrial(tune.Trainable):
    """Never stepped: these tests end where Tune begins."""


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What Tune is given at each start, in place of running it."""
    found: list[Any] = []

    def fit(tuner: tune.Tuner) -> list[Any]:
        found.append(tuner._local_tuner._tune_config)  # noqa: SLF001 - Ray's own attribute (pinned in pyproject.toml)
        return [SimpleNamespace(metrics={SCORE: 0.0})]

    monkeypatch.setattr(tune.Tuner, "fit", fit)
    return found


def start(storage: Path, at_once: int, **search: Any) -> None:
    shared = Shared(
        windows=Watched((window(),), (window(),)), topology=TOPOLOGY, base=TrialOptions(), work_scale=1.0,
        validation=demo_scenario(), validation_episodes=1, validation_s=1.0, seed=1, provenance={},
    )  # fmt: skip
    options = SearchOptions.model_validate({"space": {RATE: [1e-3, 1e-2]}, **search})
    space = {RATE: tune.choice([1e-3, 1e-2])}
    run_trials(options, shared, NoTrial, space, "sweep", str(storage), at_once, lambda tally: None)


@pytest.mark.parametrize("search", ["random", "grid"])
def test_a_search_that_draws_is_limited_by_itself(handed: list[Any], tmp_path: Path, search: str) -> None:
    start(tmp_path, 2, search=search, scheduler="none", concurrent=2)
    (given,) = handed
    assert given.search_alg.max_concurrent == 2
    # Tune would ignore it, with a warning.
    assert given.max_concurrent_trials is None


@pytest.mark.parametrize("scheduler", ["pbt", "hyperband"])
def test_trials_that_wait_for_each_other_have_no_limit(handed: list[Any], tmp_path: Path, scheduler: str) -> None:
    start(tmp_path, 2, search="random", scheduler=scheduler, trials=8)
    (given,) = handed
    assert (given.search_alg.max_concurrent, given.max_concurrent_trials) == (0, None)


def test_a_sweep_that_goes_on_has_the_limit_of_its_cluster(handed: list[Any], tmp_path: Path) -> None:
    start(tmp_path, 1, search="optuna", scheduler="none")
    start(tmp_path, 3, search="optuna", scheduler="none")
    assert [given.max_concurrent_trials for given in handed] == [1, 3]


def test_a_search_that_draws_obeys_the_one_at_a_time_of_live_testbeds(handed: list[Any], tmp_path: Path) -> None:
    start(tmp_path / "live", 1, search="random", scheduler="none", testbed="live")
    start(tmp_path / "simulated", 1, search="random", scheduler="none")
    assert [given.search_alg.max_concurrent for given in handed] == [1, 0]


@pytest.mark.parametrize(
    ("addresses", "concurrent", "at_once"), [("aa", 0, 1), ("aa", 2, 2), ("ab", 0, 2)], ids=["alone", "asked", "two"]
)
def test_live_trials_of_one_machine_take_turns_unless_more_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, addresses: str, concurrent: int, at_once: int
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "proxy": 2.0, "client": 2.0, "server": 6.0})
    nodes = [{"NodeManagerAddress": address, "Alive": True} for address in addresses]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert preflight(SearchOptions(testbed="live", concurrent=concurrent), servers=3) == at_once
