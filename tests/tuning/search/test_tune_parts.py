"""Search algorithms, schedulers and callbacks by name: their own arguments are in force, what is wrong is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, HyperBandScheduler, MedianStoppingRule
from ray.tune.schedulers.pb2 import PB2

from actuators.errors import ConfigError, MissingToolError
from tuning.search import tune_parts
from tuning.search.population import Population
from tuning.search.space import Range, SearchOptions, check
from tuning.search.sweep import check_parts

RATE = "training.algorithm.learning_rate"
SPACE = {RATE: Range(low=1e-4, high=1e-2, log=True)}


def options(**given: Any) -> SearchOptions:
    return SearchOptions.model_validate({"space": SPACE, **given})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("asha", ASHAScheduler), ("hyperband", HyperBandScheduler), ("median", MedianStoppingRule),
        ("pbt", Population), ("pb2", PB2), ("none", FIFOScheduler),
    ],
)  # fmt: skip
def test_schedulers_by_name(name: str, kind: type) -> None:
    assert type(tune_parts.scheduler(options(scheduler=name), 2, {RATE: tune.loguniform(1e-4, 1e-2)})) is kind


def test_arguments_of_its_own_reach_the_scheduler() -> None:
    found = tune_parts.scheduler(options(scheduler="asha", scheduler_arguments={"brackets": 2}), 2, {})
    assert "Bracket" in found.debug_string()
    assert found.debug_string().count("Bracket:") == 2
    with pytest.raises(ConfigError, match=r"no argument 'bracket'.*did you mean 'brackets'"):
        tune_parts.scheduler(options(scheduler="asha", scheduler_arguments={"bracket": 2}), 2, {})
    # What the sweep decides is no argument.
    with pytest.raises(ConfigError, match="no argument 'metric'"):
        tune_parts.scheduler(options(scheduler="median", scheduler_arguments={"metric": "loss"}), 2, {})


def test_pb2_needs_a_range_to_vary() -> None:
    with pytest.raises(ConfigError, match="pb2 has no range to vary"):
        tune_parts.scheduler(options(scheduler="pb2", space={"training.algorithm.epochs": [2, 4]}), 2, {})


def test_a_value_that_the_algorithm_rejects_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"sampler.*its arguments are points_to_evaluate"):
        check_parts(options(search="optuna", search_arguments={"sampler": 3}), ())


def test_bayesopt_draws_real_numbers_only() -> None:
    with pytest.raises(ConfigError, match="bayesopt draws real numbers only"):
        check(options(search="bayesopt", space={"encoder.clusters": [2, 3]}))


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, part in tune_parts.SEARCHERS.items():
        with pytest.raises(MissingToolError) as missing:
            tune_parts.searcher(options(search=name), 1)
        assert f"pip install '{part.package}'" in str(missing.value)
        assert "\n" not in str(missing.value)
    with pytest.raises(MissingToolError, match=r"wandb is not installed \(callback\); pip install 'wandb'"):
        tune_parts.callbacks(("wandb",))


def played(config: dict[str, Any]) -> None:
    """Better the nearer the rate is to 1e-3."""
    for step in range(1, 4):
        distance = abs(config[RATE] - 1e-3)
        tune.report({tune_parts.SCORE: -distance, tune_parts.TIME: 4_000 * step})


@pytest.mark.ray
@pytest.mark.usefixtures("ray")
@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["hyperband", "median"])
def test_a_search_with_its_own_arguments_is_logged_in_mlflow(
    scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "rates")
    chosen = options(search="hyperopt", search_arguments={"points_to_evaluate": [{RATE: 1e-3}]}, scheduler=scheduler)
    results = tune.Tuner(
        played,
        param_space={RATE: tune.loguniform(1e-4, 1e-2)},
        tune_config=tune.TuneConfig(
            metric=tune_parts.SCORE, mode="max", num_samples=3, search_alg=tune_parts.searcher(chosen, 1),
            scheduler=tune_parts.scheduler(chosen, 1, {}),
        ),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path / "tune"), callbacks=tune_parts.callbacks(("mlflow",)), verbose=0
        ),
    ).fit()  # fmt: skip
    assert not results.errors
    assert results.get_best_result().config[RATE] == pytest.approx(1e-3)
    (experiment,) = (path.parent for path in (tmp_path / "mlruns").glob("*/meta.yaml") if "rates" in path.read_text())
    runs = [path for path in experiment.iterdir() if (path / "metrics" / tune_parts.SCORE).exists()]
    assert len(runs) == 3
    assert {(run / "params" / RATE).exists() for run in runs} == {True}
