"""Metrics of a policy and its paired ratios to another one, with 95 % bootstrap intervals over seeds and rounds.

Rounds of one seed share what the policies learned in it, so seeds are resampled as wholes as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from actuators.contract import histogram
from actuators.contract.arrays import FloatArray
from tuning.judging.tally import BlockTally

RESAMPLES = 1000
"""Only their spread is used: 1000 tell it to 2 %."""
CONFIDENCE = 0.95
METRICS: tuple[str, ...] = (
    "mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "p999_ms", "art_per_request", "miss_ratio", "errors",
)  # fmt: skip
"""What policies are compared by; for all of them less is better."""

_PERCENTILES = {"p50_ms": 50.0, "p90_ms": 90.0, "p95_ms": 95.0, "p99_ms": 99.0, "p999_ms": 99.9}
_SAME = 1e-12
"""Relative difference below which two values differ by rounding only."""

Verdict = Literal["better", "worse", "no measurable difference", "inconclusive"]


@dataclass(frozen=True)
class PairedRatio:
    """A paired ratio of two policies; below 1 the first one is better.

    Attributes:
        value: ratio of the values pooled over the paired rounds; None where it has no meaning (0/0, x/0).
        low, high: 95 % bootstrap interval over seeds and rounds; None from one round, from fewer than six that are all
            alike, or where it has no meaning.
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
        """What the interval shows; ``inconclusive`` when there is none."""
        if self.low is None or self.high is None:
            return "inconclusive"
        if self.high < 1:
            return "better"
        return "worse" if self.low > 1 else "no measurable difference"

    def to_json(self) -> dict[str, Any]:
        interval = None if self.low is None or self.high is None else [self.low, self.high]
        return {"value": self.value, "interval": interval, "median": self.median, "rounds": self.rounds}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PairedRatio:
        low, high = data["interval"] or (None, None)
        return cls(data["value"], low, high, data["median"], data["rounds"])


@dataclass(frozen=True, eq=False)
class SpreadPart:
    """One level of the hierarchy.

    Attributes:
        draws: ``[resamples, rounds]``, how often each round is in each resample.
        units: things that were resampled, per thing that they are in.
        freedom: degrees of freedom of its variance.
    """

    draws: FloatArray
    units: float
    freedom: int


class Sample:
    """The blocks of one policy (rows: rounds), reduced to what every metric is a function of.

    Args:
        tallies: one per round, in the same order for all policies that are to be paired.
        deadlines_s: ``[groups]``.
        group: one request type, or None for all of them.
    """

    def __init__(self, tallies: Sequence[BlockTally], deadlines_s: FloatArray, group: int | None = None) -> None:
        self._drawn: dict[SpreadPart, dict[str, FloatArray]] = {}
        groups = slice(None) if group is None else slice(group, group + 1)
        tardiness = [tally.tardiness(deadlines_s) for tally in tallies]
        counts = np.array([t.latency_counts[groups].sum(axis=0) for t in tallies], dtype=float)
        # Buckets without an answer would only cost time in every resample: most of them, in a short block.
        self._buckets = np.flatnonzero(counts.any(axis=0)) if counts.any() else np.zeros(1, dtype=np.int64)
        self._counts = counts[:, self._buckets]
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
            values[name] = _percentile_ms(cumulative, self._buckets, percentile)
        return values

    def drawn(self, part: SpreadPart) -> dict[str, FloatArray]:
        """The metrics of the part's resamples; a reference is asked for the same ones by every policy."""
        if part not in self._drawn:
            self._drawn[part] = self.metrics(part.draws)
        return self._drawn[part]

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
        cumulative = np.broadcast_to(np.cumsum(counts), (len(enough), len(counts)))
        points: list[float] = _percentile_ms(cumulative, self._buckets, enough).tolist() if counts.any() else []
        return {"percentile": [float(p) for p in enough] if points else [], "latency_ms": points}


def compare(
    sample: Sample, reference: Sample, rounds: int, seed: int, run_seeds: Sequence[int] | None = None
) -> dict[str, PairedRatio]:
    """Paired ratios of every metric; both samples hold the same `rounds` rounds in the same order.

    Args:
        seed: of the bootstrap.
        run_seeds: the evaluation's seed of each round; one for all when None.
    """
    if rounds == 0:
        return {name: PairedRatio(None, None, None, None, 0) for name in METRICS}
    pooled = _ratios(sample, reference, np.ones((1, rounds)))
    single = _ratios(sample, reference, np.eye(rounds))
    parts = spread_parts(tuple(run_seeds or [0] * rounds), seed)
    draws = [_divide(sample.drawn(part), reference.drawn(part)) for part in parts]
    return {name: _ratio(pooled[name], single[name], [d[name] for d in draws], parts, rounds) for name in METRICS}


@lru_cache(maxsize=256)
def spread_parts(run_seeds: tuple[int, ...], seed: int) -> list[SpreadPart]:
    """The rounds within their seeds and, when there are several seeds, the seeds themselves; empty for one round."""
    rounds, seeds = len(run_seeds), sorted(set(run_seeds))
    rng = np.random.default_rng([seed, rounds])
    member = np.array([[run_seed == one for run_seed in run_seeds] for one in seeds], dtype=float)
    if len(seeds) == rounds:
        # One round per seed: nothing can be said of rounds within a seed, and nothing needs to be.
        member = np.ones((1, rounds))
        seeds = seeds[:1]
    parts = []
    if rounds > len(seeds):
        inside = sum(rng.multinomial(int(row.sum()), row / row.sum(), size=RESAMPLES).astype(float) for row in member)
        parts.append(SpreadPart(np.asarray(inside), rounds / len(seeds), rounds - len(seeds)))
    if len(seeds) > 1:
        whole = rng.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size=RESAMPLES) @ member
        parts.append(SpreadPart(whole, len(seeds), len(seeds) - 1))
    return parts


def _of_equal(value: float, units: int) -> tuple[float | None, float | None]:
    """The interval of a ratio that every resample gives as well; None for fewer units than a sign test needs.

    One end is the ratio. The other is as far towards 1 as the upper limit of the probability that a unit, a round or a
    seed, differs from these (Clopper and Pearson 1934, doi 10.2307/2331986), as if such a unit had a ratio of 1.
    """
    if abs(value - 1.0) <= _SAME:
        return min(value, 1.0), max(value, 1.0)
    tail = (1 - CONFIDENCE) / 2
    if 0.5**units > tail:
        return None, None
    other = value + (1.0 - value) * (1 - tail ** (1 / units))
    return min(value, other), max(value, other)


def interval(
    value: float, draws: Sequence[FloatArray], parts: Sequence[SpreadPart]
) -> tuple[float | None, float | None]:
    """Student's interval with the bootstrap's standard error, on the log scale unless a draw is 0.

    `_of_equal` where no resample differs, for 0 in particular.

    Plain bootstrap percentiles are too narrow for few rounds: they lack the factor sqrt(n/(n-1)) and take
    the spread as known (Hesterberg 2015, doi 10.1080/00031305.2015.1089789, section 4.3), and with two or
    three rounds they can end at the estimate itself.

    The variance over whole seeds holds that of their rounds already; where it is the larger one, its excess
    is what seeds add. Both shares give the degrees of freedom (Satterthwaite 1946, doi 10.2307/3002019).

    Args:
        draws: per part, the value of each resample.
    """
    if not all(np.isfinite(values).all() for values in draws):
        return None, None
    units = parts[-1].freedom + 1
    if value == 0:
        return _of_equal(value, units)
    logarithmic = value > 0 and all((values > 0).all() for values in draws)
    variances = [
        _variance(value, values, part, logarithmic=logarithmic) for values, part in zip(draws, parts, strict=True)
    ]
    shares = [variances[0], *(max(later - variances[0], 0.0) for later in variances[1:])]
    total = sum(shares)
    if total <= _SAME**2:
        return _of_equal(value, units)
    freedom = total**2 / sum(share**2 / part.freedom for share, part in zip(shares, parts, strict=True))
    reach = float(stdtrit(freedom, (1 + CONFIDENCE) / 2) * np.sqrt(total))
    if logarithmic:
        factor = float(np.exp(min(reach, 700.0)))
        return value / factor, value * factor
    return max(value - reach, 0.0), value + reach


def _ratios(sample: Sample, reference: Sample, weights: FloatArray) -> dict[str, FloatArray]:
    return _divide(sample.metrics(weights), reference.metrics(weights))


def _divide(above: dict[str, FloatArray], below: dict[str, FloatArray]) -> dict[str, FloatArray]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return {name: above[name] / below[name] for name in METRICS}


def _ratio(
    pooled: FloatArray, single: FloatArray, draws: Sequence[FloatArray], parts: Sequence[SpreadPart], rounds: int
) -> PairedRatio:
    value = _finite(float(pooled[0]))
    if value is None:
        return PairedRatio(None, None, None, None, rounds)
    median = _finite(float(np.median(single)))
    low, high = interval(value, draws, parts) if draws else (None, None)
    return PairedRatio(value, low, high, median, rounds)


def _percentile_ms(cumulative: FloatArray, buckets: NDArray[np.int64], percentile: float | FloatArray) -> FloatArray:
    """Percentile (one, or one per row) of each row of cumulative counts, linear within a bucket: ratios do not jump.

    Args:
        buckets: of the histogram, one per column.
    """
    lower, upper = (bounds[buckets] for bounds in histogram.bounds_us())
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


def _variance(value: float, draws: FloatArray, part: SpreadPart, *, logarithmic: bool) -> float:
    deviations = np.log(draws / value) if logarithmic else draws - value
    return float(np.mean(deviations**2) * part.units / (part.units - 1))
