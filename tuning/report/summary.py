"""The sentences of the run report: headline, subline, accounting. Plain text; the templates hold the HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tuning.judging.statistics import Verdict
from tuning.judging.tally import sides
from tuning.judging.verdicts import METRIC_NAMES, MetricComparison, comparisons, format_ratio, verdicts

_HEADLINE_METRICS = ("mean_ms", "p99_ms")


def headline(evaluation: dict[str, Any]) -> str:
    """One sentence that names wins only where intervals show them."""
    rows = comparisons(evaluation)
    scenario = evaluation["scenario"]
    if not rows:
        return f"{len(evaluation['policies'])} policies, compared side by side on {scenario}"
    learned, reference = evaluation["learned"], evaluation["reference"]
    if rows[0].ratio.rounds < 2:
        return f"One round of {scenario} is too little to tell {learned} from {reference}"
    better, worse = _named(rows, "better"), _named(rows, "worse")
    if better and worse:
        return f"On {scenario}, {learned} beats {reference} in {better}, and loses in {worse}"
    if better:
        return f"On {scenario}, {learned} beats {reference} in {better}"
    if worse:
        return f"On {scenario}, {learned} loses to {reference} in {worse}"
    return f"On {scenario}, {learned} and {reference} do not differ measurably"


def subline(evaluation: dict[str, Any]) -> str:
    """What the headline leaves out: the rows without a difference, and the best of the other heuristics."""
    sentences = []
    rows = comparisons(evaluation)
    equal = _named(rows, "no measurable difference")
    if equal and _named(rows, "better"):
        sentences.append(f"No measurable difference in {equal}.")
    best = evaluation["best_heuristic"]
    rows = comparisons(evaluation, best["policy"]) if best else []
    if best is not None and rows:
        verdict_names: tuple[Verdict, ...] = ("better", "worse", "no measurable difference")
        parts = [f"{verdict} in {_named(rows, verdict)}" for verdict in verdict_names if _named(rows, verdict)]
        sentences.append(
            f"Against {best['policy']}, the best of the other heuristics: {'; '.join(parts) or 'inconclusive'}."
        )
    return " ".join(sentences)


def overall(evaluations: Sequence[dict[str, Any]]) -> str:
    """One sentence over several scenarios, about the policy on trial where there is one."""
    learned, reference = evaluations[0]["learned"], evaluations[0]["reference"]
    if learned is None or any(e["learned"] != learned for e in evaluations):
        return f"{len(evaluations[0]['policies'])} policies, compared side by side in {len(evaluations)} scenarios"
    outcomes = [{row.metric: row.verdict for row in comparisons(e)} for e in evaluations]
    parts = []
    for metric in _HEADLINE_METRICS:
        better = sum(outcome.get(metric) == "better" for outcome in outcomes)
        worse = sum(outcome.get(metric) == "worse" for outcome in outcomes)
        parts.append(
            f"better in {METRIC_NAMES[metric]} in {better} of {len(outcomes)}"
            + (f", worse in {worse}" if worse else "")
        )
    return f"{learned} against {reference}: {'; '.join(parts)}"


def part_name(evaluation: dict[str, Any]) -> str:
    """Scenario and testbed of one evaluation."""
    return ", ".join(name for name in (evaluation["scenario"], evaluation["testbed"]) if name)


def policy_names(evaluations: Sequence[dict[str, Any]]) -> list[str]:
    """Every policy that was judged in one of them, in the order of their tables."""
    return list(dict.fromkeys(name for evaluation in evaluations for name in evaluation["policies"]))


def facts(evaluations: Sequence[dict[str, Any]]) -> list[str]:
    """Date, size, seeds and machine of a run; of several evaluations, those of the first."""
    first, machine = evaluations[0], evaluations[0]["machine"]
    requests = sum(e["accounting"]["requests"] for e in evaluations if e["accounting"])
    seed, seeds = first["seed"], first["seeds"]
    return [
        first["created"].replace("T", " ").removesuffix("+00:00") + " UTC",
        f"{first['rounds']} rounds of {first['measure_s']:g} s per policy",
        f"{requests:,} requests" if requests else "no requests",
        f"seed {seed}" if seeds == 1 else f"seeds {seed} to {seed + seeds - 1}",
        *([f"{machine['cores']} cores, {machine['cpu']}"] if "cores" in machine and "cpu" in machine else []),
    ]


def method(evaluation: dict[str, Any]) -> str:
    """How the numbers were measured."""
    deadlines = ", ".join(f"{name} {value:.1f} ms" for name, value in evaluation["deadlines_ms"].items())
    return (
        f"Blocks of {evaluation['warm_up_s']:g} s warm-up, not counted, and {evaluation['measure_s']:g} s measured. "
        f"Intervals are bootstrapped over rounds and widened for few rounds. Deadlines: {deadlines}."
    )


def accounting(evaluation: dict[str, Any]) -> list[str]:
    """How many requests each side counted, and which blocks were left out and why: a sentence each."""
    accounts = evaluation["accounting"]
    if accounts is None:
        return ["No block was finished."]
    explanation = accounts["explanation"]
    kept = len(evaluation["blocks"]) - accounts["discarded_blocks"]
    sentences = [
        f"{sides(evaluation)}. {explanation[:1].upper()}{explanation[1:]}.",
        f"{kept} of {len(evaluation['blocks'])} blocks are behind these numbers.",
    ]
    if accounts["discarded_blocks"]:
        sentences[-1] += f" Left out: {'; '.join(accounts['discarded_because'])}."
    if accounts["errors"]:
        errors = ", ".join(f"{name} {count:,}" for name, count in accounts["errors"].items())
        sentences.append(f"Errors: {errors}.")
    return sentences


def servers(evaluation: dict[str, Any]) -> str:
    """The addresses behind the numbers of the servers."""
    addresses = dict.fromkeys(server for group in evaluation["groups"] for server in group["servers"])
    return ", ".join(f"server {number} is {address}" for number, address in enumerate(addresses, 1))


def scenario_events(evaluation: dict[str, Any]) -> bool:
    """Whether the scenario changed a server or the load while requests were counted."""
    return any(event["at_s"] < evaluation["measure_s"] for block in evaluation["blocks"] for event in block["events"])


def in_words(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names)


def strip_reach(evaluation: dict[str, Any]) -> float:
    """Half width of the cards' strips in octaves: the widest interval end, between 1.15× and 4×."""
    ratios = [row.ratio for rows in verdicts(evaluation).values() for row in rows]
    ends = [end for ratio in ratios for end in (ratio.value, ratio.low, ratio.high) if end]
    widest = max((abs(math.log2(end)) for end in ends), default=1.0)
    return min(max(widest * 1.1, math.log2(1.15)), 2.0)


def strip_percent(ratio: float, reach: float) -> float:
    """Position of a ratio on a strip, 0…100 with 1× in the middle, cut at both ends."""
    if ratio <= 0:
        return 0.0
    return 50 + 50 * max(-1.0, min(1.0, math.log2(ratio) / reach))


def _named(rows: list[MetricComparison], verdict: Verdict) -> str:
    """The metrics of that verdict in words; a ratio beside each that is better or worse."""
    with_ratio = verdict in ("better", "worse")
    return in_words(
        [
            f"{METRIC_NAMES[row.metric]} ({format_ratio(row.ratio.value, row.metric)})"
            if with_ratio
            else METRIC_NAMES[row.metric]
            for row in rows
            if row.verdict == verdict
        ]
    )
