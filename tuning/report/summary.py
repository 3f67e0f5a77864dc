"""The report's words and tables: headline, cards with intervals, results, accounting. Strings of HTML, escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from tuning.judging.statistics import Ratio, Verdict
from tuning.judging.verdicts import (
    ROWS,
    Comparison,
    comparisons,
    describe_ratio,
    format_ratio,
    format_value,
    interval_text,
    read,
    verdicts,
)

_WORDS: dict[Verdict, str] = {
    "better": "better",
    "worse": "worse",
    "no difference shown": "no difference shown",
    "not shown": "nothing shown",
}
CLASS: dict[Verdict, str] = {
    "better": "better",
    "worse": "worse",
    "no difference shown": "same",
    "not shown": "same",
}


def headline(evaluation: dict[str, Any]) -> str:
    """One sentence that names wins only where intervals show them."""
    rows = comparisons(evaluation)
    scenario = evaluation["scenario"]
    if not rows:
        return f"{len(evaluation['policies'])} policies, judged side by side on {scenario}"
    learned, reference = evaluation["learned"], evaluation["reference"]
    if rows[0].ratio.rounds < 2:
        return f"One round of {scenario}: too little to tell {learned} from {reference}"
    won, lost = _named(rows, "better"), _named(rows, "worse")
    if won and lost:
        return f"On {scenario}, {learned} beats {reference} in {won}, and loses in {lost}"
    if won:
        return f"On {scenario}, {learned} beats {reference} in {won}"
    if lost:
        return f"On {scenario}, {learned} loses to {reference} in {lost}"
    return f"On {scenario}, no difference shown between {learned} and {reference}"


def subline(evaluation: dict[str, Any]) -> str:
    """What the headline leaves out: the rows without a difference, and the best of the other policies."""
    sentences = []
    open_rows = _named(comparisons(evaluation), "no difference shown")
    if open_rows and _named(comparisons(evaluation), "better"):
        sentences.append(f"No difference shown in {open_rows}.")
    best = evaluation["best_heuristic"]
    rows = comparisons(evaluation, best["policy"]) if best else []
    if best is not None and rows:
        parts = [
            f"{word} in {names}"
            for word, names in (
                ("better", _named(rows, "better")),
                ("worse", _named(rows, "worse")),
                ("no difference shown", _named(rows, "no difference shown")),
            )
            if names
        ]
        against = f"Against {best['policy']}, the best of the other policies"
        sentences.append(f"{against}: {'; '.join(parts)}." if parts else f"{against}: nothing shown.")
    return " ".join(sentences)


def cards(evaluation: dict[str, Any]) -> str:
    """A card per metric: value of the learned policy, its ratios, and intervals as bars around 1×."""
    found = verdicts(evaluation)
    if not found:
        return ""
    by_metric = {metric: [rows[index] for rows in found.values()] for index, metric in enumerate(ROWS)}
    reach = _reach([row.ratio for rows in by_metric.values() for row in rows])
    return '<div class="cards">' + "".join(_card(metric, rows, reach) for metric, rows in by_metric.items()) + "</div>"


def results_table(evaluation: dict[str, Any], request_type: str | None = None) -> str:
    """All policies with values, ratios to the reference and intervals; of one request type or of all."""
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("requests", *ROWS.values()))
    rows = []
    for name, policy in evaluation["policies"].items():
        source = policy["per_type"][request_type] if request_type else policy
        cells = [f'<td data-label="requests">{source["requests"]:,}</td>']
        cells += [_cell(metric, source, is_reference=name == evaluation["reference"]) for metric in ROWS]
        role = ' class="learned"' if name == evaluation["learned"] else ""
        method = f"<small>on {escape(policy['method'])}</small>" if policy["method"] != name else ""
        rows.append(f'<tr{role}><th scope="row">{escape(name)}{method}</th>{"".join(cells)}</tr>')
    return (
        f'<table class="results"><thead><tr><th scope="col">policy</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def verdict_list(evaluation: dict[str, Any]) -> str:
    """Every row against every opponent in a sentence, won or not."""
    parts = []
    for heading, rows in verdicts(evaluation).items():
        items = "".join(f'<li class="{CLASS[row.verdict]}">{escape(row.sentence)}</li>' for row in rows)
        parts.append(f"<div><h3>{escape(heading)}</h3><ul>{items}</ul></div>")
    return f'<div class="verdicts">{"".join(parts)}</div>' if parts else ""


def accounting(evaluation: dict[str, Any]) -> str:
    """How many requests each side counted, and which blocks were left out and why."""
    accounts = evaluation["accounting"]
    if accounts is None:
        return "<p>No block was finished.</p>"
    kept = len(evaluation["blocks"]) - accounts["discarded_blocks"]
    lines = [
        f"The load engine sent {accounts['sent']:,} requests; NGINX counted {accounts['nginx_requests']:,}. "
        f"{_sentence(accounts['explanation'])}",
        f"{kept} of {len(evaluation['blocks'])} blocks are behind these numbers.",
    ]
    if accounts["discarded_blocks"]:
        lines[-1] += f" Left out: {'; '.join(accounts['discarded_because'])}."
    if accounts["errors"]:
        lines.append("Errors: " + ", ".join(f"{name} {count:,}" for name, count in accounts["errors"].items()) + ".")
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def in_words(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names)


def _card(metric: str, rows: list[Comparison], reach: float) -> str:
    first = rows[0]
    value, theirs = (format_value(metric, number) for number in first.values)
    strips = "".join(_strip(row, reach) for row in rows)
    return (
        f'<article class="card"><h3>{escape(ROWS[metric])}</h3>'
        f'<p class="value">{escape(value)}</p>'
        f'<p class="against"><b>{escape(first.learned)}</b>; {escape(first.other)} {escape(theirs)}</p>'
        f"{strips}</article>"
    )


def _strip(row: Comparison, reach: float) -> str:
    """Ratio in words and as a bar: the line in the middle is 1×, left of it is better."""
    kind = CLASS[row.verdict]
    label = f"{row.learned} / {row.other}: {describe_ratio(row.ratio)}"
    ratio = "none in either" if row.values == (0, 0) else format_ratio(row.ratio.value)
    word = "" if row.values == (0, 0) else _WORDS[row.verdict]
    bar = ""
    if row.ratio.value is not None and row.ratio.low is not None and row.ratio.high is not None:
        low, high = _place(row.ratio.low, reach), _place(row.ratio.high, reach)
        bar = f'<i class="span" style="left:{low:.1f}%;width:{max(high - low, 0.6):.1f}%"></i>'
    if row.ratio.value is not None:
        bar += f'<i class="dot" style="left:{_place(row.ratio.value, reach):.1f}%"></i>'
    track = f'<div class="track" role="img" aria-label="{escape(label)}"><i class="one"></i>{bar}</div>' if bar else ""
    return (
        f'<div class="strip {kind}"><p><b>{escape(ratio)}</b> {escape(row.other)}'
        f"<span>{escape(word)}</span></p>{track}<small>{escape(interval_line(row.ratio))}</small></div>"
    )


def _cell(metric: str, source: dict[str, Any], *, is_reference: bool) -> str:
    value = escape(format_value(metric, source[metric]))
    ratio = read(source, metric)
    extra = ""
    if not is_reference and ratio.value is not None:
        extra = f'<span class="{CLASS[ratio.verdict]}">{format_ratio(ratio.value)}</span>'
        extra += f"<small>{escape(interval_line(ratio))}</small>"
    return f'<td data-label="{escape(ROWS[metric])}"><b>{value}</b>{extra}</td>'


def interval_line(ratio: Ratio) -> str:
    """The interval's two ends; empty when there is none."""
    if ratio.low is None or ratio.high is None:
        return ""
    return " – ".join(interval_text(ratio.low, ratio.high))


def _named(rows: list[Comparison], verdict: Verdict) -> str:
    """The metrics of that verdict in words; a ratio beside each that is won or lost."""
    found = [row for row in rows if row.verdict == verdict]
    with_ratio = verdict in ("better", "worse")
    return in_words(
        [f"{ROWS[row.metric]} ({format_ratio(row.ratio.value)})" if with_ratio else ROWS[row.metric] for row in found]
    )


def _reach(ratios: list[Ratio]) -> float:
    """Half width of all strips in octaves: the widest interval end, between 1.15× and 4×."""
    ends = [end for ratio in ratios for end in (ratio.value, ratio.low, ratio.high) if end]
    widest = max((abs(math.log2(end)) for end in ends), default=1.0)
    return min(max(widest * 1.1, math.log2(1.15)), 2.0)


def _place(ratio: float, reach: float) -> float:
    """Position of a ratio on a strip in per cent, cut at both ends."""
    if ratio <= 0:
        return 0.0
    return 50 + 50 * max(-1.0, min(1.0, math.log2(ratio) / reach))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
