"""`clusters.html`: what the states of a mixture mean, as one self-contained page.

Figures of the cluster report: response times by state, what follows what, how many states.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from actuators.files import write_atomic
from envs.mixture.fit import Candidate
from tuning.observing.clusters import Meaning
from tuning.report.axes import Figure, Trace
from tuning.report.document import Page, Provenance, document, header, repeat, section
from tuning.report.learning import EncoderSummary, StateVisit, states_figure, timeline_figure

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


def write_cluster_page(
    path: Path, found: Meaning, tried: Sequence[Candidate], provenance: Provenance, warnings: Sequence[str] = ()
) -> None:
    """Writes the page atomically.

    Args:
        tried: the numbers of clusters that there were to choose from.
        warnings: what was odd about the observation phase.
    """
    write_atomic(path, render(found, tried, provenance, warnings))


def render(found: Meaning, tried: Sequence[Candidate], provenance: Provenance, warnings: Sequence[str] = ()) -> str:
    """The page as text."""
    page, summary = Page(), encoder_summary(found)
    body = "".join(
        (
            _header(found, tried, warnings),
            _states(page, found, summary),
            _times(page, found),
            _followers(page, found),
            section("When they were seen", "Pale bars: the mixture was unsure.", page.place(timeline_figure(summary))),
            _counts(page, found, tried),
            repeat(provenance, {}),
        )
    )
    return document(page, f"{found.encoder.clusters} states", body)


def encoder_summary(found: Meaning) -> EncoderSummary:
    """The encoder with everything it saw, for the figures that the run report has, too."""
    encoder = found.encoder
    names = ["" if encoder.kind == "joint" else f"server {row + 1}" for row in range(len(found.labels))]
    return EncoderSummary(
        features=encoder.names,
        means=tuple(tuple(row) for row in encoder.means.tolist()),
        shares=tuple(found.share.tolist()),
        bic=tuple(sorted(encoder.bic.items())),
        visits=tuple(
            StateVisit(at_s, tuple(posterior.tolist()), novelty > 1, name)
            for name, row in zip(names, found.labels, strict=True)
            for at_s, posterior, novelty in row
        ),
    )


def _header(found: Meaning, tried: Sequence[Candidate], warnings: Sequence[str]) -> str:
    encoder = found.encoder
    subject = "of the whole system" if encoder.kind == "joint" else "of a server"
    head = f"{encoder.clusters} states {subject}, seen in {found.seconds:.0f} seconds"
    chosen = next((c for c in tried if c.clusters == encoder.clusters), None)
    lead = "" if chosen is None else _stable_words(chosen)
    lead += "".join(f" Warning: {warning}." for warning in warnings)
    novel = np.mean([novelty > 1 for row in found.labels for _, _, novelty in row])
    facts = [
        f"{found.windows} windows",
        f"{len(found.topology.servers)} servers",
        f"{len(encoder.names)} features",
        f"{novel:.1%} outside of every state",
        *(
            f"{name}: deadline {1e3 * seconds:.0f} ms"
            for name, seconds in zip(found.topology.request_types, found.deadlines_s, strict=True)
        ),
    ]
    return header("cluster report", head, lead.strip(), facts)


def _stable_words(chosen: Candidate) -> str:
    score = f"adjusted Rand index {chosen.stability:.2f}"
    if chosen.stability >= 0.8:
        return f"Fits with other seeds and resamples find the same states again ({score})."
    if chosen.stability >= 0.5:
        return f"Fits with other seeds and resamples find similar states ({score})."
    return f"Fits with other seeds and resamples find other states ({score}): give them no names."


def _states(page: Page, found: Meaning, summary: EncoderSummary) -> str:
    text = (
        "Share: of the windows of all servers. Response times: mean ± standard deviation of the requests answered in "
        "the state. Rank: by mean + 3σ over the deadline, mean over the request types; 1 is the fastest."
        if found.encoder.kind == "server"
        else "Share: of the windows. Response times: mean ± standard deviation of the requests answered in the state. "
        "Rank: by mean + 3σ over the deadline, mean over the request types; 1 is the fastest."
    )
    heat = f"<h3>What tells them apart</h3>{page.place(states_figure(summary))}"
    return section("The states", text, f'<div class="scroll">{_table(found)}</div>{heat}')


def _table(found: Meaning) -> str:
    types = found.topology.request_types
    columns = ["share of time", *(f"{name}, ms" for name in types), "mean + 3σ / deadline", "rank", "rank in rewards"]
    head = "".join(f"<th>{escape(name)}</th>" for name in ("state", *columns))
    rows, ranks = "", found.encoder.ranks().argsort().argsort()
    for k in range(found.encoder.clusters):
        place = found.places[k]
        cells = [f"{found.share[k]:.1%}", *(_spread(*pair) for pair in _pairs(found, k))]
        cells += [_number(found.slow[k], "×"), "–" if place is None else str(place), str(int(ranks[k]) + 1)]
        body = "".join(
            f'<td data-label="{escape(name)}"><b>{cell}</b></td>' for name, cell in zip(columns, cells, strict=True)
        )
        rows += f"<tr><th>{state_name(k)}</th>{body}</tr>"
    return f'<table class="results"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _pairs(found: Meaning, state: int) -> list[tuple[float, float]]:
    return list(zip(found.mean_ms[state].tolist(), found.deviation_ms[state].tolist(), strict=True))


def _spread(mean: float, deviation: float) -> str:
    return "–" if np.isnan(mean) else f"{mean:.1f} ± {deviation:.1f}"


def _number(value: float, unit: str) -> str:
    return "–" if np.isnan(value) else f"{value:.2f}{unit}"


def _times(page: Page, found: Meaning) -> str:
    cells = "".join(
        f"<div><h3>{escape(name)}</h3>{page.place(response_figure(found, g))}</div>"
        for g, name in enumerate(found.topology.request_types)
    )
    text = "Bars: mean; whiskers: one standard deviation; diamonds: mean + 3σ, the rank's measure."
    return section("How long requests took in them", text, f'<div class="row">{cells}</div>')


def _followers(page: Page, found: Meaning) -> str:
    cells = "".join(
        f"<div><h3>{escape(family)}</h3>{page.place(transition_figure(found, family, number))}"
        f'<p class="prose note">{int(counts.sum())} transitions</p></div>'
        for number, (family, counts) in enumerate(found.transitions.items())
    )
    text = (
        "From the state in one window to the state in the next, by the weights in force in the next one: "
        "what a server got relative to its group's mean weight, mean over the groups (within 25 % is equal)."
        if found.encoder.kind == "server"
        else "From the state in one window to the state in the next, by the server that the weights favoured."
    )
    body = f'<div class="row">{cells}</div>' if cells else '<p class="empty">No two windows followed each other.</p>'
    return section("What follows what", text, body)


def _counts(page: Page, found: Meaning, tried: Sequence[Candidate]) -> str:
    chosen = found.encoder.clusters
    cells = (
        f"<div><h3>BIC and ICL</h3>{page.place(criteria_figure(tried, chosen))}</div>"
        f"<div><h3>Stability</h3>{page.place(stability_figure(tried, chosen))}</div>"
    )
    text = (
        "BIC and ICL judge one fit; ICL also asks for clusters that are apart. Stability compares six fits with seeds "
        "and resamples of their own: 1 means the same clusters again, 0 what chance would agree on."
    )
    return section("How many", text, f'<div class="row">{cells}</div>')
