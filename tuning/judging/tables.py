"""The evaluation as a table for the terminal, with a sentence for every row that is won and every one that is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tuning.judging.statistics import PairedRatio
from tuning.judging.tally import sides
from tuning.judging.verdicts import (
    METRIC_NAMES,
    by_testbed,
    digits,
    format_interval,
    format_ratio,
    format_value,
    geometric_mean,
    ratio_of,
    verdicts,
)

_STYLES = {"better": "green", "worse": "red", "no measurable difference": "dim", "inconclusive": "dim"}


def render(evaluation: dict[str, Any], width: int = 100) -> RenderableType:
    """Table and sentences for a terminal of `width` columns; `evaluation` is the content of `evaluation.json`."""
    table = _table(evaluation, gap=1 if width < 96 else 2)
    return Group(table, "", *_by_type(evaluation), _accounts(evaluation), *_sentences(evaluation))


def print_evaluation(evaluation: dict[str, Any], console: Console | None = None) -> None:
    """Prints what `render` makes."""
    console = console or Console()
    console.print(render(evaluation, console.width))


_MEANS = {"mean_ms": "mean", "p99_ms": "p99", "miss_ratio": "late", "art_per_request": "ART"}
"""Metrics of the table of means and what their ratios are of."""


def print_means(evaluations: Sequence[dict[str, Any]], console: Console | None = None) -> None:
    """Prints the geometric means over the scenarios of every testbed that has several, as `deepsched compare` does.

    Args:
        evaluations: contents of `evaluation.json` that share a reference.
    """
    console = console or Console()
    for testbed, own in by_testbed(evaluations).items():
        if len(own) > 1:
            console.print(_means(own, testbed))


def _means(evaluations: Sequence[dict[str, Any]], testbed: str) -> Table:
    reference = evaluations[0]["reference"]
    table = Table(
        title=f"geometric mean over {len(evaluations)} scenarios, {testbed}: × {reference}, 95 % intervals",
        title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False,
    )  # fmt: skip
    table.add_column("policy", no_wrap=True)
    for title in _MEANS.values():
        table.add_column(title, justify="right")
    names = dict.fromkeys(name for evaluation in evaluations for name in evaluation["policies"] if name != reference)
    for name in names:
        ratios = [geometric_mean(evaluations, name, metric) for metric in _MEANS]
        cells = [f"{format_ratio(ratio.value)} {format_interval(ratio, '–')}".rstrip() for ratio in ratios]
        styled = (Text(text, style=_STYLES[each.verdict]) for text, each in zip(cells, ratios, strict=True))
        table.add_row(Text(name), *styled)
    return table


def _table(evaluation: dict[str, Any], gap: int) -> Table:
    reference = evaluation["reference"]
    table = Table(
        title=f"{evaluation['scenario']}: × {reference}, 95 % intervals over {evaluation['rounds']} rounds",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_lines=True,
        pad_edge=False,
        show_edge=False,
        padding=(0, gap - 1),
        collapse_padding=True,
    )
    table.add_column("policy", no_wrap=True)
    for metric, name in METRIC_NAMES.items():
        unit = "\nms" if metric.endswith("_ms") else ""
        table.add_column(f"{name}{unit}", justify="right")
    for name, policy in evaluation["policies"].items():
        cells = [_cell(metric, policy, is_reference=name == reference) for metric in METRIC_NAMES]
        table.add_row(_title(name, policy, is_learned=name == evaluation["learned"]), *cells)
    return table


def _title(name: str, policy: dict[str, Any], *, is_learned: bool) -> Text:
    title = Text(name, style="bold" if is_learned else "")
    title.append(f"\n{policy['requests']:,} requests", style="not bold dim")
    if policy.get("proxy_cpu_us"):
        title.append(f"\n{policy['proxy_cpu_us']:.0f} µs CPU each", style="not bold dim")
    if policy["method"] != name:
        title.append(f"\non {policy['method']}", style="not bold dim")
    return title


def _cell(metric: str, policy: dict[str, Any], *, is_reference: bool) -> Text:
    text = Text(format_value(policy[metric], metric).removesuffix(" ms"))
    if is_reference:
        return text
    ratio = ratio_of(policy, metric)
    style = _STYLES[ratio.verdict]
    if ratio.value is not None:
        text.append(f"\n{format_ratio(ratio.value, metric)}", style=style)
        text.append(_interval(ratio), style=style)
    return text


def _interval(ratio: PairedRatio) -> str:
    if ratio.low is None or ratio.high is None:
        return ""
    return f"\n{digits(ratio.low)}–{digits(ratio.high) if ratio.high < 1000 else '…'}"


def _by_type(evaluation: dict[str, Any]) -> list[Text]:
    """What one type of requests pays for the gain of others."""
    policies = evaluation["policies"]
    types = dict.fromkeys(name for policy in policies.values() for name in policy["per_type"])
    if len(types) < 2:
        return []
    lines = [
        f"  {name}: " + ", ".join(
            f"{policy} {format_value(values['per_type'][name]['miss_ratio'], 'miss_ratio')}"
            for policy, values in policies.items()
        )
        for name in types
    ]  # fmt: skip
    return [Text("Goodput by type:", style="bold"), *map(Text, lines)]


def _accounts(evaluation: dict[str, Any]) -> Text:
    accounts = evaluation["accounting"]
    if accounts is None:
        return Text("No block was finished.", style="yellow")
    text = Text(sides(evaluation))
    text.append(f": {accounts['explanation']}." if accounts["difference"] else ", none lost.")
    if accounts["discarded_blocks"]:
        reasons = ", ".join(sorted({reason.split(":")[0] for reason in accounts["discarded_because"]}))
        text.append(f" Blocks discarded: {accounts['discarded_blocks']} ({reasons}).", style="yellow")
    return text


def _sentences(evaluation: dict[str, Any]) -> list[Text]:
    lines = []
    for heading, rows in verdicts(evaluation).items():
        lines.append(Text(f"{heading}:", style="bold"))
        lines += [Text(f"  {row.sentence}", style=_STYLES[row.verdict].replace("dim", "")) for row in rows]
    return lines
