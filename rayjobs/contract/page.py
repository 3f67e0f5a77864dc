"""The matrix of proxies and checks: as a page, as Markdown, and as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from actuators.files import write_atomic
from rayjobs.contract.checks import CHECKS, Judged
from rayjobs.contract.stand import TYPES

if TYPE_CHECKING:
    from rich.table import Table

_CLASSES = {"pass": "good", "fail": "bad", "n/a": "muted"}
_WORDS = {"pass": "pass", "fail": "FAIL", "n/a": "n/a"}


def headline(judged: Sequence[Judged]) -> str:
    """The result in a sentence."""
    if len(judged) == 1:
        failed = [check.title for check in CHECKS if check.key in judged[0].failed]
        applied = sum(verdict.state != "n/a" for verdict in judged[0].verdicts)
        return f"{judged[0].name} fails: {', '.join(failed)}" if failed else f"{judged[0].name} passes all {applied}"
    whole = [each.name for each in judged if not each.failed]
    return f"{len(whole)} of {len(judged)} proxies pass every check that applies to them: {', '.join(whole) or 'none'}"


def stand_in_words(servers: int, workers: int, rate_rps: float) -> str:
    """The test stand in two sentences."""
    types = ", ".join(f"{share:.0%} {name} of {mean_s * 1e3:g} ms" for name, (share, mean_s) in TYPES.items())
    return (
        f"{servers} test servers with {workers} workers each on this machine, {rate_rps:g} requests per second: "
        f"{types}. What a server got is counted by the servers, latencies and losses by the load engine."
    )


def write_page(
    path: Path, judged: Sequence[Judged], stand: str, command: str, config_yaml: str, versions: Mapping[str, str]
) -> None:
    """Writes the page atomically. Raises OSError."""
    from tuning.report.page import Provenance, render

    rows = [
        {
            "name": each.name,
            "what": each.what,
            "cells": [
                {"title": check.title, "state": _WORDS[v.state], "class": _CLASSES[v.state], "figure": v.figure}
                for check, v in zip(CHECKS, each.verdicts, strict=True)
            ],
        }
        for each in judged
    ]
    facts = [f"{len(judged)} proxies" if len(judged) != 1 else judged[0].what, f"{len(CHECKS)} checks",
             f"{sum(each.seconds for each in judged):.0f} s"]  # fmt: skip
    page = render(
        "contract.html.j2", Provenance(command, config_yaml, dict(versions)), title="Contract",
        headline=headline(judged), facts=facts, rows=rows, checks=CHECKS, stand=stand,
    )  # fmt: skip
    write_atomic(path, page)


def markdown(judged: Sequence[Judged]) -> str:
    """A row per proxy with the verdicts, then the figures of what failed."""
    titles = [check.title for check in CHECKS]
    lines = [f"| proxy | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for each in judged:
        words = [f"**{_WORDS[v.state]}**" if v.state == "fail" else _WORDS[v.state] for v in each.verdicts]
        lines.append(f"| `{each.name}` | {' | '.join(words)} |")
    lines.append("")
    for each in judged:
        for check, verdict in zip(CHECKS, each.verdicts, strict=True):
            if verdict.state == "fail":
                lines.append(f"- `{each.name}`, {check.title.lower()}: {verdict.figure}")
    return "\n".join(lines).rstrip() + "\n"


def table(judged: Sequence[Judged]) -> Table:
    """For the terminal: a proxy's checks with figures, or the matrix of several."""
    from rich.markup import escape
    from rich.table import Table

    colours = {"pass": "green", "fail": "bold red", "n/a": "dim"}
    drawn = Table(title="contract", title_justify="left")
    if len(judged) == 1:
        for column in ("check", "", "measured", "limit"):
            drawn.add_column(column, overflow="fold")
        for check, v in zip(CHECKS, judged[0].verdicts, strict=True):
            drawn.add_row(check.title, f"[{colours[v.state]}]{_WORDS[v.state]}[/]", escape(v.figure), check.limit)
        return drawn
    for column in ("proxy", *(check.title for check in CHECKS)):
        drawn.add_column(column)
    for each in judged:
        drawn.add_row(each.name, *(f"[{colours[v.state]}]{_WORDS[v.state]}[/]" for v in each.verdicts))
    return drawn
