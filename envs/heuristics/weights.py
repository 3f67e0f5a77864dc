"""Heuristic policies on weights, with the same `act` as a learned policy.

`little`, `equaliser` and `aimd` move the weights in force and are unstable near saturation on round robin, harmless on
least_conn (docs/studies.md#where-feedback-is-dangerous).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray
from actuators.contract.control import Control, Weights
from envs.environment.actions import ActionCodec
from envs.observation.features import GROUP_RATE_SCALE, SERVER_FEATURES, inverse_latency_shares
from envs.observation.observer import Observation

_TRAFFIC_SHARE = SERVER_FEATURES.index("traffic_share")


class Policy(Protocol):
    """Anything that turns an observation into a control; stateless between calls."""

    name: str

    def act(self, observation: Observation) -> Control: ...


class WeightPolicy(ABC):
    """A heuristic that defines shares only; floor and dead band are those of a learned policy.

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


class InverseLatency(WeightPolicy):
    """Weight ∝ 1 / EWMA(0.5) of the mean response time, per group and server, errors charged ten times.

    The best simple heuristic on least_conn (docs/studies.md#heuristics-on-weights).
    """

    name = "inverse_latency"

    def shares(self, observation: Observation) -> FloatArray:
        return inverse_latency_shares(observation.latency_s)


def rates_rps(observation: Observation) -> FloatArray:
    """Requests per second and server in the window, ``[..., groups, servers]``, from the observation alone."""
    of_group = np.expm1(GROUP_RATE_SCALE * observation.groups)
    share: FloatArray = observation.features[..., _TRAFFIC_SHARE]
    rates: FloatArray = share * of_group[..., None]
    return rates


EQUALISER_GAIN = 0.3
AIMD_FACTOR, AIMD_STEP, AIMD_TOLERANCE = 0.7, 0.04, 1.25


class Little(WeightPolicy):
    """Weight ∝ throughput / requests in flight, which is 1 / time in the server by Little's law.

    Requests in flight are a snapshot at the end of the window and therefore noisy
    (docs/studies.md#heuristics-on-weights). Without that count the policy is 1/latency, which Little's law gives.
    """

    name = "little"

    def shares(self, observation: Observation) -> FloatArray:
        rates = rates_rps(observation)
        if observation.in_flight is None:
            return inverse_latency_shares(observation.latency_s)
        # One request is added on both sides, so that an empty server is not infinitely fast.
        in_server_s = (observation.in_flight + 1.0) / (rates + 1.0)
        return inverse_latency_shares(in_server_s)


class _Incremental(WeightPolicy):
    """Moves the weights in force by small steps, which a dead band would swallow."""

    def __init__(self, codec: ActionCodec) -> None:
        super().__init__(ActionCodec(codec.topology, codec.options.model_copy(update={"dead_band": 0.0})))

    @staticmethod
    def present(observation: Observation) -> FloatArray:
        """Weights in force relative to the largest of each group, ``(0, 1]``."""
        usable = np.maximum(observation.weights, 1)
        shares: FloatArray = usable / usable.max(axis=-1, keepdims=True)
        return shares


class Equaliser(_Incremental):
    """Weight × (mean latency of the group / own latency)^0.3: drives all servers of a group to equal latency."""

    name = "equaliser"

    def shares(self, observation: Observation) -> FloatArray:
        latency_s, known = observation.latency_s, np.isfinite(observation.latency_s)
        count = np.maximum(known.sum(axis=-1, keepdims=True), 1)
        mean = np.where(known, latency_s, 0.0).sum(axis=-1, keepdims=True) / count
        step = np.where(known, mean / np.where(known, latency_s, 1.0), 1.0) ** EQUALISER_GAIN
        shares: FloatArray = self.present(observation) * step
        return shares


class Aimd(_Incremental):
    """Weight × 0.7 when the server is 1.25 times slower than its group's median, else + 0.04 of the largest."""

    name = "aimd"

    def shares(self, observation: Observation) -> FloatArray:
        latency_s = np.where(observation.topology.mask, observation.latency_s, np.nan)
        known = np.isfinite(latency_s)
        lowest = np.where(known, latency_s, np.inf).min(axis=-1, keepdims=True)
        filled = np.where(known.any(axis=-1, keepdims=True), latency_s, 1.0)
        median = np.nanmedian(np.where(np.isfinite(lowest), filled, 1.0), axis=-1, keepdims=True)
        slow = known & (latency_s > AIMD_TOLERANCE * median)
        present = self.present(observation)
        return np.where(slow, AIMD_FACTOR * present, present + AIMD_STEP)
