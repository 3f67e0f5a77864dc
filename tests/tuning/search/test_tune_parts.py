"""Search algorithms, schedulers and callbacks by name: their own arguments are in force, what is wrong is one line."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.schedulers.pb2 import PB2

from actuators.errors import ConfigError, MissingToolError
from envs.environment.phase import Watched
from tests.support.problems import demo_scenario
from tests.support.windows import TOPOLOGY, window
from tuning.search import tune_parts
from tuning.search.halving import Halving
from tuning.search.population import Population
from tuning.search.space import Range, SearchOptions, TrialOptions, check
from tuning.search.sweep import check_parts, run_trials
from tuning.search.trial import Shared

RATE = "training.algorithm.learning_rate"
SPACE = {RATE: Range(low=1e-4, high=1e-2, log=True)}


def options(**given: Any) -> SearchOptions:
    return SearchOptions.model_validate({"space": SPACE, **given})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("asha", ASHAScheduler), ("hyperband", Halving), ("median", MedianStoppingRule),
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


@pytest.mark.parametrize(
    ("search", "space", "points", "said"),
    [
        # A point of one of two settings.
        ("optuna", {**SPACE, "training.algorithm.discount": Range(low=0.8, high=0.99)}, [{RATE: 1e-3}], "Dim of point"),
        ("hyperopt", {RATE: [1e-3, 1e-2]}, [{RATE: 0.5}], "Did not find category"),
    ],
)
def test_what_an_algorithm_rejects_about_the_space_is_one_line(
    search: str, space: dict[str, Any], points: list[dict[str, float]], said: str
) -> None:
    chosen = options(search=search, space=space, search_arguments={"points_to_evaluate": points})
    with pytest.raises(ConfigError, match=rf"^{said}.*\(search.search_arguments\)") as refused:
        check_parts(chosen, ())
    assert "\n" not in str(refused.value)


def test_arguments_that_a_class_hands_on_are_its_own_and_ax_has_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("ax")
    package.__spec__ = ModuleSpec("ax", None)
    monkeypatch.setitem(sys.modules, "ax", package)
    from ray.tune.search.ax import ax_search

    monkeypatch.setattr(ax_search, "ax", package)
    made = tune_parts.searcher(options(search="ax", search_arguments={"verbose_logging": False}), 7)
    assert made._ax_kwargs == {"verbose_logging": False, "random_seed": 7}  # noqa: SLF001 - what its client will get
    with pytest.raises(ConfigError, match="no argument 'metric'") as refused:
        tune_parts.searcher(options(search="ax", search_arguments={"metric": "loss"}), 7)
    assert "ax_kwargs" not in str(refused.value)


def test_bayesopt_draws_real_numbers_on_a_linear_scale_only() -> None:
    with pytest.raises(ConfigError, match="bayesopt draws real numbers only"):
        check(options(search="bayesopt", space={"encoder.clusters": [2, 3]}))
    with pytest.raises(ConfigError, match="bayesopt draws on a linear scale only"):
        check(options(search="bayesopt"))
    check(options(search="bayesopt", space={RATE: {"low": 1e-4, "high": 1e-2}}))


class Waiting:
    """As much of Tune's trial as HyperBand reads."""

    def __init__(self, score: float) -> None:
        self.score, self.steps = score, 0
        self.status, self.is_saving = "PENDING", False


class Controller:
    """As much of Tune's controller as HyperBand calls."""

    def __init__(self, scheduler: TrialScheduler) -> None:
        self._scheduler = scheduler

    def stop_trial(self, trial: Waiting) -> None:
        trial.status = "TERMINATED"
        self._scheduler.on_trial_remove(self, trial)


def test_hyperband_ends_the_worse_trials_of_a_bracket() -> None:
    scheduler = tune_parts.scheduler(options(scheduler="hyperband", search="random", trials=8), 1, {})
    scheduler.set_search_properties(tune_parts.SCORE, "max")
    controller, trials = Controller(scheduler), [Waiting(float(number)) for number in range(8)]
    for trial in trials:
        scheduler.on_trial_add(controller, trial)
    while (trial := scheduler.choose_trial_to_run(controller)) is not None:
        trial.status, decision = "RUNNING", TrialScheduler.CONTINUE
        while decision == TrialScheduler.CONTINUE:
            trial.steps += 1200
            result = {
                tune_parts.SCORE: trial.score,
                tune_parts.TIME: trial.steps,
                "training_iteration": trial.steps // 1200,
            }
            decision = TrialScheduler.STOP
            if trial.steps < 12_000:
                decision = scheduler.on_trial_result(controller, trial, result)
        trial.status = "PAUSED"
        if decision == TrialScheduler.STOP:
            trial.status = "TERMINATED"
            scheduler.on_trial_complete(controller, trial, result)
    # The first bracket is of three trials and halves nothing; of the five of the second one two go on.
    assert [trial.steps for trial in trials] == [12_000] * 3 + [4800] * 3 + [12_000] * 2


def test_hyperband_that_would_end_no_trial_early_is_refused() -> None:
    few = options(scheduler="hyperband", search="random", trials=5)
    with pytest.raises(ConfigError, match=r"none of 5 trials early \(search.trials\); set 6 or more, or .*=asha"):
        check_parts(few, ())
    check_parts(few.changed({"trials": 6}), ())
    coarse = options(scheduler="hyperband", search="random", scheduler_arguments={"max_t": 2})
    with pytest.raises(ConfigError, match="max_t=2 must be at least reduction_factor=3"):
        check_parts(coarse, ())


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
@pytest.mark.parametrize("scheduler", ["asha", "median"])
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


class Counted(tune.Trainable):
    """Ten steps of 1200; its score is its setting."""

    def setup(self, config: dict[str, Any]) -> None:
        self._trained = 0

    def step(self) -> dict[str, Any]:
        self._trained += 1200
        return {
            tune_parts.SCORE: self.config[RATE],
            tune_parts.TIME: self._trained,
            tune.result.DONE: self._trained >= 12_000,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        Path(checkpoint_dir, "trained").write_text(str(self._trained))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        self._trained = int(Path(checkpoint_dir, "trained").read_text())

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.config, self._trained = new_config, 0
        return True


@pytest.mark.ray
@pytest.mark.usefixtures("ray")
@pytest.mark.slow
def test_hyperband_ends_trials_early_on_ray(tmp_path: Path) -> None:
    shared = Shared(
        windows=Watched((window(),), (window(),)), topology=TOPOLOGY, base=TrialOptions(), work_scale=1.0,
        validation=demo_scenario(), validation_episodes=1, validation_s=1.0, seed=1, provenance={},
    )  # fmt: skip
    chosen = options(scheduler="hyperband", search="random", trials=8)
    space = {RATE: tune.loguniform(1e-4, 1e-2)}
    results = run_trials(chosen, shared, Counted, space, "sweep", str(tmp_path), 3, lambda tally: None)
    assert not results.errors
    assert sorted(result.metrics[tune_parts.TIME] for result in results) == [4800] * 3 + [12_000] * 5
