"""The estimators of service times by name, and the control before the first window."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.control import ServiceTimes
from actuators.contract.topology import Topology
from actuators.errors import ConfigError, closest
from envs.estimators.base import FIRST_GUESS_S, Estimator, InverseLatencyEstimator, TypeMeansEstimator
from envs.estimators.idle import IdleEstimator
from envs.estimators.levelled import LevelledEstimator
from envs.estimators.ratio import RatioEstimator

ESTIMATORS: dict[str, Callable[..., Estimator]] = {
    estimator.name: estimator
    for estimator in (IdleEstimator, InverseLatencyEstimator, LevelledEstimator, RatioEstimator, TypeMeansEstimator)
}
"""Estimators by name; each is made with (topology, batch=())."""

DEFAULT_ESTIMATOR = LevelledEstimator.name


def estimator_named(name: str) -> Callable[..., Estimator]:
    """An estimator of `ESTIMATORS`; raises ConfigError with the closest match."""
    if name not in ESTIMATORS:
        raise ConfigError(f"unknown service-time estimator '{name}'", remedy=closest(name, ESTIMATORS))
    return ESTIMATORS[name]


def first_control(topology: Topology, workers: FloatArray) -> ServiceTimes:
    """Equal service times, for the start; workers ``[servers]``."""
    return ServiceTimes(topology, np.full(topology.shape, FIRST_GUESS_S), workers)
