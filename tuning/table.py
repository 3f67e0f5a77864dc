"""The evaluation as a table for the terminal, with a sentence for every row that learning does not win."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tuning.statistics import Ratio
from tuning.verdicts import ROWS, comparisons, format_ratio, format_value, interval_text, not_won, read

_STYLES = {"better": "green", "worse": "red", "no difference shown": "dim", "not shown": "dim"}


def render(evaluation: dict[str, Any]) -> RenderableType:
    """Table and sentences; `evaluation` is the content of `evaluation.json`."""
    return Group(_table(evaluation), _accounts(evaluation), *_sentences(evaluation))


def print_evaluation(evaluation: dict[str, Any], console: Console | None = None) -> None:
    """Prints what `render` makes."""
    (console or Console()).print(render(evaluation))


def _table(evaluation: dict[str, Any]) -> Table:
    reference = evaluation["reference"]
    table = Table(
        title=f"{evaluation['scenario']}: ratios to {reference}, 95 % intervals over {evaluation['rounds']} rounds",
        title_justify="left",
        title_style="bold",
        show_lines=True,
    )
    table.add_column("policy", no_wrap=True)
    for name in ("requests", *ROWS.values()):
        table.add_column(name, justify="right", no_wrap=name == "requests")
    for name, policy in evaluation["policies"].items():
        title = Text(name, style="bold" if name == evaluation["learned"] else "")
        title.append(f"\n{policy['method']}", style="dim")
        cells = [_cell(metric, policy, is_reference=name == reference) for metric in ROWS]
        table.add_row(title, f"{policy['requests']:,}", *cells)
    return table


def _cell(metric: str, policy: dict[str, Any], *, is_reference: bool) -> Text:
    text = Text(format_value(metric, policy[metric]))
    if is_reference:
        return text
    ratio = read(policy, metric)
    style = _STYLES[ratio.verdict]
    if ratio.value is not None:
        text.append(f"\n{format_ratio(ratio.value)}", style=style)
        text.append(_interval(ratio), style=style)
    return text


def _interval(ratio: Ratio) -> str:
    if ratio.low is None or ratio.high is None:
        return ""
    low, high = interval_text(ratio.low, ratio.high)
    return f"\n[{low}, {high}]"


def _accounts(evaluation: dict[str, Any]) -> Text:
    accounts = evaluation["accounting"]
    if accounts is None:
        return Text("No block was finished.", style="yellow")
    text = Text(f"{accounts['sent']:,} requests sent, {accounts['nginx_requests']:,} counted by NGINX")
    text.append(f": {accounts['explanation']}." if accounts["difference"] else ", none lost.")
    if accounts["discarded_blocks"]:
        text.append(
            f" {accounts['discarded_blocks']} blocks were discarded: {'; '.join(accounts['discarded_because'])}.",
            style="yellow",
        )
    return text


def _sentences(evaluation: dict[str, Any]) -> list[Text]:
    won = [c for c in comparisons(evaluation) if c.verdict == "better"]
    lines = [Text(f"  {c.sentence}", style="green") for c in won]
    losing = not_won(evaluation)
    if losing:
        lines.append(Text(f"Not won by {evaluation['learned']}:", style="bold"))
        lines += [Text(f"  {sentence}") for sentence in losing]
    return lines
