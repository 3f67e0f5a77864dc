"""Heuristic policies with the same `act` as a learned one: what a person would write without learning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from actuators.control import Control, Weights
from envs.actions import ActionCodec
from envs.features import GROUP_RATE_SCALE, SERVER_FEATURES
from envs.observation import Observation

FloatArray = NDArray[np.float64]

_TRAFFIC_SHARE = SERVER_FEATURES.index("traffic_share")


class Policy(Protocol):
    """Anything that turns an observation into a control; stateless between calls."""

    name: str

    def act(self, observation: Observation) -> Control: ...


class WeightPolicy(ABC):
    """A heuristic that only has to say its shares; floor and dead band are those of a learned policy.

    Args:
        codec: turns shares into integer weights, with a residual of 0.
    """

    name: str

    def __init__(self, codec: ActionCodec) -> None:
        self.codec = codec

    @abstractmethod
    def shares(self, observation: Observation) -> FloatArray:
        """Positive and finite, ``[..., groups, servers]``; only the proportions within a group matter."""

    def weights(self, observation: Observation) -> NDArray[np.int64]:
        """Integer weights ``[..., groups, servers]``, also for a batch."""
        return self.codec.weights(np.zeros(self.codec.size), self.shares(observation), observation.weights)

    def act(self, observation: Observation) -> Control:
        return Weights(observation.topology, self.weights(observation))


class Equal:
    """Every server of a group gets the same weight: NGINX as shipped."""

    name = "equal"

    def act(self, observation: Observation) -> Control:
        return Weights.equal(observation.topology)


class Static:
    """The same weights for ever, for example the best that `envs.static_search` found."""

    def __init__(self, weights: Weights, name: str = "static") -> None:
        self.name, self._weights = name, weights

    def act(self, observation: Observation) -> Control:
        return self._weights


class InverseLatency(WeightPolicy):
    """Weight ∝ 1 / EWMA(0.5) of the mean response time, per group and server, errors charged ten times.

    The best simple heuristic on least_conn (shared study, section 3).
    """

    name = "inverse_latency"

    def shares(self, observation: Observation) -> FloatArray:
        return inverse_latency_shares(observation.latency_s)


def inverse_latency_shares(latency_s: FloatArray) -> FloatArray:
    """Shares ∝ 1/latency, largest of each group 1. ``[..., groups, servers]`` in and out.

    A server without a measurement (nan) is taken as fast as the mean of its group's known ones.
    """
    rate = 1.0 / latency_s
    known = np.isfinite(rate)
    mean = np.where(known, rate, 0.0).sum(axis=-1, keepdims=True) / np.maximum(known.sum(axis=-1, keepdims=True), 1)
    rate = np.where(known, rate, np.where(mean > 0, mean, 1.0))
    shares: FloatArray = rate / rate.max(axis=-1, keepdims=True)
    return shares


def rates_rps(observation: Observation) -> FloatArray:
    """Requests per second and server in the window, ``[..., groups, servers]``, from the observation alone."""
    of_group = np.expm1(GROUP_RATE_SCALE * observation.groups)
    share: FloatArray = observation.features[..., _TRAFFIC_SHARE]
    rates: FloatArray = share * of_group[..., None]
    return rates
