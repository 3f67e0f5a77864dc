"""Tune's search algorithms, schedulers and callbacks by name, with their arguments.

What a sweep decides itself (metric, mode, space, the measure of progress) is not an argument. All are made once before
the work begins, so that a wrong argument or a missing package costs nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune import Callback, CLIReporter
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from actuators.errors import ConfigError, MissingToolError, closest
from tuning.search.halving import Halving
from tuning.search.space import CallbackName, Domain, Range, ReporterName, SearchOptions, mutable, trial_count

SCORE, TIME = "score", "steps_trained"
PROJECT = "deepsched-sweep"
"""Name of the experiment at a tracking server, unless its own environment variable gives another."""


@dataclass(frozen=True)
class Part:
    """One of Tune's classes.

    Attributes:
        path: ``module:class``.
        needs: module that it needs besides ours; "" for none.
        package: what pip installs for it, in a version that Ray 2.60 works with.
    """

    path: str
    needs: str = ""
    package: str = ""

    def load(self, where: str) -> Callable[..., Any]:
        """The class. Raises MissingToolError when its package is missing."""
        if self.needs and importlib.util.find_spec(self.needs) is None:
            what = f"{self.package.partition('=')[0].partition('<')[0]} is not installed"
            raise MissingToolError(what, where=where, remedy=f"pip install '{self.package}'")
        module, _, name = self.path.partition(":")
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return found


_SEARCH, _SCHEDULERS = "ray.tune.search", "ray.tune.schedulers"
SEARCHERS = {
    "optuna": Part(f"{_SEARCH}.optuna:OptunaSearch", "optuna", "optuna"),
    "hyperopt": Part(f"{_SEARCH}.hyperopt:HyperOptSearch", "hyperopt", "hyperopt"),
    "ax": Part(f"{_SEARCH}.ax:AxSearch", "ax", "ax-platform<1"),
    "bayesopt": Part(f"{_SEARCH}.bayesopt:BayesOptSearch", "bayes_opt", "bayesian-optimization<2"),
    "hebo": Part(f"{_SEARCH}.hebo:HEBOSearch", "hebo", "HEBO"),
}
SCHEDULERS = {
    "asha": Part(f"{_SCHEDULERS}:ASHAScheduler"),
    "hyperband": Part("tuning.search.halving:Halving"),
    "median": Part(f"{_SCHEDULERS}:MedianStoppingRule"),
    "pbt": Part("tuning.search.population:Population"),
    "pb2": Part(f"{_SCHEDULERS}.pb2:PB2"),
}
CALLBACKS: dict[CallbackName, Part] = {
    "mlflow": Part("ray.air.integrations.mlflow:MLflowLoggerCallback", "mlflow", "mlflow"),
    "wandb": Part("ray.air.integrations.wandb:WandbLoggerCallback", "wandb", "wandb"),
    "comet": Part("ray.air.integrations.comet:CometLoggerCallback", "comet_ml", "comet-ml"),
    "aim": Part("ray.tune.logger.aim:AimLoggerCallback", "aim", "aim"),
}
_SEEDS = {
    "optuna": "seed", "hyperopt": "random_state_seed", "ax": "random_seed", "bayesopt": "random_state",
    "hebo": "random_state_seed",
}  # fmt: skip
"""What each calls its seed."""
_DECIDED = {
    "self", "space", "metric", "mode", "time_attr", "time", "steps", "hyperparam_mutations", "hyperparam_bounds",
}  # fmt: skip


def searcher(options: SearchOptions, seed: int, space: Mapping[str, Any] | None = None) -> Any:
    """The search algorithm of a sweep that has one by name. Raises ConfigError or MissingToolError.

    Args:
        space: path → Tune's domain. One that is made as a test gets it here, as Tune gives it to one that is used: some
            arguments are about the space.
    """
    where = "search.search"
    make = SEARCHERS[options.search].load(where)
    given: dict[str, Any] = {"metric": SCORE, "mode": "max", _SEEDS[options.search]: seed}
    try:
        return _made(make, given, options.search_arguments, f"{where}_arguments", space)
    except AttributeError as error:
        # It reaches for what another version of its package has.
        what, remedy = f"this version does not fit Ray's {options.search}: {error}", "pip install '{}'"
        raise MissingToolError(what, where=where, remedy=remedy.format(SEARCHERS[options.search].package)) from error


def scheduler(options: SearchOptions, at_once: int, distributions: Mapping[str, Any]) -> TrialScheduler:
    """The scheduler of a sweep. Raises ConfigError, also for too few trials.

    Args:
        at_once: trials that run at the same time.
        distributions: the part of the space that may change in a running trial, as Tune's domains.
    """
    steps = options.base.training.steps
    if options.scheduler == "none":
        return FIFOScheduler()
    where = "search.scheduler"
    make = SCHEDULERS[options.scheduler].load(where)
    given: dict[str, Any] = {"time_attr": TIME}
    if options.scheduler == "asha":
        grace = max(round(options.grace_share * steps), 1)
        given |= {"max_t": steps, "grace_period": grace, "reduction_factor": options.reduction}
    elif options.scheduler == "hyperband":
        given = {"time": TIME, "steps": steps}
    elif options.scheduler == "median":
        given |= {"grace_period": max(round(options.grace_share * steps), 1)}
    else:
        interval = max(round(options.perturb_share * steps), 1)
        if options.scheduler == "pbt":
            given = {
                "space": options.space, "distributions": distributions, "time": TIME, "interval": interval,
                "room": at_once,
            }  # fmt: skip
        else:
            given |= {"perturbation_interval": interval, "hyperparam_bounds": _bounds(options.space)}
    made: TrialScheduler = _made(make, given, options.scheduler_arguments, f"{where}_arguments")
    if isinstance(made, Halving):
        made.check_room(trial_count(options))
    return made


def callbacks(names: Sequence[CallbackName]) -> list[Callback]:
    """Callbacks for trackers, configured by the trackers' own environment variables. Raises MissingToolError."""
    given: dict[CallbackName, dict[str, Any]] = {
        "mlflow": {"experiment_name": os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)},
        "wandb": {"project": os.environ.get("WANDB_PROJECT", PROJECT)},
        "comet": {"project_name": os.environ.get("COMET_PROJECT_NAME", PROJECT)},
        "aim": {"experiment_name": PROJECT},
    }
    return [CALLBACKS[name].load("callback")(**given[name]) for name in names]


def reporting(reporter: ReporterName, shown: Sequence[str]) -> dict[str, Any]:
    """Arguments of Tune's RunConfig: silence, or its own tables with these parameters and the score."""
    if reporter == "ours":
        return {"verbose": 0}
    tables = CLIReporter(
        metric_columns={SCORE: SCORE, TIME: "steps", "training_iteration": "iter", "time_total_s": "seconds"},
        parameter_columns={path: re.split(r"[./]", path)[-1] for path in shown},
        max_report_frequency=10,
        print_intermediate_tables=True,
        sort_by_metric=True,
    )
    return {"verbose": 1, "progress_reporter": tables}


def _made(
    make: Callable[..., Any],
    given: Mapping[str, Any],
    arguments: Mapping[str, Any],
    where: str,
    space: Mapping[str, Any] | None = None,
) -> Any:
    """The part with its own arguments, which win over ours. Raises ConfigError for what it does not take."""
    parameters = inspect.signature(make).parameters.values()
    others = any(one.kind is one.VAR_KEYWORD for one in parameters)
    named = [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    known = [name for name in named if name not in _DECIDED and not name.startswith("_")]
    for name in arguments:
        if name not in known and (not others or name in _DECIDED or name.startswith("_")):
            raise ConfigError(f"no argument '{name}'", where=where, remedy=closest(name, known))
    try:
        made = make(**{**given, **arguments})
        if space is not None:
            made.set_search_properties(SCORE, "max", dict(space))
    except (TypeError, ValueError, AssertionError, LookupError) as error:
        what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(what, where=where, remedy=f"its arguments are {', '.join(known)}") from error
    return made


def _bounds(space: Mapping[str, Domain]) -> dict[str, list[float]]:
    """PB2 changes real numbers within their ranges only. Raises ConfigError when there are none."""
    bounds = {path: [each.low, each.high] for path, each in mutable(space).items() if isinstance(each, Range)}
    if not bounds:
        remedy = "add a range, for example training.algorithm.learning_rate: {low: 1e-4, high: 3e-3}"
        raise ConfigError("pb2 has no range to vary", where="search.space", remedy=remedy)
    return bounds
