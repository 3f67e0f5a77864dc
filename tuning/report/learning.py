"""Figures of how the policy was learned: the mixture's states, the choice of K, the training curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actuators.contract.arrays import FloatArray
from envs.observation.encoder import Encoder
from tuning.report.axes import Figure, Trace

_SHOWN_FEATURES = 14


@dataclass(frozen=True)
class TrainingPoint:
    """One row of `progress.csv`: environment steps so far, mean episode return, and where it was trained."""

    step: int
    episode_return: float
    phase: str = "simulated"


@dataclass(frozen=True)
class StateVisit:
    """The state of one window, or of one server in it.

    Attributes:
        at_s: seconds since the first window.
        posterior: probability of each cluster.
        is_novel: outside of every cluster.
        server: name, when every server has a state of its own; "" for a joint mixture.
    """

    at_s: float
    posterior: tuple[float, ...]
    is_novel: bool = False
    server: str = ""


@dataclass(frozen=True)
class EncoderSummary:
    """What a person wants to know of the state encoder.

    Attributes:
        features: names of the scaled features.
        means: ``[clusters][features]`` in standard deviations from the observation phase's mean.
        shares: ``[clusters]``, mixture weights.
        bic: (number of clusters, BIC) of every candidate; less is better.
        visits: states over time, while the learned policy steered or in the observation phase.
    """

    features: tuple[str, ...]
    means: tuple[tuple[float, ...], ...]
    shares: tuple[float, ...]
    bic: tuple[tuple[int, float], ...] = ()
    visits: tuple[StateVisit, ...] = ()

    @classmethod
    def of(
        cls, encoder: Encoder, shares: FloatArray, labels: Sequence[Sequence[tuple[float, FloatArray, float]]]
    ) -> EncoderSummary:
        """The summary of a fitted encoder.

        Args:
            shares: ``[clusters]``.
            labels: per server, or once for a joint mixture: time in s, posterior and novelty of every window.
        """
        names = ["" if encoder.kind == "joint" else f"server {row + 1}" for row in range(len(labels))]
        return cls(
            features=encoder.names,
            means=tuple(tuple(row) for row in encoder.means.tolist()),
            shares=tuple(shares.tolist()),
            bic=tuple(sorted(encoder.bic.items())),
            visits=tuple(
                StateVisit(at_s, tuple(posterior.tolist()), bool(novelty > 1), name)
                for name, row in zip(names, labels, strict=True)
                for at_s, posterior, novelty in row
            ),
        )


@dataclass(frozen=True)
class _Stay:
    """Consecutive windows in one state (-1: novel); `sure` is the mean probability of that state."""

    row: str
    state: int
    start_s: float
    length_s: float
    sure: float


def timeline_figure(encoder: EncoderSummary | None) -> Figure:
    """A bar per stay in a state, pale where it was unsure; a row per server, or per state of a joint mixture."""
    if encoder is None or not encoder.visits:
        return Figure("timeline", empty="No windows were encoded in this run.")
    servers = list(dict.fromkeys(visit.server for visit in encoder.visits))
    stays = [s for server in servers for s in _stays([v for v in encoder.visits if v.server == server])]
    states = sorted({stay.state for stay in stays})
    rows = servers if servers != [""] else [_state_name(state) for state in states]
    traces = [_bars(state, [stay for stay in stays if stay.state == state]) for state in states]
    layout = {
        "barmode": "overlay", "bargap": 0.25, "hovermode": "closest", "showlegend": servers != [""],
        "uniformtext": {"mode": "hide", "minsize": 10},
        "xaxis": {"title": {"text": "seconds"}},
        "yaxis": {"categoryorder": "array", "categoryarray": rows[::-1], "showgrid": False},
    }  # fmt: skip
    return Figure("timeline", traces, layout, 110 + 40 * len(rows))


def _bars(state: int, stays: Sequence[_Stay]) -> Trace:
    colour = cluster_colour(state) if state >= 0 else "--bad"
    return {
        "type": "bar", "orientation": "h", "name": _state_name(state),
        "y": [stay.row or _state_name(state) for stay in stays], "base": [stay.start_s for stay in stays],
        "x": [stay.length_s for stay in stays],
        "customdata": [[stay.sure, stay.start_s, stay.start_s + stay.length_s] for stay in stays],
        "marker": {"color": [f"{colour}@{0.25 + 0.75 * stay.sure:.2f}" for stay in stays], "line": {"width": 0}},
        "text": [str(state + 1) if stay.row and state >= 0 else "" for stay in stays],
        "textposition": "inside", "insidetextanchor": "middle", "textangle": 0, "textfont": {"color": "--panel"},
        "hovertemplate": "%{customdata[1]:.0f} to %{customdata[2]:.0f} s, probability %{customdata[0]:.2f}",
    }  # fmt: skip


def cluster_colour(state: int) -> str:
    """The colour of a state on every page."""
    return f"--cluster-{state % 9 + 1}"


def _state_name(state: int) -> str:
    return f"state {state + 1}" if state >= 0 else "novel"


def states_figure(encoder: EncoderSummary | None) -> Figure:
    """What tells the states apart: the features whose means differ most between them."""
    if encoder is None or not encoder.means:
        return Figure("states", empty="No mixture was fitted in this run.")
    means = np.asarray(encoder.means)
    spread = means.std(axis=0)
    most = [int(i) for i in np.argsort(-spread, kind="stable")[:_SHOWN_FEATURES] if spread[i] > 0.05 * spread.max()]
    telling = sorted(most) or [0]
    limit = float(max(np.abs(means[:, telling]).max(), 1e-9))
    trace: Trace = {
        "type": "heatmap", "z": means[:, telling].tolist(), "x": [encoder.features[i] for i in telling],
        "y": [f"state {k + 1} · {share:.0%}" for k, share in enumerate(encoder.shares)],
        "colorscale": [[0, "--low"], [0.5, "--panel"], [1, "--high"]], "zmin": -limit, "zmax": limit,
        "xgap": 2, "ygap": 2, "hovertemplate": "%{y}<br>%{x}: %{z:.2f} sd<extra></extra>",
        "colorbar": {"title": {"text": "sd"}, "thickness": 8, "outlinewidth": 0, "len": 0.9},
    }  # fmt: skip
    layout = {
        "xaxis": {"tickangle": -40, "showgrid": False, "automargin": True},
        "yaxis": {"autorange": "reversed", "showgrid": False, "automargin": True},
        "hovermode": "closest",
    }
    return Figure("states", [trace], layout, 200 + 30 * len(encoder.shares))


def bic_figure(encoder: EncoderSummary | None) -> Figure:
    """BIC of every candidate number of clusters; the chosen one is marked."""
    bic = dict(sorted(encoder.bic)) if encoder is not None else {}
    chosen = len(encoder.shares) if encoder is not None else 0
    y_axis = {"title": {"text": "BIC (less is better)"}}
    return choice_figure("bic", list(bic), {"BIC": list(bic.values())}, chosen, y_axis)


def choice_figure(
    name: str, counts: Sequence[int], criteria: Mapping[str, Sequence[float]], chosen: int, y_axis: Trace
) -> Figure:
    """Criteria by number of clusters; the chosen number is marked on the first one.

    Args:
        criteria: name → value for each of `counts`.
    """
    if len(counts) < 2:
        return Figure(name, empty="The number of clusters was given, not chosen.")
    lines = (("--reference", "solid"), ("--series-1", "dash"))
    traces: list[Trace] = [
        {"x": counts, "y": values, "mode": "lines+markers", "name": criterion, "marker": {"size": 7},
         "line": {"color": colour, "width": 2, "dash": dash}, "hovertemplate": f"{criterion} %{{y:.5g}}"}
        for (criterion, values), (colour, dash) in zip(criteria.items(), lines, strict=False)
    ]  # fmt: skip
    if chosen in counts:
        value = next(iter(criteria.values()))[list(counts).index(chosen)]
        traces.append({"x": [chosen], "y": [value], "mode": "markers", "name": f"chosen: {chosen}",
                       "marker": {"size": 14, "color": "--learned", "symbol": "circle-open", "line": {"width": 3}},
                       "hoverinfo": "skip"})  # fmt: skip
    layout = {
        "xaxis": {
            "title": {"text": "clusters"}, "tickvals": list(counts), "range": [counts[0] - 0.6, counts[-1] + 0.6]
        },
        "yaxis": y_axis,
        "showlegend": True,
    }  # fmt: skip
    return Figure(name, traces, layout, 320)


def training_figures(points: Sequence[TrainingPoint]) -> dict[str, Figure]:
    """Per phase, because episodes differ: mean episode return over steps, every iteration and their running mean."""
    phases: dict[str, list[TrainingPoint]] = {}
    for point in points:
        phases.setdefault(point.phase, []).append(point)
    if not phases:
        return {"": Figure("training", empty="Nothing was trained in this run.")}
    return {phase: _training_figure(f"training-{n}", rows) for n, (phase, rows) in enumerate(phases.items())}


def _training_figure(name: str, rows: Sequence[TrainingPoint]) -> Figure:
    x, y = [row.step for row in rows], [row.episode_return for row in rows]
    smooth = [float(np.mean(y[max(0, i - 4) : i + 1])) for i in range(len(y))]
    traces: list[Trace] = [
        {"x": x, "y": y, "mode": "markers", "name": "iteration", "marker": {"size": 6, "color": "--learned@0.45"},
         "hovertemplate": "%{y:.4g}"},
        {"x": x, "y": smooth, "mode": "lines", "name": "mean of five", "line": {"color": "--learned", "width": 2.5},
         "hovertemplate": "%{y:.4g}"},
    ]  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "environment steps"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "mean episode return"}},
    }
    return Figure(name, traces, layout, 320)


def _stays(visits: Sequence[StateVisit]) -> list[_Stay]:
    """Runs in the same state without a gap, of one server."""
    gaps = np.diff([visit.at_s for visit in visits])
    step_s = float(np.median(gaps)) if len(gaps) else 1.0
    states = [-1 if visit.is_novel else int(np.argmax(visit.posterior)) for visit in visits]
    found, start = [], 0
    for i in range(1, len(visits) + 1):
        if i < len(visits) and states[i] == states[start] and visits[i].at_s - visits[i - 1].at_s < 1.5 * step_s:
            continue
        first, last = visits[start], visits[i - 1]
        sure = float(np.mean([max(visit.posterior) for visit in visits[start:i]]))
        found.append(_Stay(first.server, states[start], first.at_s, last.at_s - first.at_s + step_s, sure))
        start = i
    return found
