"""Writes `clusters.html`: what the states of a mixture mean, their transitions, the choice of their number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from actuators.files import write_atomic
from envs.mixture.fit import Candidate
from tuning.observing.clusters import Meaning
from tuning.report.axes import Figure, Trace
from tuning.report.learning import EncoderSummary, choice_figure, cluster_colour
from tuning.report.page import Provenance, render

_TEXT_UP_TO = 9
"""Clusters up to which a transition's percentage is written into its cell."""


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
         "marker": {"color": [f"{cluster_colour(k)}@0.8" for k in states]},
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
        "shapes": [line], "hovermode": "closest", "bargap": 0.35,
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


def write_cluster_page(
    path: Path, found: Meaning, tried: Sequence[Candidate], provenance: Provenance, warnings: Sequence[str] = ()
) -> None:
    """Writes the page atomically.

    Args:
        tried: the numbers of clusters that there were to choose from.
        warnings: what was unusual about the observation phase.
    """
    write_atomic(path, render_cluster_page(found, tried, provenance, warnings))


def render_cluster_page(
    found: Meaning, tried: Sequence[Candidate], provenance: Provenance, warnings: Sequence[str] = ()
) -> str:
    """The page as text."""
    encoder, types = found.encoder, found.topology.request_types
    subject = "of the whole system" if encoder.kind == "joint" else "of a server"
    counts, less_is_better = [candidate.clusters for candidate in tried], {"title": {"text": "less is better"}}
    criteria = {"BIC": [c.bic for c in tried], "ICL": [c.icl for c in tried]}
    stability = {"stability": [c.stability for c in tried]}
    lowest = min([0.0, *stability["stability"]]) - 0.05
    index_axis = {"title": {"text": "mean adjusted Rand index"}, "range": [lowest, 1.05]}
    return render(
        "clusters.html.j2",
        provenance,
        title=f"{encoder.clusters} states",
        headline=f"{encoder.clusters} states {subject}, seen in {found.seconds:.0f} seconds",
        lead=_lead(found, tried, warnings),
        facts=_facts(found),
        found=found,
        rows=_rows(found),
        encoder=EncoderSummary.of(encoder, found.share, found.labels),
        response_times={name: response_figure(found, group) for group, name in enumerate(types)},
        transitions={
            family: (transition_figure(found, family, number), int(table.sum()))
            for number, (family, table) in enumerate(found.transitions.items())
        },
        choice={
            "BIC and ICL": choice_figure("criteria", counts, criteria, encoder.clusters, less_is_better),
            "Stability": choice_figure("stability", counts, stability, encoder.clusters, index_axis),
        },
    )


def _lead(found: Meaning, tried: Sequence[Candidate], warnings: Sequence[str]) -> str:
    chosen = [_stability(c) for c in tried if c.clusters == found.encoder.clusters]
    return " ".join([*chosen, *(f"Warning: {warning}." for warning in warnings)])


def _stability(chosen: Candidate) -> str:
    score = f"adjusted Rand index {chosen.stability:.2f}"
    if chosen.stability >= 0.8:
        return f"Fits with other seeds and resamples find the same states ({score})."
    if chosen.stability >= 0.5:
        return f"Fits with other seeds and resamples find similar states ({score})."
    return f"Fits with other seeds and resamples find different states ({score}): do not name or interpret them."


def _facts(found: Meaning) -> list[str]:
    novel = np.mean([novelty > 1 for row in found.labels for _, _, novelty in row])
    deadlines = zip(found.topology.request_types, found.deadlines_s, strict=True)
    return [
        f"{found.windows} windows",
        f"{len(found.topology.servers)} servers",
        f"{len(found.encoder.names)} features",
        f"{novel:.1%} outside every state",
        *(f"{name}: deadline {1e3 * seconds:.0f} ms" for name, seconds in deadlines),
    ]


def _rows(found: Meaning) -> dict[str, dict[str, str]]:
    """State → column → cell of the table of states."""
    types, ranks = found.topology.request_types, found.encoder.ranks().argsort().argsort()
    rows = {}
    for k in range(found.encoder.clusters):
        slow, place = found.slow[k], found.places[k]
        rows[f"state {k + 1}"] = {
            "share of time": f"{found.share[k]:.1%}",
            **{
                f"{name}, ms": "–" if np.isnan(mean) else f"{mean:.1f} ± {deviation:.1f}"
                for name, mean, deviation in zip(types, found.mean_ms[k], found.deviation_ms[k], strict=True)
            },
            "mean + 3σ / deadline": "–" if np.isnan(slow) else f"{slow:.2f}×",
            "rank": "–" if place is None else str(place),
            "rank in rewards": str(int(ranks[k]) + 1),
        }
    return rows
