"""Figures of a sweep, as Optuna's dashboard has them: a setting's axis is that of its domain. No page here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance

from actuators.contract.arrays import FloatArray
from tuning.report.axes import Figure, Trace, log_range, log_ticks
from tuning.search.space import Domain, Range

MIN_TRIALS = 8
"""Scored trials from which the importance of settings is estimated."""
RESAMPLES = 20
"""Of the trials, for the interval of an importance."""
_PARALLEL_AXIS_PX = 132
_CLOSE = 0.12
"""Listed numbers that are nearer than this share of their range would have ticks on each other."""
_SCORE_COLOURS = {"colorscale": [[0, "--high"], [1, "--learned"]], "showscale": True,
                  "colorbar": {"title": {"text": "score"}, "thickness": 8, "outlinewidth": 0}}  # fmt: skip
_STATES = {"all its steps": "--learned", "ended early": "--muted", "failed": "--bad"}
NO_SCORE = "No trial has a score."


def history_figure(table: pd.DataFrame) -> Figure:
    """The score of every trial in the order in which they began, and the best so far."""
    done = _in_order(_scored(table))
    if done.empty:
        return Figure("history", empty=NO_SCORE)
    numbers, scores = done["number"].tolist(), done["score"].tolist()
    best = np.maximum.accumulate(scores).tolist()
    traces: list[Trace] = [
        {"type": "scatter", "mode": "markers", "name": "trial", "x": numbers, "y": scores,
         "text": done["trial"].tolist(), "marker": {"size": 8, "color": "--learned@0.55"},
         "hovertemplate": "%{text}: %{y:.4g}<extra></extra>"},
        {"type": "scatter", "mode": "lines", "name": "best so far", "x": numbers, "y": best,
         "line": {"color": "--series-1", "width": 2, "shape": "hv"},
         "hovertemplate": "best so far %{y:.4g}<extra></extra>"},
    ]  # fmt: skip
    axes = {
        "xaxis": {"title": {"text": "trial, in the order of their beginning"}, "tickformat": "d"},
        "yaxis": {"title": {"text": "score"}},
    }
    return Figure("history", traces, {**axes, "hovermode": "closest", "showlegend": True}, 340)


def training_figure(histories: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Score over trained steps, a line per trial; a trial that ended early has a short line."""
    if not histories:
        return Figure("training", empty=NO_SCORE)
    traces = [
        {"type": "scatter", "mode": "lines+markers", "name": trial, "x": [step for step, _ in rows],
         "y": [score for _, score in rows], "line": {"width": 1.6}, "marker": {"size": 4}}
        for trial, rows in histories.items()
    ]  # fmt: skip
    axes = {"xaxis": {"title": {"text": "environment steps"}}, "yaxis": {"title": {"text": "score"}}}
    return Figure("training", traces, {**axes, "hovermode": "closest"}, 340)


def parallel_figure(table: pd.DataFrame, space: Mapping[str, Domain]) -> Figure:
    """Every trial as a line through its settings to its score."""
    done = _scored(table)
    if done.empty:
        return Figure("parallel", empty=NO_SCORE)
    scores = done["score"].tolist()
    names = short_names(list(space))
    dimensions = [{"label": names[path], **_dimension(done[path], domain)} for path, domain in space.items()]
    dimensions.append({"label": "score", "values": scores})
    trace = {"type": "parcoords", "line": {"color": scores, **_SCORE_COLOURS}, "dimensions": dimensions}
    layout = {"margin": {"l": 60, "r": 20, "t": 60, "b": 30}}
    return Figure("parallel", [trace], layout, 420, min_width_px=_PARALLEL_AXIS_PX * (len(dimensions) + 1))


def slice_figures(table: pd.DataFrame, space: Mapping[str, Domain]) -> dict[str, Figure]:
    """Score by each setting alone, by its name; later trials have a stronger colour."""
    done = _in_order(_scored(table))
    names = short_names(list(space))
    return {
        names[path]: _slice_figure(f"slice-{number}", done, path, domain)
        for number, (path, domain) in enumerate(space.items())
    }


def _slice_figure(name: str, done: pd.DataFrame, path: str, domain: Domain) -> Figure:
    if done.empty:
        return Figure(name, empty=NO_SCORE)
    values = done[path].map(_words) if _has_places(done[path], domain) else done[path]
    trace: Trace = {
        "type": "scatter", "mode": "markers", "x": values.tolist(), "y": done["score"].tolist(),
        "text": done["trial"].tolist(), "hovertemplate": "%{text}: %{x}, score %{y:.4g}<extra></extra>",
        "marker": {"size": 8, "color": done["number"].tolist(), "colorscale": [[0, "--learned@0.25"], [1, "--learned"]],
                   "line": {"width": 0.5, "color": "--panel"}},
    }  # fmt: skip
    axes = {"xaxis": _slice_axis(values, domain), "yaxis": {"title": {"text": "score"}}}
    return Figure(name, [trace], {**axes, "hovermode": "closest"}, 260)


def _slice_axis(values: pd.Series, domain: Domain) -> dict[str, Any]:
    if not _is_numeric(values):
        return {
            "type": "category",
            "categoryorder": "array",
            "categoryarray": [_words(one) for one in _options(domain)],
        }
    numbers = values.astype(float)
    if _is_logarithmic(domain):
        return log_ticks(log_range(numbers.tolist()))
    ticks = _ticks(numbers, domain)
    return {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]} if ticks else {}


def importance_figure(table: pd.DataFrame, paths: Sequence[str]) -> Figure:
    """How much worse a random forest predicts the score when a setting is shuffled, as a share of the whole."""
    shares = importances(table, paths)
    if not shares:
        return Figure("importance", empty=f"Needs at least {MIN_TRIALS} scored trials that differ.")
    ordered = sorted(shares.items(), key=lambda item: item[1][1])
    names = short_names(paths)
    middles = [share for _, (_, share, _) in ordered]
    trace = {
        "type": "bar", "orientation": "h", "x": middles, "y": [names[path] for path, _ in ordered],
        "marker": {"color": "--learned"}, "hovertemplate": "%{x:.0%}, %{customdata}<extra></extra>",
        "customdata": [f"90 % interval {low:.0%} to {high:.0%}" for _, (low, _, high) in ordered],
        "error_x": {"type": "data", "symmetric": False, "color": "--ink", "thickness": 1.4, "width": 4,
                    "array": [high - share for _, (_, share, high) in ordered],
                    "arrayminus": [share - low for _, (low, share, _) in ordered]},
    }  # fmt: skip
    axis = {"title": {"text": "share of the importance"}, "tickformat": ".0%", "rangemode": "tozero"}
    layout = {"xaxis": axis, "yaxis": {"showgrid": False}, "hovermode": "closest"}
    return Figure("importance", [trace], layout, 110 + 40 * len(ordered))


def importances(table: pd.DataFrame, paths: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """Path → share of the importance with its 90 % interval: (low, share, high), 0…1; empty when trials cannot tell.

    The shares are means over resamples of the trials, all together 1; low and high are the 5th and 95th percentile.
    """
    done = _scored(table)
    if len(done) < MIN_TRIALS or done["score"].std() == 0:
        return {}
    inputs = np.column_stack([_numbers(done[path]) for path in paths])
    scores, generator = done["score"].to_numpy(), np.random.default_rng(0)
    found = []
    for _ in range(RESAMPLES):
        rows = generator.integers(len(scores), size=len(scores))
        shares = _shares(inputs[rows], scores[rows])
        if shares is not None:
            found.append(shares)
    if not found:
        return {}
    means = np.mean(found, axis=0)
    low, high = np.percentile(found, [5, 95], axis=0)
    # With a skewed distribution the mean can lie outside of the percentiles.
    low, high = np.minimum(low, means), np.maximum(high, means)
    return {path: (float(low[i]), float(means[i]), float(high[i])) for i, path in enumerate(paths)}


def _shares(inputs: FloatArray, scores: FloatArray) -> FloatArray | None:
    forest = RandomForestRegressor(n_estimators=60, min_samples_leaf=2, random_state=0).fit(inputs, scores)
    found = permutation_importance(forest, inputs, scores, n_repeats=5, random_state=0)
    means: FloatArray = np.maximum(found.importances_mean, 0.0)
    return means / means.sum() if means.sum() > 0 else None


def timeline_figure(table: pd.DataFrame, steps: int) -> Figure:
    """A bar per trial from its first to its last result, in the order of their beginning.

    Args:
        steps: of a trial that was not ended early.
    """
    done = _in_order(table[table["began_s"].notna()])
    if done.empty:
        return Figure("timeline", empty="No trial has a result.")
    first_s = done["began_s"].min()
    failed, early = done["error"] != "", done["steps_trained"] < steps
    state = np.where(failed, "failed", np.where(early, "ended early", "all its steps"))
    traces: list[Trace] = [
        {"type": "bar", "orientation": "h", "name": name, "y": part["number"].tolist(), "width": 0.7,
         "base": ((part["began_s"] - first_s) / 60).tolist(),
         "x": ((part["ended_s"] - part["began_s"]).clip(lower=0.5) / 60).tolist(),
         "customdata": part["trial"].tolist(), "marker": {"color": colour, "line": {"width": 0}},
         "hovertemplate": "%{customdata}: %{x:.1f} min<extra></extra>"}
        for name, colour in _STATES.items()
        if not (part := done[state == name]).empty
    ]  # fmt: skip
    layout = {
        "barmode": "overlay", "hovermode": "closest", "showlegend": True,
        "xaxis": {"title": {"text": "minutes"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "trial"}, "autorange": "reversed", "showgrid": False, "tickformat": "d"},
    }  # fmt: skip
    return Figure("timeline", traces, layout, min(140 + 14 * len(done), 700))


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
    x_axis = {"title": {"text": "clusters K"}, "tickvals": sorted({int(k) for k in done["clusters"]})}
    layout = {"xaxis": x_axis, "yaxis": {"title": {"text": "BIC (less is better)"}}, "hovermode": "closest"}
    return Figure("mixture", [trace], layout, 340)


def finalists_figure(finalists: pd.DataFrame) -> Figure:
    """Scores of the best settings with fresh seeds: every training, means with their interval, the search's score."""
    if finalists.empty:
        return Figure("finalists", empty="Set search.finalists to train the best settings again with fresh seeds.")
    rows = summary_of(finalists)
    names = rows["trial"].tolist()
    known = rows["half_interval"].notna()
    traces: list[Trace] = [
        {"type": "scatter", "mode": "markers", "name": "score in the search", "x": rows["searched"].tolist(),
         "y": names, "marker": {"symbol": "circle-open", "size": 10, "color": "--muted", "line": {"width": 2}},
         "hovertemplate": "in the search %{x:.4g}<extra></extra>"},
        {"type": "scatter", "mode": "markers", "name": "a training with a fresh seed",
         "x": finalists["score"].tolist(), "y": finalists["trial"].tolist(),
         "marker": {"size": 6, "color": "--learned@0.45"}, "hovertemplate": "%{x:.4g}<extra></extra>"},
    ]  # fmt: skip
    if known.any():
        traces.append(_means("mean and 95 % interval over training seeds", rows[known]))
    if not known.all():
        # Plotly draws a null in a list of errors as one of width 0.
        traces.append(_means("mean without an interval", rows[~known]))
    layout = {
        "xaxis": {"title": {"text": "score"}}, "hovermode": "closest", "showlegend": True,
        "yaxis": {"type": "category", "categoryorder": "array", "categoryarray": names[::-1], "showgrid": False},
    }  # fmt: skip
    return Figure("finalists", traces, layout, 140 + 44 * len(rows))


def _means(name: str, rows: pd.DataFrame) -> Trace:
    """Means of settings, all with an interval or all without one."""
    half = rows["half_interval"].tolist()
    trace: Trace = {
        "type": "scatter", "mode": "markers", "name": name, "x": rows["mean"].tolist(), "y": rows["trial"].tolist(),
        "marker": {"symbol": "diamond", "size": 10, "color": "--learned"},
        "customdata": [
            f"no interval, seeds: {seeds}" if math.isnan(one) else f"± {one:.2g} (95 %) over {seeds} training seeds"
            for one, seeds in zip(half, rows["seeds"], strict=True)
        ],
        "hovertemplate": "mean %{x:.4g}, %{customdata}<extra></extra>",
    }  # fmt: skip
    if rows["half_interval"].notna().all():
        trace["error_x"] = {"type": "data", "array": half, "color": "--learned", "thickness": 2, "width": 6}
    return trace


def summary_of(finalists: pd.DataFrame) -> pd.DataFrame:
    """A row per setting, best mean first: trial, searched, mean, half_interval (95 %, Student's t), seeds."""
    rows = []
    for trial, part in finalists.groupby("trial", sort=False):
        scores = part["score"].dropna().to_numpy()
        half = math.nan
        if len(scores) > 1:
            half = float(stats.t.ppf(0.975, len(scores) - 1) * scores.std(ddof=1) / math.sqrt(len(scores)))
        rows.append(
            {"trial": trial, "searched": part["searched"].iloc[0], "seeds": len(scores),
             "mean": float(scores.mean()) if len(scores) else math.nan, "half_interval": half}
        )  # fmt: skip
    return pd.DataFrame(rows).sort_values("mean", ascending=False, na_position="last").reset_index(drop=True)


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Option path → its last part as words, K for the number of clusters; more parts where the last is not unique."""
    return {path: "K" if path == "encoder.clusters" else _short(path, paths) for path in paths}


def _short(path: str, paths: Sequence[str]) -> str:
    parts = path.split(".")
    endings = (parts[-count:] for count in range(1, len(parts)))
    unique = (tail for tail in endings if sum(other.split(".")[-len(tail) :] == tail for other in paths) == 1)
    return " ".join(next(unique, parts)).replace("_", " ")


def _scored(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["score"].notna()]


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """In the order of their beginning, with their number, from 0."""
    ordered = table.sort_values("began_s", kind="stable", na_position="last").reset_index(drop=True)
    return ordered.assign(number=np.arange(len(ordered)))


def _dimension(column: pd.Series, domain: Domain) -> dict[str, Any]:
    """Values and ticks of an axis of parallel coordinates, which knows linear axes only."""
    if _has_places(column, domain):
        names = list(dict.fromkeys(_words(one) for one in (*_options(domain), *column)))
        return {
            "values": [names.index(_words(value)) for value in column],
            "range": [0, max(len(names) - 1, 1)],
            "tickvals": list(range(len(names))),
            "ticktext": names,
        }
    values = column.astype(float)
    if _is_logarithmic(domain):
        axis = log_ticks(log_range(values.tolist()))
        ticks = np.log10(axis["tickvals"]).tolist()
        return {
            "values": np.log10(values).tolist(), "range": axis["range"], "tickvals": ticks,
            "ticktext": axis["ticktext"],
        }  # fmt: skip
    ticks = _ticks(values, domain)
    spanned = {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]} if ticks else {}
    return {"values": values.tolist(), **spanned}


def _ticks(values: pd.Series, domain: Domain) -> list[float]:
    """Where an axis has its ticks: the listed values, or whole numbers of a whole range; [] leaves it to the plot."""
    if not isinstance(domain, Range):
        return sorted({float(one) for one in _options(domain)})
    if not domain.integer:
        return []
    low, high = math.floor(values.min()), math.ceil(values.max())
    step = max(math.ceil((high - low) / 8), 1)
    return [float(tick) for tick in range(low, high + 1, step)]


def _has_places(column: pd.Series, domain: Domain) -> bool:
    """Whether values have places in the order of the list: words, and numbers that would lie on each other."""
    if not _is_numeric(column):
        return True
    numbers = sorted({float(one) for one in _options(domain)})
    if len(numbers) < 3 or _is_logarithmic(domain):
        return False
    return float(np.diff(numbers).min()) < _CLOSE * (numbers[-1] - numbers[0])


def _words(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def _options(domain: Domain) -> Sequence[Any]:
    return () if isinstance(domain, Range) else domain


def _is_logarithmic(domain: Domain) -> bool:
    """A range that is drawn so, or listed positive numbers over a factor of 10."""
    if isinstance(domain, Range):
        return domain.log
    numbers = [one for one in domain if isinstance(one, int | float) and not isinstance(one, bool)]
    return len(numbers) == len(domain) > 0 and min(numbers) > 0 and max(numbers) / min(numbers) >= 10


def _numbers(column: pd.Series) -> FloatArray:
    if _is_numeric(column):
        return np.asarray(column, dtype=float)
    codes, _ = pd.factorize(column.astype(str), sort=True)
    return np.asarray(codes, dtype=float)


def _is_numeric(column: pd.Series) -> bool:
    return all(isinstance(value, int | float | np.number) and not isinstance(value, bool) for value in column)
