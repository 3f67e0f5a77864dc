"""`deepsched compare RUN RUN…`: the evaluations of several runs side by side, or each as Markdown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import Field

from actuators.errors import ConfigError
from actuators.options import Options
from rayjobs.cli.main import Verb, run_verb

GOODPUT = "goodput"
"""Shown in place of `miss_ratio`, what it leaves of 1."""


class CompareOptions(Options):
    """Which runs."""

    runs: tuple[Path, ...] = Field(min_length=1)
    """Folders of runs that compared policies; two or more, or one with --markdown."""
    metric: tuple[str, ...] = Field(default=("mean_ms", "p99_ms", "goodput", "art_per_request"), min_length=1)
    """Columns per run: mean_ms, p50_ms, p90_ms, p95_ms, p99_ms, p999_ms, art_per_request, goodput, errors. Of goodput,
    the ratio is of late requests."""
    markdown: bool = False
    """Print a Markdown table per metric for each run, with its command, commit and machine."""


def run(options: CompareOptions) -> int:
    """Prints a row per scenario and policy and a column per run: values, and ratios to the run's reference."""
    from rayjobs.cli.console import console_out
    from tuning.judging.agreement import comparison_rows, load_evaluations
    from tuning.judging.statistics import METRICS

    if len(options.runs) < (1 if options.markdown else 2):
        raise ConfigError(f"{len(options.runs)} runs to compare", where="runs", remedy="give two or more run folders")
    metrics = tuple("miss_ratio" if metric == GOODPUT else metric for metric in options.metric)
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown:
        expected = ", ".join(GOODPUT if metric == "miss_ratio" else metric for metric in METRICS)
        raise ConfigError(f"unknown metric '{unknown[0]}'", remedy=f"expected one of: {expected}")
    if options.markdown:
        for path in options.runs:
            print(_markdown(path, metrics))
        return 0
    runs = {name: load_evaluations(path) for name, path in _names(options.runs).items()}
    console_out().print(_table(comparison_rows(runs), list(runs), metrics))
    return 0


def _markdown(path: Path, metrics: tuple[str, ...]) -> str:
    """Tables and the paragraph below them; "unknown" for what is not in the run folder."""
    from tuning.judging.agreement import load_evaluations
    from tuning.judging.markdown import account, results_markdown

    evaluations = list(load_evaluations(path).values())
    command, versions = (path / name for name in ("command.txt", "versions.txt"))
    recorded = dict(line.split(": ", 1) for line in versions.read_text().splitlines()) if versions.exists() else {}
    typed = command.read_text().strip() if command.exists() else "unknown"
    closing = account(evaluations, typed, recorded.get("commit", "unknown"), recorded.get("machine", "unknown machine"))
    return f"{results_markdown(evaluations, metrics)}\n\n{closing}\n"


def _names(paths: tuple[Path, ...]) -> dict[str, Path]:
    """The names of the folders, or their paths where two names are equal."""
    names = [path.resolve().name for path in paths]
    return dict(zip(names if len(set(names)) == len(names) else map(str, paths), paths, strict=True))


def _table(rows: list[dict[str, Any]], runs: list[str], metrics: tuple[str, ...]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    names = (GOODPUT if metric == "miss_ratio" else metric for metric in metrics)
    table = Table(title=f"{', '.join(names)}; × each run's own reference, 95 % intervals", title_justify="left")
    table.add_column("scenario")
    table.add_column("policy", no_wrap=True)
    for name in runs:
        table.add_column(escape(name), justify="right")
    last = ""
    for row in rows:
        part, last = ("" if row["part"] == last else row["part"]), row["part"]
        table.add_row(escape(part), escape(row["policy"]), *(_cell(row["cells"][name], metrics) for name in runs))
    return table


def _cell(policy: dict[str, Any] | None, metrics: tuple[str, ...]) -> str:
    from tuning.judging.verdicts import format_interval, format_ratio, format_value, ratio_of

    if policy is None:
        return "–"
    lines = []
    for metric in metrics:
        ratio = ratio_of(policy, metric)
        value = format_value(policy[metric], metric)
        own = ratio.value == 1.0 and ratio.low == ratio.high
        told = f"{value}  {format_ratio(ratio.value, metric)} {format_interval(ratio, '–')}"
        lines.append(value if own else told.rstrip())
    return "\n".join(lines)


VERB = Verb(
    name="compare",
    example="deepsched compare runs/evaluate-1-20261122T101353Z runs/evaluate-2-20261122T104501Z",
    options=CompareOptions,
    run=run,
    positional=("runs",),
)

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
