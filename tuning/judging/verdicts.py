"""Sentences and numbers about who is better: a policy is called better only when its 95 % interval shows it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuning.judging.statistics import PairedRatio, Verdict

METRIC_NAMES: dict[str, str] = {
    "mean_ms": "mean",
    "p50_ms": "p50",
    "p95_ms": "p95",
    "p99_ms": "p99",
    "miss_ratio": "goodput",
    "art_per_request": "ART per request",
    "errors": "errors",
}
"""Metrics of the tables and their names there. Of the misses goodput is shown, what they leave of 1."""
COMPARED = {"miss_ratio": "late"}
"""What a ratio is of, where the table shows another value: 0.5 × as many late requests, whatever the goodput."""


@dataclass(frozen=True)
class MetricComparison:
    """The learned policy against one other policy in one metric.

    Attributes:
        metric: key of `METRIC_NAMES`.
        values: of the learned policy and of the other one; None where nothing was answered.
        ratio: learned / other, paired.
    """

    metric: str
    learned: str
    other: str
    values: tuple[float | None, float | None]
    ratio: PairedRatio

    @property
    def verdict(self) -> Verdict:
        if self.values == (0, 0):
            return "no measurable difference"
        return self.ratio.verdict

    @property
    def sentence(self) -> str:
        """One sentence that claims no more than the interval shows; the caller's heading names the two policies."""
        return f"{METRIC_NAMES[self.metric]}: {self._outcome()}."

    def _outcome(self) -> str:
        ours, theirs = (format_value(value, self.metric) for value in self.values)
        if self.values == (0, 0):
            return f"{'none' if self.metric == 'errors' else ours} with either policy"
        if self.ratio.value is None:
            return f"{ours} against {theirs}; a ratio has no meaning"
        compared = COMPARED.get(self.metric)
        told = f"{ours} against {theirs}, {compared} requests " if compared else ""
        if self.verdict == "inconclusive":
            rounds = "one round" if self.ratio.rounds == 1 else f"{self.ratio.rounds} rounds, which give no interval"
            return f"inconclusive; {told}{format_ratio(self.ratio.value)} from {rounds}"
        return f"{self.verdict}, {told}{describe_ratio(self.ratio)}"


def comparisons(evaluation: dict[str, Any], other: str | None = None) -> list[MetricComparison]:
    """The learned policy row by row against `other`: the reference by default, or the best heuristic.

    Args:
        evaluation: content of `evaluation.json`.

    Empty when no learned policy was judged or `other` is neither of the two.
    """
    learned, reference, best = evaluation["learned"], evaluation["reference"], evaluation["best_heuristic"]
    other = other or reference
    policies = evaluation["policies"]
    if learned not in policies or other not in policies or learned == other:
        return []
    if other == reference:
        source = policies[learned]
    elif best is not None and best["policy"] == other:
        source = best
    else:
        return []
    return [
        MetricComparison(
            metric, learned, other, (policies[learned][metric], policies[other][metric]), ratio_of(source, metric)
        )
        for metric in METRIC_NAMES
    ]


def verdicts(evaluation: dict[str, Any]) -> dict[str, list[MetricComparison]]:
    """A heading and all rows for each opponent of the learned policy: the reference and the best heuristic."""
    learned, reference, best = evaluation["learned"], evaluation["reference"], evaluation["best_heuristic"]
    found = {f"{learned} against {reference}": comparisons(evaluation)}
    if best is not None:
        heading = f"{learned} against {best['policy']}, the best of the other heuristics"
        found[heading] = comparisons(evaluation, best["policy"])
    return {heading: rows for heading, rows in found.items() if rows}


def ratio_of(source: dict[str, Any], metric: str) -> PairedRatio:
    """The ratio of one metric out of a policy of `evaluation.json`."""
    low, high = source["intervals"][metric] or (None, None)
    return PairedRatio(source["ratios"][metric], low, high, source["median_ratios"][metric], source["paired_rounds"])


def by_testbed(evaluations: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Contents of `evaluation.json` by their testbed: means over simulated and live ones have no meaning."""
    found: dict[str, list[dict[str, Any]]] = {}
    for evaluation in evaluations:
        found.setdefault(evaluation["testbed"], []).append(evaluation)
    return found


def geometric_mean(evaluations: Sequence[dict[str, Any]], name: str, metric: str) -> PairedRatio:
    """Geometric mean of a policy's ratios over scenarios; without a value where one of them has none.

    The scenarios are independent, so that half widths add as squares do.
    """
    ratios = [ratio_of(e["policies"][name], metric) for e in evaluations if name in e["policies"]]
    values = [ratio.value for ratio in ratios if ratio.value]
    if len(values) < len(evaluations):
        return PairedRatio(None, None, None, None, 0)
    value = math.exp(sum(map(math.log, values)) / len(values))
    halves = [math.log(r.high / r.low) / 2 for r in ratios if r.low and r.high]
    if len(halves) < len(values):
        return PairedRatio(value, None, None, None, 0)
    factor = math.exp(math.hypot(*halves) / len(halves))
    return PairedRatio(value, value / factor, value * factor, None, min(ratio.rounds for ratio in ratios))


def describe_ratio(ratio: PairedRatio) -> str:
    """``0.85× (95 % interval 0.80 to 0.90)``."""
    if ratio.value is None:
        return "no ratio"
    if ratio.low is None or ratio.high is None:
        return f"{format_ratio(ratio.value)} (no interval from {ratio.rounds} round{'s' * (ratio.rounds != 1)})"
    return f"{format_ratio(ratio.value)} (95 % interval {format_interval(ratio, ' to ')})"


def format_interval(ratio: PairedRatio, between: str = " – ") -> str:
    """``0.80 – 0.90``; empty when there is no interval."""
    if ratio.low is None or ratio.high is None:
        return ""
    return between.join(_interval_ends(ratio.low, ratio.high))


def format_ratio(value: float | None, metric: str = "") -> str:
    """``0.85×``, or ``late 0.85×`` where the ratio is not of the value that is shown; – when there is none."""
    if value is None:
        return "–"
    text = f"{value:.0f}×" if value >= 100 else f"{value:.2f}×"
    return f"{COMPARED[metric]} {text}" if metric in COMPARED else text


def format_value(value: float | None, metric: str) -> str:
    """A value with its unit, three digits; – when there is none."""
    if value is None:
        return "–"
    if metric == "errors":
        return f"{value:,.0f}"
    if metric == "miss_ratio":
        return f"{100 * (1 - value):.2f} %"
    return f"{digits(value)} ms" if metric.endswith("_ms") else f"{value:.3f}"


def digits(value: float) -> str:
    """Three significant digits, or all of them before the point: ``5.60``, ``20.3``, ``1234``."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _interval_ends(low: float, high: float) -> tuple[str, str]:
    """Both ends with two digits; with more where rounding would move an end onto 1 and hide on which side it is."""
    digits = 2
    while digits < 4 and (round(low, digits) == 1 or round(high, digits) == 1) and not low == high == 1:
        digits += 1
    return tuple("many times" if end > 1000 else f"{end:.{digits}f}" for end in (low, high))  # type: ignore[return-value]
