"""Options of a sweep and its search space: dotted option path → values or range to try, checked before the start.

Imports neither torch nor Ray, so that `--help` answers quickly; `tuning.search.sweep` runs the search.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError

from actuators.errors import ConfigError, closest
from actuators.options import GIVEN, Never, Only, Options, idle_options, is_within
from envs.observation.encoder import EncoderOptions
from tuning.judging.plan import BlockOptions
from tuning.options import ONLINE, TrainingOptions


class Range(Options):
    """A range of real or whole numbers, both ends included."""

    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Draw uniformly on a logarithmic scale; the exchanges of `pb2` vary on a linear one."""
    integer: bool = False
    """Whole numbers only; an option that is one needs it."""


Domain = Range | tuple[Any, ...]
"""A range, or the list of values to choose from."""


class TrialOptions(Options):
    """Options of one trial; a search space names its fields by dotted paths."""

    only: ClassVar = {
        "training.threads": Never("a trial simulates with one thread, as its trial_cpus allow"),
        "training.runners": Never("a trial is one process: raise search.concurrent"),
        "training.imitation": Never("trials begin untrained"),
        "training.held_out": Never("trials are validated after every iteration: set search.validation_episodes"),
        "training.checkpoint_steps": Never("set search.checkpoint_every"),
        "training.proof_episodes": Never("train the best setting with `deepsched train` to have it proven"),
        "training.algorithm.transitions": Never("a sweep trains on testbeds"),
        "training.algorithm.recorded_steps": Never("a sweep trains on testbeds"),
        "training.model.squashed": Never("the algorithm decides it"),
    }

    encoder: EncoderOptions = EncoderOptions()
    """The mixture that the trial fits; `encoder.clusters: [2, 4, 8]` in a space tries three cluster counts."""
    training: TrainingOptions = TrainingOptions(steps=12_000)
    """How the trial trains."""


DEFAULT_SPACE: dict[str, Domain] = {
    "encoder.clusters": (2, 3, 4, 6, 8),
    "encoder.covariance": ("diag", "full"),
    "training.algorithm.learning_rate": Range(low=1e-4, high=3e-3, log=True),
    "training.algorithm.entropy_coefficient": (0.0, 0.001, 0.01),
    "training.algorithm.clip": (0.1, 0.2, 0.3),
    "training.algorithm.epochs": (2, 4, 8),
}
"""Cluster count K and PPO's hyperparameters."""

MUTABLE = tuple(
    f"training.algorithm.{name}"
    for name in ("learning_rate", "entropy_coefficient", "clip", "discount", "gae_lambda", "epochs")
)
"""Options that population-based training may change in a running trial; all others are part of its structure."""


Search = Literal["random", "grid", "optuna", "hyperopt", "ax", "bayesopt", "hebo"]
Scheduler = Literal["asha", "hyperband", "median", "pbt", "pb2", "none"]
CallbackName = Literal["mlflow", "wandb", "comet", "aim"]
ReporterName = Literal["ours", "tune"]
DRAWN = ("random", "grid")
"""Searches that need no result."""
POPULATIONS = ("pbt", "pb2")
"""Schedulers under which trials exchange networks and settings."""
IN_TURN = (*POPULATIONS, "hyperband")
"""Schedulers under which trials wait for each other: their settings are drawn, and all of them begin."""


class SearchOptions(Options):
    """Search space, search method and early stopping."""

    only: ClassVar = {
        "base.training.environments": Only(testbed="simulated"),
        "base.training.scenarios": Only(testbed="simulated"),
        "base.training.paired": Only(testbed="simulated"),
    }

    space: dict[str, Domain] = DEFAULT_SPACE
    """Option → list or range, for example {encoder.clusters: [2, 4], training.interval_s: {low: 0.5, high: 2}}."""
    base: TrialOptions = TrialOptions()
    """Base options of all trials."""
    testbed: Literal["simulated", "live"] = "simulated"
    """Testbeds that trials train on. A trial on live testbeds holds them from its first step to its end."""
    testbeds: Annotated[int, Only(testbed="live")] = Field(default=1, ge=1)
    """Live testbeds of each trial, stepped together."""
    trials: int = Field(default=32, ge=1)
    """Number of trials; with `grid`, repetitions of the whole grid."""
    search: Search = "optuna"
    """`random`, `grid` (every combination of the lists) or `optuna` (tree-structured Parzen estimator); `hyperopt`,
    `ax`, `bayesopt` and `hebo` need their package. With `pbt`, `pb2` and `hyperband` settings are drawn, `random` or as
    a `grid`."""
    search_arguments: Annotated[dict[str, Any], Only(search=("optuna", "hyperopt", "ax", "bayesopt", "hebo"))] = Field(
        default_factory=dict
    )
    """Arguments of Tune's class of that search algorithm, for example {n_initial_points: 8} for `hyperopt`; ours when
    not given."""
    scheduler: Scheduler = "asha"
    """`asha`, `hyperband` and `median` end the worse trials early, `pbt` and `pb2` let them copy better ones and vary
    (`pb2` on linear scales only), `none` trains all to the end. With `hyperband` trials wait for each other at each
    halving; `asha` needs no waiting and fewer trials."""
    scheduler_arguments: Annotated[dict[str, Any], Only(scheduler=("asha", "hyperband", "median", "pb2"))] = Field(
        default_factory=dict
    )
    """Arguments of Tune's class of that scheduler, for example {brackets: 2} for `asha`; ours when not given."""
    grace_share: Annotated[float, Only(scheduler=("asha", "median"))] = Field(default=0.25, gt=0, le=1)
    """ASHA and median: minimum share of the steps that every trial runs."""
    reduction: Annotated[int, Only(scheduler="asha")] = Field(default=3, ge=2)
    """ASHA: at each rung one trial of this many continues."""
    perturb_share: Annotated[float, Only(scheduler=POPULATIONS)] = Field(default=0.2, gt=0, le=1)
    """PBT and PB2: share of the steps between two exchanges. Trials that do not fit at once take turns of this
    length."""
    concurrent: int = Field(default=0, ge=0)
    """Trials that run at once; 0 runs as many as fit on the cluster, or one at a time on live testbeds of this machine.
    `pbt`, `pb2` and `hyperband` always run as many as fit."""
    trial_cpus: float = Field(default=1.0, gt=0)
    """CPUs reserved per trial; with 0.5, four trials share two cores, and no core is idle while one is replaced."""
    retries: int = Field(default=3, ge=0)
    """How often a trial whose process died is resumed from its last checkpoint."""
    checkpoint_every: int = Field(default=4, ge=1)
    """Training iterations between two checkpoints."""
    finalists: int = Field(default=0, ge=0)
    """Best settings that are trained again to the end with fresh seeds and validated on fresh episodes, the same ones
    for all (on live testbeds scored as in the search); the one with the best mean is the winner. 0 takes the best trial
    as it is."""
    seeds: Annotated[int, Only(finalists=GIVEN)] = Field(default=5, ge=2)
    """Fresh seeds with which each of them is trained."""
    validation_episodes: Annotated[int, Only(testbed="simulated")] = Field(default=8, ge=1)
    """Simulated episodes on which every policy is validated after each iteration."""
    validation_s: float = Field(default=40.0, gt=0)
    """Simulated seconds per validation episode; on live testbeds, real seconds of the reference run under least_conn
    before training. Live trials are scored on their training intervals, exploration included."""

    def replaced(self) -> Mapping[str, tuple[str, str]]:
        reason = "as search.space gives every trial its own value", "remove it from search.space"
        return {f"base.{path}": reason for path in self.space}


class ConfirmOptions(Options):
    """Evaluation of the best trials on live testbeds at the end."""

    only: ClassVar = {"judge.reference": Never("the page of a sweep compares with least_conn")}

    best: int = Field(default=1, ge=0)
    """Number of trials to evaluate, best first; 0 skips the evaluation."""
    testbeds: Annotated[int, Only(best=GIVEN)] = Field(default=2, ge=1)
    """Live testbeds, each with different arrivals, on which every trial is evaluated in parallel."""
    judge: Annotated[BlockOptions, Only(best=GIVEN)] = BlockOptions(rounds=3, warm_up_s=1.5, measure_s=5.0)
    """Number and length of the evaluation's blocks."""


def apply(base: TrialOptions, values: Mapping[str, Any]) -> TrialOptions:
    """The options with the values set at their dotted paths.

    Raises:
        ConfigError: an unknown path (with the closest match), or a value that the option rejects.
    """
    tree = base.model_dump()
    for path, value in values.items():
        _put(tree, path, value)
    try:
        return TrialOptions.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{first['msg']}: {first.get('input')!r}", where=f"space, {where}") from error


def trial_count(options: SearchOptions) -> int:
    """Number of trials of a search: with a grid, its combinations times its repetitions."""
    if options.search != "grid":
        return options.trials
    lists = [domain for domain in options.space.values() if not isinstance(domain, Range)]
    return options.trials * math.prod(len(values) for values in lists)


def check(options: SearchOptions) -> None:
    """Raises ConfigError for invalid paths and values and for what the search or the scheduler does not support."""
    space = options.space
    if not space:
        raise ConfigError("the search space is empty", where="space", remedy="give at least one option to try")
    for path, domain in space.items():
        if isinstance(domain, Range):
            _check_range(options, path, domain)
        elif not domain:
            raise ConfigError("the list of values is empty", where=f"space, {path}", remedy="list a value to try")
        else:
            for value in domain:
                _check_value(options, path, value)
    if options.search == "bayesopt":
        _check_real(space)
    if options.scheduler in POPULATIONS and not mutable(space):
        raise ConfigError(
            "population-based training has nothing to change",
            where="space",
            remedy=f"add one of {', '.join(MUTABLE)}; it does not change options that shape the network or the problem",
        )


def _check_range(options: SearchOptions, path: str, domain: Range) -> None:
    """Raises ConfigError unless the option takes both ends and, of a range of real numbers, what is between them."""
    where = f"space, {path}"
    if not domain.low < domain.high or (domain.log and domain.low <= 0):
        what, remedy = f"{domain.low} to {domain.high} is not a range", "give low < high, above 0 with log"
        raise ConfigError(what, where=where, remedy=remedy)
    if options.search == "grid":
        raise ConfigError("a grid needs a list of values", where=where, remedy="or use random")
    for end in (domain.low, domain.high):
        _check_value(options, path, int(end) if domain.integer else end)
    if domain.integer:
        return
    try:
        # No whole number is there: an option of whole numbers takes ends such as 2.0 and no other value of the range.
        _check_value(options, path, domain.low + (domain.high - domain.low) / math.pi)
    except ConfigError as error:
        cause = error.__cause__
        if not isinstance(cause, ValidationError) or not cause.errors()[0]["type"].startswith(("int_", "bool_")):
            raise
        what, remedy = "a range of real numbers for an option of whole numbers", "add integer: true"
        raise ConfigError(what, where=where, remedy=remedy) from error


def _check_real(space: Mapping[str, Domain]) -> None:
    """Raises ConfigError for what bayesopt cannot draw."""
    for path, domain in space.items():
        if not isinstance(domain, Range) or domain.integer:
            what = "bayesopt draws real numbers only"
            raise ConfigError(what, where=f"space, {path}", remedy="give {low: …, high: …}, or another search")
        if domain.log:
            what = "bayesopt draws on a linear scale only"
            raise ConfigError(what, where=f"space, {path}", remedy="leave log out, or use another search")


def _check_value(options: SearchOptions, path: str, value: Any) -> None:
    trial = apply(options.base, {path: value})
    if trial.training.algorithm.offline:
        what = f"{trial.training.algorithm.name} learns from records, and a sweep trains on testbeds"
        raise ConfigError(what, where="training.algorithm.name", remedy=f"take {', '.join(ONLINE)}")
    if trial.training.steps != options.base.training.steps:
        # Early stopping, exchanges and the report go by the steps of the base.
        what = f"all trials train {options.base.training.steps} steps"
        raise ConfigError(what, where=f"space, {path}", remedy="set search.base.training.steps")
    for idle in idle_options(options.changed({"base": trial, "space": {}})):
        if is_within(f"base.{path}", idle.path):
            raise ConfigError(
                f"option '{path}' has no effect {idle.reason}", where=f"space, {path}", remedy=idle.remedy
            )


def mutable(space: Mapping[str, Domain]) -> dict[str, Domain]:
    """The part of a space that may change while a trial runs."""
    return {path: domain for path, domain in space.items() if path in MUTABLE}


def structure(values: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a trial's values that must equal those of a checkpoint: all but the mutable ones."""
    return {path: value for path, value in values.items() if path not in MUTABLE}


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, name = path.split(".")
    level: Any = tree
    for depth, part in enumerate([*parents, name]):
        if not isinstance(level, dict) or part not in level:
            before = ".".join(parents[:depth])
            raise ConfigError(f"unknown option '{path}'", where="space", remedy=_nearest(path, before, level))
        if depth < len(parents):
            level = level[part]
    # A space gives K as a number; the option is a list of counts to compare by BIC.
    wants_list = isinstance(level[name], tuple | list) and not isinstance(value, tuple | list)
    level[name] = (value,) if wants_list else value


def _nearest(path: str, before: str, level: Any) -> str:
    if not isinstance(level, dict):
        return f"'{before}' has no options below it"
    return closest(path, [f"{before}.{name}" if before else name for name in level])
