"""A population: its settings stay in their ranges, what a network is built for is copied as it is, all have a turn."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.tune.schedulers import pbt

from actuators.errors import CapacityError, DataError
from actuators.files import write_json
from tuning.search.population import Population, within
from tuning.search.space import DEFAULT_SPACE, Domain, Range, SearchOptions
from tuning.search.sweep import preflight
from tuning.search.trial import STATE, SweepTrial

DISCOUNT, EPOCHS = "training.algorithm.discount", "training.algorithm.epochs"
SPACE: dict[str, Domain] = {
    "encoder.clusters": (2, 4),
    DISCOUNT: Range(low=0.8, high=0.99),
    EPOCHS: Range(low=2, high=8, integer=True),
}


def test_a_setting_that_leaves_its_range_is_set_to_its_end() -> None:
    ranges = {path: domain for path, domain in SPACE.items() if isinstance(domain, Range)}
    found = within({"encoder.clusters": 2, DISCOUNT: 0.99 * 1.2, EPOCHS: 1}, ranges)
    assert found == {"encoder.clusters": 2, DISCOUNT: 0.99, EPOCHS: 2}
    assert isinstance(found[EPOCHS], int)
    inside = {"encoder.clusters": 4, DISCOUNT: 0.9, EPOCHS: 3}
    assert within(inside, ranges) == inside


class OneExchange(Population):
    """Varies settings as at an exchange, by Ray's own code (private API, pinned with ray in pyproject.toml)."""

    def vary(self, config: dict[str, Any]) -> dict[str, Any]:
        varied, _ = pbt._explore(  # noqa: SLF001
            config,
            self._hyperparam_mutations,
            self._resample_probability,
            self._perturbation_factors,
            self._custom_explore_fn,
        )
        return varied


def test_whatever_tune_draws_can_be_trained_and_keeps_the_structure() -> None:
    distributions = {DISCOUNT: lambda: random.uniform(0.8, 0.99), EPOCHS: lambda: random.randint(2, 8)}
    population = OneExchange(SPACE, distributions, "steps_trained", 100, room=2)
    config: dict[str, Any] = {"encoder.clusters": 4, DISCOUNT: 0.9, EPOCHS: 4}
    random.seed(1)
    seen = set()
    for _ in range(300):
        config = population.vary(config)
        assert config["encoder.clusters"] == 4
        assert 0.8 <= config[DISCOUNT] <= 0.99
        assert config[EPOCHS] in range(2, 9)
        seen.add(config[DISCOUNT])
    assert len(seen) > 50


def test_a_checkpoint_of_another_structure_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / STATE, {"config": {"encoder.clusters": 4, DISCOUNT: 0.9}, "steps": 100})
    trial = object.__new__(SweepTrial)
    trial.config = {"encoder.clusters": 2, DISCOUNT: 0.9}
    with pytest.raises(DataError, match=r"another structure.*'encoder.clusters': 4"):
        trial.load_checkpoint(str(tmp_path))


@pytest.mark.parametrize(("trials", "cpus_each", "at_once"), [(4, 0.5, 4), (4, 1.0, 2), (3, 0.5, 3), (9, 1.5, 1)])
def test_a_population_runs_as_many_as_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch, trials: int, cpus_each: float, at_once: int
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    options = SearchOptions(space=DEFAULT_SPACE, scheduler="pbt", trials=trials, trial_cpus=cpus_each)
    assert preflight(options, servers=3) == at_once


def test_a_population_of_a_grid_has_all_its_combinations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    space: dict[str, Domain] = {"encoder.clusters": (2, 4), EPOCHS: (2, 4)}
    assert preflight(SearchOptions(space=space, search="grid", scheduler="pbt", trials=1), servers=3) == 4


@pytest.mark.parametrize("scheduler", ["pbt", "hyperband"])
def test_trials_that_wait_for_each_other_cannot_be_limited_by_number(
    monkeypatch: pytest.MonkeyPatch, scheduler: str
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    options = SearchOptions.model_validate({"scheduler": scheduler, "trials": 4, "concurrent": 2})
    with pytest.raises(CapacityError, match="trial_cpus=2 and leave"):
        preflight(options, servers=3)
