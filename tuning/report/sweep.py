"""What a sweep found: a table in the terminal and `report.html`. Each figure says why when it cannot be drawn."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance

from actuators.contract.arrays import FloatArray
from actuators.files import write_atomic
from tuning.report.axes import Figure
from tuning.report.page import Provenance, render
from tuning.search.space import SearchOptions

MIN_TRIALS = 8
"""Scored trials from which the importance of settings is estimated."""
SHOWN = 8
"""Trials in the terminal's table."""
_SCORE_COLOURS = {"colorscale": [[0, "--high"], [1, "--learned"]], "showscale": True,
                  "colorbar": {"title": {"text": "score"}, "thickness": 8, "outlinewidth": 0}}  # fmt: skip


class _ScoreSource(NamedTuple):
    """Where a trial's score comes from, in words."""

    on: str
    reference: str
    caution: str


_SCORE_SOURCES = {
    "simulated": _ScoreSource(
        "on the validation episodes",
        "with equal weights",
        "The score is the best of many trials on the same simulated episodes and therefore too good",
    ),
    "live": _ScoreSource(
        "in the last intervals in which it chose the control, exploring,",
        "with equal weights, watched on the same testbeds before",
        "The score covers few intervals and is the best of many trials, and therefore too good",
    ),
}


def write_sweep_report(
    folder: Path,
    table: pd.DataFrame,
    histories: Mapping[str, Sequence[tuple[int, float]]],
    options: SearchOptions,
    evaluations: Sequence[dict[str, Any]],
    provenance: Provenance,
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
    write_atomic(page, render_sweep_page(table, histories, options, evaluations, provenance))
    return page


def render_sweep_page(
    table: pd.DataFrame,
    histories: Mapping[str, Sequence[tuple[int, float]]],
    options: SearchOptions,
    evaluations: Sequence[dict[str, Any]],
    provenance: Provenance | None = None,
) -> str:
    """The page as text."""
    paths = list(options.space)
    columns = ["trial", "score", "art_per_request", *paths, "steps_trained", "seconds", "error"]
    source, best = _SCORE_SOURCES[options.testbed], table.iloc[0]
    failed = int((table["error"] != "").sum())
    ended_early = int((table["steps_trained"] < options.base.training.steps).sum()) - failed
    return render(
        "sweep.html.j2",
        provenance,
        title="Sweep",
        headline=(
            f"The best trial scores {_format(best['score'])}: {source.on} its latency / deadline is "
            f"{math.exp(-best['score']):.3f} of that of least_conn {source.reference}"
        ),
        lead=f"{source.caution}; the comparison on live testbeds is not affected.",
        facts=[
            f"best trial {best['trial']}", f"{len(table)} trials", f"{options.search} search",
            f"scheduler {options.scheduler}", f"{max(ended_early, 0)} ended early", f"{failed} failed",
        ],
        live_lines=_live_lines(evaluations),
        columns=["ART per request" if name == "art_per_request" else _short(name) for name in columns],
        rows=[[_format(row[name]) for name in columns] for row in table.to_dict("records")],
        figures={
            "Settings and score": parallel_figure(table, paths),
            "BIC against K": mixture_figure(table),
            "Importance of the settings": importance_figure(table, paths),
            "Score during training": history_figure(histories),
        },
    )  # fmt: skip


def print_best(table: pd.DataFrame, evaluations: Sequence[dict[str, Any]], console: Console) -> None:
    """The best trials, and how the confirmed ones did on live testbeds."""
    drawn = Table(title="best trials", title_justify="left")
    for column, justify in (("trial", "left"), ("score", "right"), ("K", "right"), ("steps", "right")):
        drawn.add_column(column, justify=justify)  # type: ignore[arg-type]
    for row in table.head(SHOWN).to_dict("records"):
        drawn.add_row(str(row["trial"]), _format(row["score"]), _format(row["clusters"]), _format(row["steps_trained"]))
    console.print(drawn)
    for line in _live_lines(evaluations):
        console.print(line, markup=False, soft_wrap=True)


def parallel_figure(table: pd.DataFrame, paths: Sequence[str]) -> Figure:
    """Every trial as a line through its settings to its score."""
    done = _scored(table)
    if done.empty:
        return Figure("parallel", empty="No trial has a score.")
    scores = done["score"].tolist()
    dimensions = [{"label": _short(path), **_axis(done[path])} for path in paths]
    dimensions.append({"label": "score", "values": scores})
    trace = {"type": "parcoords", "line": {"color": scores, **_SCORE_COLOURS}, "dimensions": dimensions}
    return Figure("parallel", [trace], {"margin": {"l": 70, "r": 20, "t": 60, "b": 30}}, 420)


def mixture_figure(table: pd.DataFrame) -> Figure:
    """BIC by cluster count, coloured by score: whether the mixture that describes best also gives the best policy."""
    done = _scored(table).dropna(subset=["bic", "clusters"])
    if done.empty:
        return Figure("mixture", empty="No trial fitted a mixture.")
    # Trials with the same K fit the same mixture: shifted, so that none hides another.
    shifted = done["clusters"] + 0.06 * done.groupby("clusters").cumcount()
    trace = {
        "type": "scatter", "mode": "markers", "x": shifted.tolist(), "y": done["bic"].tolist(),
        "text": done["trial"].tolist(), "hovertemplate": "%{text}: BIC %{y:.5g}<extra></extra>",
        "marker": {"color": done["score"].tolist(), "size": 11, **_SCORE_COLOURS},
    }  # fmt: skip
    x_axis, y_axis = {"title": {"text": "clusters K"}, "dtick": 1}, {"title": {"text": "BIC (less is better)"}}
    return Figure("mixture", [trace], {"xaxis": x_axis, "yaxis": y_axis, "hovermode": "closest"}, 380)


def importance_figure(table: pd.DataFrame, paths: Sequence[str]) -> Figure:
    """How much worse a random forest predicts the score when a setting is shuffled, as a share of the whole."""
    shares = importances(table, paths)
    if not shares:
        return Figure("importance", empty=f"Needs at least {MIN_TRIALS} scored trials that differ.")
    ordered = sorted(shares.items(), key=lambda item: item[1])
    trace = {
        "type": "bar", "orientation": "h", "x": [share for _, share in ordered],
        "y": [_short(path) for path, _ in ordered], "marker": {"color": "--learned"},
        "hovertemplate": "%{x:.1%}<extra></extra>",
    }  # fmt: skip
    axis = {"title": {"text": "share of the importance"}, "tickformat": ".0%"}
    return Figure("importance", [trace], {"xaxis": axis, "hovermode": "closest"}, 110 + 40 * len(ordered))


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
    """Score over trained steps, a line per trial; a trial that ended early has a short line."""
    if not histories:
        return Figure("history", empty="No trial has a score.")
    traces = [
        {"type": "scatter", "mode": "lines+markers", "name": trial, "x": [step for step, _ in rows],
         "y": [score for _, score in rows], "line": {"width": 1.6}, "marker": {"size": 4}}
        for trial, rows in histories.items()
    ]  # fmt: skip
    axes = {"xaxis": {"title": {"text": "environment steps"}}, "yaxis": {"title": {"text": "score"}}}
    return Figure("history", traces, {**axes, "hovermode": "closest"}, 380)


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
    return {"values": [places[str(value)] for value in column], "tickvals": list(range(len(names))), "ticktext": names}


def _numbers(column: pd.Series) -> FloatArray:
    if _is_numeric(column):
        return np.asarray(column, dtype=float)
    codes, _ = pd.factorize(column.astype(str), sort=True)
    return np.asarray(codes, dtype=float)


def _is_numeric(column: pd.Series) -> bool:
    return all(isinstance(value, int | float | np.number) and not isinstance(value, bool) for value in column)


def _short(path: str) -> str:
    return path.rpartition(".")[2].replace("_", " ")


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


def _format(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return "" if value is None else str(value)
