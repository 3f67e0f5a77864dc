"""Heuristic policies with the same `act` as a learned one: what a person would write without learning."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from actuators.control import Control, Weights
from envs.actions import ActionCodec
from envs.observation import Observation

FloatArray = NDArray[np.float64]


class Policy(Protocol):
    """Anything that turns an observation into a control; stateless between calls."""

    name: str

    def act(self, observation: Observation) -> Control: ...


class Equal:
    """Every server of a group gets the same weight: NGINX as shipped."""

    name = "equal"

    def act(self, observation: Observation) -> Control:
        return Weights.equal(observation.topology)


class InverseLatency:
    """Weight ∝ 1 / EWMA(0.5) of the mean response time, per group and server, errors charged ten times.

    The best simple heuristic on least_conn (shared study, section 3). It goes through the same codec
    as a learned policy, with a residual of 0, so that floor and dead band are alike for both.
    """

    name = "inverse_latency"

    def __init__(self, codec: ActionCodec) -> None:
        self._codec = codec

    def act(self, observation: Observation) -> Control:
        shares = inverse_latency_shares(observation.latency_s)
        return Weights(
            observation.topology, self._codec.weights(np.zeros(self._codec.size), shares, observation.weights)
        )


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
