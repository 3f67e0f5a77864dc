"""The report's words about several scenarios: one sentence over all, and a table of policies by scenarios."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from tuning.judging.verdicts import ROWS, comparisons, format_ratio, format_value, read
from tuning.report.summary import CLASS, interval_line


def overall(evaluations: Sequence[dict[str, Any]]) -> str:
    """One sentence over several scenarios, about the policy on trial where there is one."""
    learned, reference = evaluations[0]["learned"], evaluations[0]["reference"]
    if learned is None or any(e["learned"] != learned for e in evaluations):
        return f"{len(evaluations[0]['policies'])} policies, judged side by side in {len(evaluations)} scenarios"
    outcomes = [{row.metric: row.verdict for row in comparisons(e)} for e in evaluations]
    parts = []
    for metric in ("mean_ms", "p99_ms"):
        better = sum(outcome.get(metric) == "better" for outcome in outcomes)
        worse = sum(outcome.get(metric) == "worse" for outcome in outcomes)
        parts.append(
            f"better in {ROWS[metric]} in {better} of {len(outcomes)}" + (f", worse in {worse}" if worse else "")
        )
    return f"{learned} against {reference}: {'; '.join(parts)}"


def part_name(evaluation: dict[str, Any]) -> str:
    """Scenario and testbed of one evaluation."""
    return (
        f"{evaluation['scenario']}, {evaluation['testbed']}" if evaluation["testbed"] else str(evaluation["scenario"])
    )


def seeds_text(evaluation: dict[str, Any]) -> str:
    """Which seeds."""
    first, count = evaluation["seed"], evaluation["seeds"]
    return f"seed {first}" if count == 1 else f"seeds {first} to {first + count - 1}"


def scenario_table(evaluations: Sequence[dict[str, Any]]) -> str:
    """A row per policy, a column per scenario: ratios of mean and p99 to the reference with their intervals."""
    names = dict.fromkeys(name for evaluation in evaluations for name in evaluation["policies"])
    heads = "".join(f'<th scope="col">{escape(part_name(evaluation))}</th>' for evaluation in evaluations)
    rows = []
    for name in names:
        cells = "".join(_cell(evaluation, name) for evaluation in evaluations)
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    body = f'<thead><tr><th scope="col">policy</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody>'
    return f'<table class="results">{body}</table>'


def _cell(evaluation: dict[str, Any], name: str) -> str:
    label = escape(part_name(evaluation))
    policy = evaluation["policies"].get(name)
    if policy is None:
        return f'<td data-label="{label}">–</td>'
    if name == evaluation["reference"]:
        values = " · ".join(escape(format_value(metric, policy[metric])) for metric in ("mean_ms", "p99_ms"))
        return f'<td data-label="{label}"><b>{values}</b></td>'
    lines = []
    for metric in ("mean_ms", "p99_ms"):
        ratio = read(policy, metric)
        lines.append(
            f'<span class="{CLASS[ratio.verdict]}">{ROWS[metric]} {format_ratio(ratio.value)}</span>'
            f"<small>{escape(interval_line(ratio))}</small>"
        )
    return f'<td data-label="{label}">{"".join(lines)}</td>'
