"""Plain sentences about who wins: nothing is called a win unless its 95 % interval shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tuning.judging.statistics import Ratio, Verdict

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
        """One sentence that claims no more than the interval shows; the caller's heading names the two."""
        return f"{ROWS[self.metric]}: {self._outcome()}."

    def _outcome(self) -> str:
        ours, theirs = (format_value(self.metric, value) for value in self.values)
        if self.values == (0, 0):
            return "not won; neither had any"
        if self.ratio.value is None:
            return f"not won; {ours} against {theirs}, a ratio has no meaning"
        if self.verdict == "not shown":
            return f"not won; {format_ratio(self.ratio.value)} from one round shows nothing"
        won = {"better": "won", "worse": "not won; worse", "no difference shown": "not won; no difference shown"}
        return f"{won[self.verdict]}, {describe_ratio(self.ratio)}"


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


def verdicts(evaluation: dict[str, Any]) -> dict[str, list[Comparison]]:
    """A heading and all rows for each opponent of the learned policy: the reference and the best heuristic."""
    learned, reference, best = evaluation["learned"], evaluation["reference"], evaluation["best_heuristic"]
    found = {f"{learned} against {reference}": comparisons(evaluation)}
    if best is not None:
        heading = f"{learned} against {best['policy']}, the best of the others"
        found[heading] = comparisons(evaluation, best["policy"])
    return {heading: rows for heading, rows in found.items() if rows}


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
    # An end that rounds onto 1 would hide on which side of it the interval ends.
    while digits < 4 and (round(low, digits) == 1 or round(high, digits) == 1) and not low == high == 1:
        digits += 1
    return tuple("many times" if end > 1000 else f"{end:.{digits}f}" for end in (low, high))  # type: ignore[return-value]


def format_ratio(value: float | None) -> str:
    """``0.85×``; – when there is none."""
    if value is None:
        return "–"
    return f"{value:.0f}×" if value >= 100 else f"{value:.2f}×"


def format_value(metric: str, value: float | None) -> str:
    """A value with its unit, three digits; – when there is none."""
    if value is None:
        return "–"
    if metric == "errors":
        return f"{value:,.0f}"
    return f"{digits(value)} ms" if metric.endswith("_ms") else f"{value:.3f}"


def digits(value: float) -> str:
    """Three significant digits, or all of them before the point: ``5.60``, ``20.3``, ``1234``."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"
