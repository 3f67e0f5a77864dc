"""Numbers of a policy and its paired ratios to another one, with bootstrap intervals over rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from actuators import histogram
from actuators.window import FloatArray
from tuning.tally import Tally

METRICS: tuple[str, ...] = (
    "mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "p999_ms", "art_per_request", "miss_ratio", "errors",
)  # fmt: skip
"""What policies are compared by; for all of them less is better."""

_PERCENTILES = {"p50_ms": 50.0, "p90_ms": 90.0, "p95_ms": 95.0, "p99_ms": 99.0, "p999_ms": 99.9}
_RESAMPLES = 2000
_CONFIDENCE = 0.95

Verdict = Literal["better", "worse", "no difference shown", "not shown"]


@dataclass(frozen=True)
class Ratio:
    """A paired ratio of two policies; below 1 the first one is better.

    Attributes:
        value: ratio of the values pooled over the paired rounds; None where it has no meaning (0/0, x/0).
        low, high: 95 % bootstrap interval over rounds; None from one round, or where it has no meaning.
        median: median of the rounds' own ratios.
        rounds: paired rounds behind it.
    """

    value: float | None
    low: float | None
    high: float | None
    median: float | None
    rounds: int

    @property
    def verdict(self) -> Verdict:
        """What the interval shows; ``not shown`` when there is none."""
        if self.low is None or self.high is None:
            return "not shown"
        if self.high < 1:
            return "better"
        return "worse" if self.low > 1 else "no difference shown"

    def to_json(self) -> dict[str, Any]:
        interval = None if self.low is None or self.high is None else [self.low, self.high]
        return {"value": self.value, "interval": interval, "median": self.median, "rounds": self.rounds}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Ratio:
        low, high = data["interval"] or (None, None)
        return cls(data["value"], low, high, data["median"], data["rounds"])


class Sample:
    """The blocks of one policy (rows: rounds), reduced to what every metric is a function of.

    Args:
        tallies: one per round, in the same order for all policies that are to be paired.
        deadlines_s: ``[groups]``.
        group: one request type, or None for all of them.
    """

    def __init__(self, tallies: Sequence[Tally], deadlines_s: FloatArray, group: int | None = None) -> None:
        groups = slice(None) if group is None else slice(group, group + 1)
        tardiness = [tally.tardiness(deadlines_s) for tally in tallies]
        counts = np.array([t.latency_counts[groups].sum(axis=0) for t in tallies], dtype=float)
        # Empty buckets above the slowest answer would only cost time in every resample.
        self._counts = counts[:, : int(np.flatnonzero(counts.any(axis=0)).max(initial=0)) + 1]
        self._latency_s = np.array([t.latency_s_sum[groups].sum() for t in tallies])
        self._due = np.array([t.due[groups].sum() for t in tallies], dtype=float)
        self._errors = np.array([t.error_count[groups].sum() for t in tallies], dtype=float)
        self._art = np.array([art[groups].sum() for art, _ in tardiness])
        self._missed = np.array([missed[groups].sum() for _, missed in tardiness], dtype=float)

    def metrics(self, weights: FloatArray) -> dict[str, FloatArray]:
        """Every metric of rounds pooled with ``[draws, rounds]`` multiplicities: name → ``[draws]``, nan if empty."""
        counts = weights @ self._counts
        due, good = weights @ self._due, counts.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            values = {
                "mean_ms": weights @ self._latency_s * 1e3 / good,
                "art_per_request": weights @ self._art / due,
                "miss_ratio": weights @ self._missed / due,
                "errors": weights @ self._errors,
            }
        cumulative = np.cumsum(counts, axis=1)
        for name, percentile in _PERCENTILES.items():
            values[name] = _percentile_ms(cumulative, percentile)
        return values

    def pooled(self) -> dict[str, float | None]:
        """Every metric over all rounds; None where nothing was answered."""
        values = self.metrics(np.ones((1, len(self._due))))
        return {name: _finite(float(values[name][0])) for name in METRICS}

    def cdf(self) -> dict[str, list[float]]:
        """The latency distribution as about a hundred points, dense in the tail: ``percentile``, ``latency_ms``."""
        percentiles = np.unique(np.concatenate([np.linspace(1, 90, 60), 100 - np.geomspace(10, 0.01, 50)]))
        counts = self._counts.sum(axis=0)
        # A percentile with fewer than five slower requests is an anecdote.
        enough = percentiles[percentiles <= 100 - 500 / max(counts.sum(), 1.0)]
        cumulative = np.cumsum(counts)[None, :]
        points = [float(_percentile_ms(cumulative, p)[0]) for p in enough] if counts.any() else []
        return {"percentile": [float(p) for p in enough] if points else [], "latency_ms": points}


def compare(sample: Sample, reference: Sample, rounds: int, seed: int) -> dict[str, Ratio]:
    """Paired ratios of every metric; both samples hold the same `rounds` rounds in the same order."""
    if rounds == 0:
        return {name: Ratio(None, None, None, None, 0) for name in METRICS}
    pooled = _ratios(sample, reference, np.ones((1, rounds)))
    single = _ratios(sample, reference, np.eye(rounds))
    draws = _ratios(sample, reference, _resamples(rounds, seed)) if rounds > 1 else {}
    return {name: _ratio(pooled[name], single[name], draws.get(name), rounds) for name in METRICS}


def _ratios(sample: Sample, reference: Sample, weights: FloatArray) -> dict[str, FloatArray]:
    above, below = sample.metrics(weights), reference.metrics(weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {name: above[name] / below[name] for name in METRICS}


def _ratio(pooled: FloatArray, single: FloatArray, draws: FloatArray | None, rounds: int) -> Ratio:
    value = _finite(float(pooled[0]))
    if value is None:
        return Ratio(None, None, None, None, rounds)
    median = _finite(float(np.median(single)))
    low, high = (None, None) if draws is None else _interval(value, draws, rounds)
    return Ratio(value, low, high, median, rounds)


def _interval(value: float, draws: FloatArray, rounds: int) -> tuple[float | None, float | None]:
    """Student's interval with the bootstrap's standard error, on the log scale unless a draw is 0.

    Plain bootstrap percentiles are too narrow for few rounds: they lack the factor sqrt(n/(n-1)) and take
    the spread as known (Hesterberg 2015, doi 10.1080/00031305.2015.1089789, section 4.3), and with two or
    three rounds they can end at the estimate itself.
    """
    if not np.isfinite(draws).all():
        return None, None
    reach = stats.t.ppf((1 + _CONFIDENCE) / 2, rounds - 1) * np.sqrt(rounds / (rounds - 1))
    if value > 0 and (draws > 0).all():
        error = float(np.sqrt(np.mean(np.log(draws / value) ** 2)))
        factor = float(np.exp(min(reach * error, 700.0)))
        return value / factor, value * factor
    error = float(np.sqrt(np.mean((draws - value) ** 2)))
    return max(value - reach * error, 0.0), value + reach * error


def _resamples(rounds: int, seed: int) -> FloatArray:
    """``[draws, rounds]``: how often each round is drawn in each resample."""
    rng = np.random.default_rng([seed, rounds])
    return rng.multinomial(rounds, np.full(rounds, 1 / rounds), size=_RESAMPLES).astype(float)


def _percentile_ms(cumulative: FloatArray, percentile: float) -> FloatArray:
    """Percentile of each row of cumulative counts, linear within a bucket so that ratios do not jump."""
    lower, upper = histogram.bounds_us()
    counted = cumulative[:, -1]
    rank = np.maximum(counted * percentile / 100.0, 1e-9)
    bucket = np.minimum((cumulative < rank[:, None]).sum(axis=1), cumulative.shape[1] - 1)
    rows = np.arange(len(cumulative))
    before = np.where(bucket > 0, cumulative[rows, bucket - 1], 0.0)
    inside = cumulative[rows, bucket] - before
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (rank - before) / inside
    value: FloatArray = (lower[bucket] + share * (upper - lower)[bucket]) / 1e3
    return np.where(counted > 0, value, np.nan)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
