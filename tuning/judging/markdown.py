"""Evaluations as Markdown tables for a README: one per metric, a row per scenario, a column per policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tuning.judging.agreement import part_title
from tuning.judging.statistics import PairedRatio
from tuning.judging.verdicts import (
    COMPARED,
    METRIC_NAMES,
    by_testbed,
    format_interval,
    format_ratio,
    format_value,
    geometric_mean,
    ratio_of,
)

LEGEND = (
    "Ratios are to `{reference}` on the same arrivals and service draws, with 95 % intervals; "
    "**bold**: better, *italic*: worse, plain: no measurable difference."
)


def results_markdown(evaluations: Sequence[dict[str, Any]], metrics: Sequence[str]) -> str:
    """Tables of several contents of `evaluation.json` that share a reference, a legend above them.

    The last row of a testbed is the geometric mean over its scenarios, of a policy that was judged in all of them.
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
    testbeds = by_testbed(evaluations)
    for testbed, own in testbeds.items():
        several = len(testbeds) > 1
        for evaluation in own:
            policies = evaluation["policies"]
            cells = [_policy_cell(policies[name], metric) if name in policies else "–" for name in names]
            value = format_value(policies[reference][metric], metric) if reference in policies else "–"
            title = part_title(evaluation) if several else evaluation["scenario"]
            lines.append(f"| {title} | {value} | " + " | ".join(cells) + " |")
        if len(own) > 1:
            cells = [_cell(geometric_mean(own, name, metric), metric) for name in names]
            lines.append(f"| geometric mean{f', {testbed}' if several else ''} | 1 | {' | '.join(cells)} |")
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
