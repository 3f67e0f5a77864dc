"""Window → scalar with named terms. A failure is never rewarded: an error costs at least a 1 s answer."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from envs.deadlines import ERROR_LATENCY_S, tardiness
from envs.features import Counters

FloatArray = NDArray[np.float64]
RewardName = Literal["log_latency", "art"]


def reward_terms(counters: Counters, deadlines_s: FloatArray) -> dict[str, FloatArray]:
    """Named terms, each ``[...]`` (the batch's leading axes).

    Returns:
        ``relative_latency``: mean of response time / deadline, an error charged 1 s at least;
        ``art``: relative tardiness per request; ``error_ratio``; ``requests``.
        Windows without requests give zeros.
    """
    errors = counters.responses[..., 4]
    requests = counters.requests.sum(axis=(-1, -2))
    safe = np.maximum(requests, 1)
    seconds = counters.response_ms_sum.sum(axis=-1) / 1e3 + errors.sum(axis=-1) * ERROR_LATENCY_S
    late = tardiness(counters.latency_histogram, errors, counters.bounds_ms, deadlines_s)
    return {
        "relative_latency": (seconds / deadlines_s).sum(axis=-1) / safe,
        "art": late.sum(axis=-1) / safe,
        "error_ratio": errors.sum(axis=(-1, -2)) / safe,
        "requests": requests.astype(float),
    }


def reward(name: RewardName, terms: dict[str, FloatArray]) -> FloatArray:
    """The scalar to maximise, ``[...]``.

    ``log_latency``: −log(relative latency + 0.01), the study's choice (section 6.4): one overloaded
    step does not outweigh a thousand good ones. ``art``: −ART per request, for comparison.
    """
    if name == "art":
        return -terms["art"]
    value: FloatArray = -np.log(terms["relative_latency"] + 0.01)
    return np.where(terms["requests"] > 0, value, 0.0)
