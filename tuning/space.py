"""The search space of a sweep: dotted option path → the values or the range to try; checked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError

from actuators.errors import ConfigError, closest
from actuators.options import Options
from envs.encoding import EncoderOptions
from tuning.options import TrainingOptions


class Range(Options):
    """A continuous or whole-numbered range."""

    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Draw evenly on a logarithmic scale."""
    integer: bool = False
    """Whole numbers only."""


Domain = Range | tuple[Any, ...]
"""A range, or the list of values to choose from."""


class TrialOptions(Options):
    """What one trial does; a search space names its fields by dotted paths."""

    encoder: EncoderOptions = EncoderOptions()
    """The mixture that the trial fits; `encoder.clusters: [2, 4, 8]` in a space tries three cluster counts."""
    training: TrainingOptions = Field(default_factory=lambda: TrainingOptions(steps=12_000))
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
"""What population-based training may change in a running trial; everything else is part of its structure."""


def apply(base: TrialOptions, values: Mapping[str, Any]) -> TrialOptions:
    """The options with values put in at their paths.

    Raises ConfigError, with the closest match for an unknown path, or what pydantic refuses of a value.
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


def check(space: Mapping[str, Domain], base: TrialOptions, search: str, scheduler: str) -> None:
    """Raises ConfigError for paths and values that no trial could use, and for what search or scheduler cannot do."""
    if not space:
        raise ConfigError("the search space is empty", where="space", remedy="give at least one option to try")
    for path, domain in space.items():
        if isinstance(domain, Range):
            if not domain.low < domain.high or (domain.log and domain.low <= 0):
                raise ConfigError(f"{domain.low} to {domain.high} is not a range", where=f"space, {path}")
            if search == "grid":
                raise ConfigError("a grid needs a list of values", where=f"space, {path}", remedy="or use random")
        elif not domain:
            raise ConfigError("an empty list of values", where=f"space, {path}")
        for value in (domain.low, domain.high) if isinstance(domain, Range) else domain:
            apply(base, {path: int(value) if isinstance(domain, Range) and domain.integer else value})
    if scheduler == "pbt" and not mutable(space):
        raise ConfigError(
            "population-based training has nothing to change",
            where="space",
            remedy=f"add one of {', '.join(MUTABLE)}; what shapes the network or the problem stays as it is drawn",
        )


def mutable(space: Mapping[str, Domain]) -> dict[str, Domain]:
    """The part that may change while a trial runs."""
    return {path: domain for path, domain in space.items() if path in MUTABLE}


def structure(values: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a trial's values that a checkpoint is bound to: all but what may change while a trial runs."""
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
    # K is swept as a number, where the option is the list of counts to compare by BIC.
    wants_list = isinstance(level[name], tuple | list) and not isinstance(value, tuple | list)
    level[name] = (value,) if wants_list else value


def _nearest(path: str, before: str, level: Any) -> str:
    if not isinstance(level, dict):
        return f"'{before}' has no options below it"
    return closest(path, [f"{before}.{name}" if before else name for name in level])
