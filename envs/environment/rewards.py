"""Window → reward with named terms, and the ledger of episodes and terms that an environment keeps for the log.

A failed request costs at least as much as the slowest answer of its type, and at least 1 s: failing never pays.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray
from envs.observation.deadlines import bucket_values_s, failure_s, tardiness
from envs.observation.features import Counters, quantile_s

RewardName = Literal["log_latency", "art", "p99", "cluster_rank"]

_FLOOR = 0.01
KEPT_EPISODES = 2**16
"""Started episodes that a ledger keeps; a training takes them after every sampling, other users may never do so."""


def reward_terms(counters: Counters, deadlines_s: FloatArray) -> dict[str, FloatArray]:
    """Named terms, each ``[...]`` (the batch's leading axes).

    Returns:
        ``relative_latency``: mean of response time / deadline; ``relative_p99``: of the types' p99 /
        deadline, the mean by requests; ``art``: relative tardiness per request; ``error_ratio``;
        ``requests``. In all of them a failed request counts as the slowest answer of its type in the
        window, at least as one after 1 s. Windows without requests give zeros.
    """
    errors = counters.responses[..., 4].sum(axis=-1)
    by_type = counters.requests.sum(axis=-1)
    requests = by_type.sum(axis=-1)
    safe = np.maximum(requests, 1)
    counts = counters.latency_histogram.sum(axis=-2)
    of_failure_s = np.maximum(_worst_s(counts, counters.bounds_ms), failure_s(deadlines_s))
    seconds = counters.response_ms_sum.sum(axis=-1) / 1e3 + errors * of_failure_s
    late = tardiness(counters.latency_histogram, counters.responses[..., 4], counters.bounds_ms, deadlines_s)
    p99_s = np.where(errors > 0.01 * by_type, of_failure_s, quantile_s(counts, counters.bounds_ms, 0.99))
    return {
        "relative_latency": (seconds / deadlines_s).sum(axis=-1) / safe,
        "relative_p99": (p99_s / deadlines_s * by_type).sum(axis=-1) / safe,
        "art": late.sum(axis=-1) / safe,
        "error_ratio": errors.sum(axis=-1) / safe,
        "requests": requests.astype(float),
    }


def rank_term(posterior: FloatArray, ranks: FloatArray, error_ratio: FloatArray) -> FloatArray:
    """The plan's first idea: how bad the servers' clusters are, 0 (best) … 1 (worst), ``[...]``.

    Args:
        posterior: ``[..., servers, K]``; ranks: ``[K]`` in 0…1, see `Encoder.ranks`.
        error_ratio: ``[...]``; failed requests count as spent in the worst cluster.
    """
    expected = (posterior @ ranks).mean(axis=-1)
    value: FloatArray = expected + error_ratio * (1 - expected)
    return value


def reward(mix: Mapping[RewardName, float], terms: Mapping[str, FloatArray]) -> FloatArray:
    """The scalar to maximise, ``[...]``: the weighted sum of rewards by name; 0 in windows without requests.

    ``log_latency``: −log(relative latency + 0.01), so that one overloaded step does not outweigh a thousand good ones
    (docs/studies.md#reward). ``p99``: the same of the relative p99. ``art``: −ART
    per request. ``cluster_rank``: minus the term of that name (`rank_term`).
    """
    total = sum(weight * _REWARDS[name](terms) for name, weight in mix.items())
    return np.where(terms["requests"] > 0, total, 0.0)


_REWARDS: dict[RewardName, Callable[[Mapping[str, FloatArray]], FloatArray]] = {
    "log_latency": lambda terms: -np.log(terms["relative_latency"] + _FLOOR),
    "p99": lambda terms: -np.log(terms["relative_p99"] + _FLOOR),
    "art": lambda terms: -terms["art"],
    "cluster_rank": lambda terms: -terms["cluster_rank"],
}


@dataclass(frozen=True)
class Episode:
    """One started episode: the environment's row, the scenario's name and the seed that repeats its script."""

    row: int
    scenario: str
    seed: int


@dataclass
class Ledger:
    """Filled by an environment, emptied by the callback that logs it; keeps the newest `KEPT_EPISODES` episodes."""

    _episodes: deque[Episode] = field(default_factory=lambda: deque(maxlen=KEPT_EPISODES))
    _sums: dict[str, float] = field(default_factory=dict)
    _steps: int = 0

    def start(self, row: int, scenario: str, seed: int) -> None:
        """An episode began."""
        self._episodes.append(Episode(row, scenario, seed))

    def add(self, terms: Mapping[str, NDArray[np.float64]], rows: NDArray[np.bool_] | None = None) -> None:
        """The terms of a step, each scalar or ``[n]``; `rows` leaves out those that are False."""
        chosen = {name: np.atleast_1d(term) for name, term in terms.items()}
        for name, term in chosen.items():
            self._sums[name] = self._sums.get(name, 0.0) + float((term if rows is None else term[rows]).sum())
        self._steps += int(next(iter(chosen.values())).size if rows is None else rows.sum())

    def take_episodes(self) -> list[Episode]:
        """Episodes started since the last call, at most the newest `KEPT_EPISODES`."""
        taken = list(self._episodes)
        self._episodes.clear()
        return taken

    def take_means(self) -> dict[str, float]:
        """Mean per step of every term since the last call; empty when there was no step."""
        means = {name: total / self._steps for name, total in self._sums.items()} if self._steps else {}
        self._sums, self._steps = {}, 0
        return means


def _worst_s(counts: NDArray[np.int64], bounds_ms: tuple[int, ...]) -> FloatArray:
    _, upper = bucket_values_s(bounds_ms)
    worst: FloatArray = np.where(counts > 0, upper, 0.0).max(axis=-1)
    return worst
