"""Plain sentences about who wins: nothing is called a win unless its 95 % interval shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tuning.statistics import Ratio, Verdict

ROWS: dict[str, str] = {
    "mean_ms": "mean",
    "p50_ms": "p50",
    "p95_ms": "p95",
    "p99_ms": "p99",
    "art_per_request": "ART per request",
    "errors": "errors",
}
"""Metrics of the tables and how they are called there."""


@dataclass(frozen=True)
class Comparison:
    """The learned policy against one other policy in one metric.

    Attributes:
        metric: key of `ROWS`.
        values: of the learned policy and of the other one; None where nothing was answered.
        ratio: learned / other, paired.
    """

    metric: str
    learned: str
    other: str
    values: tuple[float | None, float | None]
    ratio: Ratio

    @property
    def verdict(self) -> Verdict:
        if self.values == (0, 0):
            return "no difference shown"
        return self.ratio.verdict

    @property
    def sentence(self) -> str:
        """One sentence that claims no more than the interval shows."""
        name, ratio = ROWS[self.metric], describe_ratio(self.ratio)
        if self.values == (0, 0):
            return f"{name}: neither {self.learned} nor {self.other} had any; no difference shown."
        if self.ratio.value is None:
            ours, theirs = (format_value(self.metric, value) for value in self.values)
            return f"{name}: {self.learned} {ours}, {self.other} {theirs}; a ratio has no meaning, nothing is claimed."
        if self.verdict == "better":
            return f"{name}: {self.learned} beats {self.other}, {ratio}."
        if self.verdict == "worse":
            return f"{name}: {self.learned} is worse than {self.other}, {ratio}."
        if self.verdict == "no difference shown":
            return f"{name}: no difference shown between {self.learned} and {self.other}, {ratio}."
        return f"{name}: {self.learned} / {self.other} = {ratio}; one round shows no difference and no win."


def comparisons(evaluation: dict[str, Any], other: str | None = None) -> list[Comparison]:
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
        Comparison(metric, learned, other, (policies[learned][metric], policies[other][metric]), read(source, metric))
        for metric in ROWS
    ]


def not_won(evaluation: dict[str, Any]) -> list[str]:
    """A sentence for every row that the learned policy does not win against the reference or the best heuristic."""
    best = evaluation["best_heuristic"]
    others = [evaluation["reference"], *([best["policy"]] if best else [])]
    return [c.sentence for other in others for c in comparisons(evaluation, other) if c.verdict != "better"]


def read(source: dict[str, Any], metric: str) -> Ratio:
    """The ratio of one metric out of a policy of `evaluation.json`."""
    low, high = source["intervals"][metric] or (None, None)
    return Ratio(source["ratios"][metric], low, high, source["median_ratios"][metric], source["paired_rounds"])


def describe_ratio(ratio: Ratio) -> str:
    """``0.85× (95 % interval 0.80 to 0.90)``."""
    if ratio.value is None:
        return "no ratio"
    if ratio.low is None or ratio.high is None:
        return f"{format_ratio(ratio.value)} (no interval from {ratio.rounds} round{'s' * (ratio.rounds != 1)})"
    low, high = interval_text(ratio.low, ratio.high)
    return f"{format_ratio(ratio.value)} (95 % interval {low} to {high})"


def interval_text(low: float, high: float) -> tuple[str, str]:
    """Both ends with two digits, or three when rounding would move an end onto 1."""
    digits = 2
    while digits < 4 and (round(low, digits) == 1 or round(high, digits) == 1) and not low == high == 1:
        digits += 1
    return tuple("many times" if end > 1000 else f"{end:.{digits}f}" for end in (low, high))  # type: ignore[return-value]


def format_ratio(value: float | None) -> str:
    """``0.85×``; – when there is none."""
    if value is None:
        return "–"
    return f"{value:.0f}×" if value >= 100 else f"{value:.2f}×"


def format_value(metric: str, value: float | None) -> str:
    """A value with its unit as tables show it; – when there is none."""
    if value is None:
        return "–"
    if metric == "errors":
        return f"{value:,.0f}"
    if metric.endswith("_ms"):
        return f"{value:.0f} ms" if value >= 1000 else f"{value:.3g} ms"
    return f"{value:.3f}"
