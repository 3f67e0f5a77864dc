"""What a sweep found: a table in the terminal, and one self-contained page with plotly inlined."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from plotly.offline import get_plotlyjs
from rich.console import Console
from rich.table import Table

from actuators.files import write_atomic
from tuning.sweep_figures import history_figure, importance_figure, mixture_figure, parallel_figure
from tuning.sweep_options import SearchOptions

SHOWN = 8
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1a1f24;"
    "background:#fff}table{border-collapse:collapse;font-variant-numeric:tabular-nums}th,td{padding:.3rem .8rem;"
    "text-align:right;border-bottom:1px solid #ddd}th:first-child,td:first-child{text-align:left}"
    "p.note{color:#555}.scroll{overflow-x:auto}"
)


class _Scored(NamedTuple):
    """Where a trial's score comes from, in words."""

    on: str
    reference: str
    caution: str


_SCORED = {
    "simulated": _Scored(
        "on the validation episodes",
        "with equal weights",
        "The score is chosen among many trials on the same simulated episodes, so it flatters the best one",
    ),
    "live": _Scored(
        "in the last intervals that it steered itself, exploring,",
        "with equal weights, watched on the same testbeds before",
        "The score is of few intervals and chosen among many trials, so it flatters the best one",
    ),
}


def write_sweep_report(
    folder: Path,
    table: pd.DataFrame,
    histories: Mapping[str, Sequence[tuple[int, float]]],
    options: SearchOptions,
    evaluations: Sequence[dict[str, Any]],
) -> Path:
    """Writes `report.html` and `best/`; the page's path.

    Args:
        table: `tuning.sweep.trial_table`.
        evaluations: `tuning.confirm.confirm`; empty when nothing was confirmed.
    """
    bundles = sorted((folder / "bundles").glob("*"))
    best = next((path for path in bundles if path.name == table["trial"].iloc[0]), bundles[0] if bundles else None)
    if best is not None:
        shutil.rmtree(folder / "best", ignore_errors=True)
        shutil.copytree(best, folder / "best")
    page = folder / "report.html"
    write_atomic(page, render(table, histories, options, evaluations).encode())
    return page


def render(
    table: pd.DataFrame,
    histories: Mapping[str, Sequence[tuple[int, float]]],
    options: SearchOptions,
    evaluations: Sequence[dict[str, Any]],
) -> str:
    """The page as text."""
    paths = list(options.space)
    figures = {
        "parallel": ("What was tried, and what came of it", parallel_figure(table, paths)),
        "mixture": ("BIC against K against score", mixture_figure(table)),
        "importance": ("Which settings mattered", importance_figure(table, paths)),
        "history": ("Score while training", history_figure(histories)),
    }
    parts = [
        f"<h2>{escape(title)}</h2>" + (f'<div id="{name}"></div>' if isinstance(drawn, dict) else f"<p>{drawn}</p>")
        for name, (title, drawn) in figures.items()
    ]
    data = json.dumps({name: drawn for name, (_, drawn) in figures.items() if isinstance(drawn, dict)})
    script = (
        "Promise.all(Object.entries(JSON.parse(document.getElementById('figures').textContent)).map(([id,f])=>"
        "Plotly.newPlot(id,f.data,f.layout,{responsive:true,displaylogo:false})))"
        ".then(()=>{document.documentElement.dataset.drawn='true'})"
    )
    lead = _lead(table, options) + _confirmed(evaluations)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Sweep · Deep Scheduling</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><style>{_STYLE}</style></head><body><main><h1>Sweep</h1>{lead}'
        f"<h2>Trials</h2>{_trials(table, paths)}{''.join(parts)}</main>"
        f'<script type="application/json" id="figures">{data.replace("<", chr(92) + "u003c")}</script>'
        f"<script>{get_plotlyjs()}</script><script>{script}</script></body></html>\n"
    )


def print_best(table: pd.DataFrame, evaluations: Sequence[dict[str, Any]], console: Console) -> None:
    """The best trials, and how the confirmed ones did on live testbeds."""
    drawn = Table(title="best trials", title_justify="left")
    for column, justify in (("trial", "left"), ("score", "right"), ("K", "right"), ("steps", "right")):
        drawn.add_column(column, justify=justify)  # type: ignore[arg-type]
    for row in table.head(SHOWN).to_dict("records"):
        drawn.add_row(str(row["trial"]), _number(row["score"]), _number(row["clusters"]), _number(row["steps_trained"]))
    console.print(drawn)
    for line in _live_lines(evaluations):
        console.print(line, markup=False, soft_wrap=True)


def _lead(table: pd.DataFrame, options: SearchOptions) -> str:
    failed = int((table["error"] != "").sum())
    ended_early = int((table["steps_trained"] < options.base.training.steps).sum()) - failed
    best, where = table.iloc[0], _SCORED[options.testbed]
    return (
        f"<p>{len(table)} trials, {options.search} search, scheduler {options.scheduler}; {max(ended_early, 0)} ended "
        f"early, {failed} failed. The best, <b>{escape(str(best['trial']))}</b>, scores {_number(best['score'])}: "
        f"{where.on} its latency over deadline is {math.exp(-best['score']):.3f} of that of least_conn "
        f"{where.reference}.</p><p class=note>{where.caution}; the judgement on live testbeds does not.</p>"
    )


def _confirmed(evaluations: Sequence[dict[str, Any]]) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in _live_lines(evaluations))
    return f"<h2>On live testbeds</h2><ul>{lines}</ul>" if lines else ""


def _live_lines(evaluations: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for evaluation in evaluations:
        trial = Path(evaluation["bundle"]).name
        learned = evaluation["policies"].get("learned", {})
        reference = evaluation["policies"].get("least_conn", {})
        if not learned or not reference:
            continue
        ratios = ", ".join(
            f"{name.removesuffix('_ms')} {learned[name]:.1f} ms ({learned[name] / reference[name]:.2f} of least_conn)"
            for name in ("mean_ms", "p99_ms")
            if learned.get(name) and reference.get(name)
        )
        lines.append(f"live testbed {evaluation['testbed']}, {trial}: {ratios}")
    return lines


def _trials(table: pd.DataFrame, paths: Sequence[str]) -> str:
    columns = ["trial", "score", "art_per_request", *paths, "steps_trained", "seconds", "error"]
    head = "".join(f"<th>{escape(name.rpartition('.')[2])}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_number(row[name]))}</td>" for name in columns) + "</tr>"
        for row in table.to_dict("records")
    )
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _number(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return "" if value is None else str(value)
