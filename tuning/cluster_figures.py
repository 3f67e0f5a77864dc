"""Figures of the cluster report: response times by state, what follows what, how many states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envs.mixture import Candidate
from tuning.clusters import Meaning
from tuning.report_series import Figure, Trace

COLOURS = 9
_TEXT_UP_TO = 9
"""Clusters up to which a transition's percentage is written into its cell."""


def state_name(state: int) -> str:
    """As people count."""
    return f"state {state + 1}"


def response_figure(meaning: Meaning, group: int) -> Figure:
    """Mean, one standard deviation and mean + 3σ of one request type's response times in every state."""
    request_type = meaning.topology.request_types[group]
    states = [k for k in range(meaning.encoder.clusters) if np.isfinite(meaning.mean_ms[k, group])]
    if not states:
        return Figure(f"response-{group}", empty=f"No request of type {request_type} was answered.")
    mean, deviation = meaning.mean_ms[states, group], meaning.deviation_ms[states, group]
    names, deadline_ms = [str(k + 1) for k in states], 1e3 * float(meaning.deadlines_s[group])
    traces: list[Trace] = [
        {"type": "bar", "x": names, "y": mean.tolist(), "name": "mean", "customdata": deviation.tolist(),
         "marker": {"color": [f"--cluster-{k % COLOURS + 1}@0.8" for k in states]},
         "error_y": {"type": "data", "array": deviation.tolist(), "color": "--muted", "thickness": 1.2, "width": 4},
         "hovertemplate": "state %{x}: %{y:.1f} ms ± %{customdata:.1f}<extra></extra>"},
        {"type": "scatter", "mode": "markers", "x": names, "y": (mean + 3 * deviation).tolist(), "name": "mean + 3σ",
         "marker": {"symbol": "diamond", "size": 8, "color": "--ink"},
         "hovertemplate": "mean + 3σ: %{y:.1f} ms<extra></extra>"},
    ]  # fmt: skip
    line = {
        "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": deadline_ms, "y1": deadline_ms,
        "line": {"color": "--bad", "width": 1, "dash": "dot"},
        "label": {"text": f"deadline {deadline_ms:.0f} ms", "textposition": "end", "yanchor": "bottom",
                  "font": {"color": "--bad", "size": 11}},
    }  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "state"}, "type": "category"},
        "yaxis": {"title": {"text": "ms"}, "rangemode": "nonnegative"},
        "shapes": [line], "showlegend": False, "hovermode": "closest", "bargap": 0.35,
    }  # fmt: skip
    return Figure(f"response-{group}", traces, layout, 300)


def transition_figure(meaning: Meaning, family: str, number: int) -> Figure:
    """Rows: the state before; columns: the state after; the share of each row."""
    counts = meaning.transitions[family]
    total = counts.sum(axis=1, keepdims=True)
    share = np.where(total > 0, counts / np.maximum(total, 1), np.nan)
    z = [[None if np.isnan(cell) else float(cell) for cell in row] for row in share]
    names = [str(k + 1) for k in range(len(counts))]
    trace: Trace = {
        "type": "heatmap", "z": z, "x": names, "y": names, "customdata": counts.tolist(), "zmin": 0, "zmax": 1,
        "colorscale": [[0, "--panel"], [1, "--learned"]], "xgap": 2, "ygap": 2, "showscale": False,
        "hovertemplate": "from %{y} to %{x}: %{z:.0%}, %{customdata} times<extra></extra>",
    }  # fmt: skip
    if len(counts) <= _TEXT_UP_TO:
        trace["text"] = [["" if cell is None or cell < 0.005 else f"{cell:.0%}" for cell in row] for row in z]
        trace["texttemplate"] = "%{text}"
        trace["textfont"] = {"size": 11}
    layout = {
        "xaxis": {"title": {"text": "next state"}, "type": "category", "showgrid": False},
        "yaxis": {"title": {"text": "state"}, "type": "category", "autorange": "reversed", "showgrid": False},
        "hovermode": "closest",
    }
    return Figure(f"transitions-{number}", [trace], layout, 130 + 30 * min(len(counts), 20))


def criteria_figure(found: Sequence[Candidate], chosen: int) -> Figure:
    """BIC and ICL of every number of clusters; the chosen one is marked."""
    if len(found) < 2:
        return Figure("criteria", empty="The number of clusters was given, not chosen.")
    counts = [candidate.clusters for candidate in found]
    series = {"BIC": [c.bic for c in found], "ICL": [c.icl for c in found]}
    traces: list[Trace] = [
        {"x": counts, "y": values, "mode": "lines+markers", "name": name, "marker": {"size": 7},
         "line": {"color": colour, "width": 2, "dash": dash}, "hovertemplate": f"{name} %{{y:.0f}}"}
        for (name, values), colour, dash in zip(
            series.items(), ("--reference", "--series-1"), ("solid", "dash"), strict=True
        )
    ]  # fmt: skip
    traces += _mark(counts, series["BIC"], chosen)
    layout = {"xaxis": _counts_axis(counts), "yaxis": {"title": {"text": "less is better"}}, **_LEGEND}
    return Figure("criteria", traces, layout, 320)


def stability_figure(found: Sequence[Candidate], chosen: int) -> Figure:
    """How alike the clusters of fits with other seeds and resamples are, for every number of clusters."""
    if len(found) < 2:
        return Figure("stability", empty="The number of clusters was given, not chosen.")
    counts, values = [c.clusters for c in found], [c.stability for c in found]
    traces: list[Trace] = [
        {"x": counts, "y": values, "mode": "lines+markers", "name": "stability", "marker": {"size": 7},
         "line": {"color": "--series-2", "width": 2}, "hovertemplate": "adjusted Rand index %{y:.2f}"},
    ]  # fmt: skip
    traces += _mark(counts, values, chosen)
    axis = {"title": {"text": "mean adjusted Rand index"}, "range": [min(0.0, *values) - 0.05, 1.05]}
    return Figure("stability", traces, {"xaxis": _counts_axis(counts), "yaxis": axis, **_LEGEND}, 320)


_LEGEND = {"showlegend": True, "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}}


def _counts_axis(counts: Sequence[int]) -> Trace:
    return {"title": {"text": "clusters"}, "tickvals": list(counts), "range": [counts[0] - 0.6, counts[-1] + 0.6]}


def _mark(counts: Sequence[int], values: Sequence[float], chosen: int) -> list[Trace]:
    if chosen not in counts:
        return []
    return [{"x": [chosen], "y": [values[list(counts).index(chosen)]], "mode": "markers", "name": f"chosen: {chosen}",
             "marker": {"size": 14, "color": "--learned", "symbol": "circle-open", "line": {"width": 3}},
             "hoverinfo": "skip"}]  # fmt: skip
