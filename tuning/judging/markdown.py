"""Evaluations as Markdown tables for a README: one per metric, a row per scenario, a column per policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tuning.judging.statistics import PairedRatio
from tuning.judging.verdicts import COMPARED, METRIC_NAMES, format_interval, format_ratio, format_value, ratio_of

LEGEND = (
    "Ratios are to `{reference}` on the same arrivals and service draws, with 95 % intervals; "
    "**bold**: better, *italic*: worse, plain: no measurable difference."
)


def results_markdown(evaluations: Sequence[dict[str, Any]], metrics: Sequence[str]) -> str:
    """Tables of several contents of `evaluation.json` that share a reference, a legend above them.

    The last row is the geometric mean over the scenarios in which the policy was judged in all.
    """
    reference = evaluations[0]["reference"]
    names = dict.fromkeys(name for evaluation in evaluations for name in evaluation["policies"] if name != reference)
    tables = [_table(evaluations, metric, reference, list(names)) for metric in metrics]
    return "\n\n".join([LEGEND.format(reference=reference), *tables])


def account(evaluations: Sequence[dict[str, Any]], command: str, commit: str, machine: str) -> str:
    """One paragraph: what was judged for how long, on which machine, by which command."""
    first = evaluations[0]
    seeds = f"seed {first['seed']}"
    if first["seeds"] > 1:
        seeds = f"seeds {first['seed']}–{first['seed'] + first['seeds'] - 1}"
    sent = sum(e["accounting"]["sent"] for e in evaluations if e["accounting"])
    discarded = sum(e["accounting"]["discarded_blocks"] for e in evaluations if e["accounting"])
    waits_ms = [b["core_wait_ms"] for e in evaluations for b in e["blocks"] if b.get("core_wait_ms") is not None]
    delay = f", mean scheduling delay {sum(waits_ms) / len(waits_ms):.1f} ms" if waits_ms else ""
    return (
        f"`{command}` on {first['created'][:10]}, commit {commit[:9]}, {machine}: {seeds}, per scenario and policy "
        f"{first['rounds']} rounds of {first['measure_s']:g} s after {first['warm_up_s']:g} s of warm-up; "
        f"{sent:,} requests, blocks discarded: {discarded}{delay}."
    )


def _table(evaluations: Sequence[dict[str, Any]], metric: str, reference: str, names: Sequence[str]) -> str:
    lines = [
        f"| {METRIC_NAMES.get(metric, metric)} | `{reference}` | " + " | ".join(f"`{name}`" for name in names) + " |",
        "|---" * (len(names) + 2) + "|",
    ]
    for evaluation in evaluations:
        policies = evaluation["policies"]
        cells = [_policy_cell(policies[name], metric) if name in policies else "–" for name in names]
        value = format_value(policies[reference][metric], metric) if reference in policies else "–"
        lines.append(f"| {evaluation['scenario']} | {value} | " + " | ".join(cells) + " |")
    if len(evaluations) > 1:
        cells = [_cell(_geometric(evaluations, name, metric), metric) for name in names]
        lines.append(f"| geometric mean | 1 | {' | '.join(cells)} |")
    return "\n".join(lines)


def _policy_cell(policy: dict[str, Any], metric: str) -> str:
    """The ratio, behind the value where it is of something else."""
    cell = _cell(ratio_of(policy, metric), metric)
    return f"{format_value(policy[metric], metric)}, {cell}" if metric in COMPARED else cell


def _cell(ratio: PairedRatio, metric: str) -> str:
    text = format_ratio(ratio.value, metric)
    if ratio.low is None or ratio.high is None:
        return text
    mark = {"better": "**", "worse": "*"}.get(ratio.verdict, "")
    return f"{mark}{text}{mark} ({format_interval(ratio, '–')})"


def _geometric(evaluations: Sequence[dict[str, Any]], name: str, metric: str) -> PairedRatio:
    """Geometric mean of a policy's ratios; scenarios are independent, so that half widths add as squares do."""
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
