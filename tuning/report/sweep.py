"""What a sweep found: a table in the terminal, and one self-contained page with plotly inlined.

Figures of a sweep as plotly JSON: parallel coordinates, BIC against K, importance, learning curves.

A figure that cannot be drawn is a sentence that says why.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from plotly.offline import get_plotlyjs
from rich.console import Console
from rich.table import Table
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance

from actuators.files import write_atomic
from tuning.search.space import SearchOptions

MIN_TRIALS = 8
_LAYOUT: dict[str, Any] = {
    "template": "plotly_white",
    "height": 420,
    "margin": {"l": 70, "r": 30, "t": 50, "b": 50},
    "font": {"family": "system-ui, sans-serif"},
}
Figure = dict[str, Any] | str


def parallel_figure(table: pd.DataFrame, paths: Sequence[str]) -> Figure:
    """Every trial a line through its settings to its score."""
    done = _scored(table)
    if done.empty:
        return "No trial has a score."
    dimensions = [{"label": _short(path), **_axis(done[path])} for path in paths]
    dimensions.append({"label": "score", "values": done["score"].tolist()})
    line = {"color": done["score"].tolist(), "colorscale": "Viridis", "showscale": True}
    margin = {**_LAYOUT["margin"], "t": 70}
    return {
        "data": [{"type": "parcoords", "line": line, "dimensions": dimensions}],
        "layout": {**_LAYOUT, "margin": margin},
    }


def mixture_figure(table: pd.DataFrame) -> Figure:
    """Cluster count against BIC, coloured by score: does the mixture that describes best also steer best?"""
    done = _scored(table).dropna(subset=["bic", "clusters"])
    if done.empty:
        return "No trial fitted a mixture."
    marker = {
        "color": done["score"].tolist(),
        "colorscale": "Viridis",
        "showscale": True,
        "size": 11,
        "colorbar": {"title": {"text": "score"}},
    }
    trace = {
        "type": "scatter",
        "mode": "markers",
        # Trials with the same K fit the same mixture: side by side, so that none hides another.
        "x": (done["clusters"] + 0.06 * done.groupby("clusters").cumcount()).tolist(),
        "y": done["bic"].tolist(),
        "text": done["trial"].tolist(),
        "marker": marker,
    }
    axes = {
        "xaxis": {"title": {"text": "clusters K"}, "dtick": 1},
        "yaxis": {"title": {"text": "BIC (lower describes better)"}},
    }
    return {"data": [trace], "layout": {**_LAYOUT, **axes}}


def importance_figure(table: pd.DataFrame, paths: Sequence[str]) -> Figure:
    """How much worse a random forest predicts the score when a setting is shuffled, as a share of the whole."""
    shares = importances(table, paths)
    if not shares:
        return f"Needs at least {MIN_TRIALS} scored trials that differ."
    ordered = sorted(shares.items(), key=lambda item: item[1])
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": [share for _, share in ordered],
        "y": [_short(path) for path, _ in ordered],
    }
    axes = {"xaxis": {"title": {"text": "share of the importance"}, "tickformat": ".0%"}, "yaxis": {"automargin": True}}
    return {"data": [trace], "layout": {**_LAYOUT, **axes}}


def importances(table: pd.DataFrame, paths: Sequence[str]) -> dict[str, float]:
    """Path → share of the importance, 0…1, all together 1; empty when the trials cannot tell."""
    done = _scored(table)
    if len(done) < MIN_TRIALS or done["score"].std() == 0:
        return {}
    inputs = np.column_stack([_numbers(done[path]) for path in paths])
    forest = RandomForestRegressor(n_estimators=200, min_samples_leaf=2, random_state=0).fit(inputs, done["score"])
    found = permutation_importance(forest, inputs, done["score"], n_repeats=20, random_state=0)
    means = np.maximum(found.importances_mean, 0.0)
    return dict(zip(paths, (means / means.sum()).tolist(), strict=True)) if means.sum() > 0 else {}


def history_figure(histories: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Score over trained steps, a line per trial; those that ended early stop early."""
    if not histories:
        return "No trial has a score."
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": trial,
            "x": [step for step, _ in rows],
            "y": [score for _, score in rows],
            "marker": {"size": 4},
        }
        for trial, rows in histories.items()
    ]
    axes = {"xaxis": {"title": {"text": "environment steps"}}, "yaxis": {"title": {"text": "score"}}}
    return {"data": data, "layout": {**_LAYOUT, **axes, "showlegend": False}}


def _scored(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["score"].notna()]


def _axis(column: pd.Series) -> dict[str, Any]:
    if _is_numeric(column):
        values = column.astype(float)
        if values.min() > 0 and values.max() / values.min() >= 10:
            ticks = np.geomspace(values.min(), values.max(), 4)
            labels = [f"{tick:.1e}" for tick in ticks]
            return {"values": np.log10(values).tolist(), "tickvals": np.log10(ticks).tolist(), "ticktext": labels}
        return {"values": values.tolist()}
    names = sorted({str(value) for value in column})
    places = {name: index for index, name in enumerate(names)}
    return {
        "values": [places[str(value)] for value in column],
        "tickvals": list(range(len(names))),
        "ticktext": names,
    }


def _numbers(column: pd.Series) -> NDArray[np.float64]:
    if _is_numeric(column):
        return np.asarray(column, dtype=float)
    codes, _ = pd.factorize(column.astype(str), sort=True)
    return np.asarray(codes, dtype=float)


def _is_numeric(column: pd.Series) -> bool:
    return all(isinstance(value, int | float | np.number) and not isinstance(value, bool) for value in column)


def _short(path: str) -> str:
    return path.rpartition(".")[2].replace("_", " ")


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
        table: `tuning.search.sweep.trial_table`.
        evaluations: `tuning.search.confirm.confirm`; empty when nothing was confirmed.
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
