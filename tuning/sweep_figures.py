"""Figures of a sweep as plotly JSON: parallel coordinates, BIC against K, importance, learning curves.

A figure that cannot be drawn is a sentence that says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance

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
