"""What a sweep found: a table in the terminal and `report.html`. Each figure says why when it cannot be drawn."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from rich.console import Console
from rich.table import Table

from actuators.files import write_atomic
from tuning.report import sweep_figures as figures
from tuning.report.page import Provenance, render
from tuning.report.sweep_figures import short_names, summary_of
from tuning.search.space import SearchOptions

SHOWN = 8
"""Trials in the terminal's table."""
SCORE_IN_WORDS = (
    "score: mean over the intervals of −ln(latency / deadline), minus that of least_conn with equal weights; 0.05 is "
    "about 5 % less latency, higher is better"
)


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
    finalists: pd.DataFrame,
    provenance: Provenance,
    best: str,
) -> Path:
    """Writes `report.html` and `best/`; the page's path.

    Args:
        table: `tuning.search.sweep.trial_table`.
        evaluations: `tuning.search.confirm.confirm`; empty when nothing was confirmed.
        finalists: `tuning.search.finalists.finalist_table`; empty when nothing was trained again.
        best: trial whose bundle below `bundles/` is the result; "" when no trial has left one.
    """
    shutil.rmtree(folder / "best", ignore_errors=True)
    if best:
        shutil.copytree(folder / "bundles" / best, folder / "best")
    page = folder / "report.html"
    write_atomic(page, render_sweep_page(table, histories, options, evaluations, finalists, provenance, best))
    return page


def render_sweep_page(
    table: pd.DataFrame,
    histories: Mapping[str, Sequence[tuple[int, float]]],
    options: SearchOptions,
    evaluations: Sequence[dict[str, Any]],
    finalists: pd.DataFrame,
    provenance: Provenance | None = None,
    best: str = "",
) -> str:
    """The page as text. Its headline is about the trial `best`, the first one of the table when ""."""
    paths, space, steps = list(options.space), options.space, options.base.training.steps
    columns = ["trial", "score", "art_per_request", *paths, "steps_trained", "seconds", "error"]
    names, source = short_names(columns), _SCORE_SOURCES[options.testbed]
    top = table[table["trial"] == best].iloc[0] if best else table.iloc[0]
    caution = f"{source.caution}; the comparison on live testbeds is not affected."
    failed = int((table["error"] != "").sum())
    ended_early = int((table["steps_trained"] < steps).sum()) - failed
    return render(
        "sweep.html.j2",
        provenance,
        title="Sweep",
        headline=(
            f"The best trial scores {_format(top['score'])}: {source.on} its latency / deadline is "
            f"{math.exp(-top['score']):.3f} of that of least_conn {source.reference}"
        ),
        lead=" ".join([caution, *_winner(finalists, options)]),
        facts=[
            f"best trial {top['trial']}", f"{len(table)} trials", f"{options.search} search",
            f"scheduler {options.scheduler}", f"{max(ended_early, 0)} ended early", f"{failed} failed",
        ],
        live_lines=_live_lines(evaluations),
        columns=["ART per request" if name == "art_per_request" else names[name] for name in columns],
        rows=[[_format(row[name]) for name in columns] for row in table.to_dict("records")],
        score_in_words=SCORE_IN_WORDS,
        first={
            "History": figures.history_figure(table),
            "Best settings with fresh seeds": figures.finalists_figure(finalists),
            "Settings and score": figures.parallel_figure(table, space),
        },
        slices=figures.slice_figures(table, space),
        second={
            "Importance of the settings": figures.importance_figure(table, paths),
            "Score during training": figures.training_figure(histories),
            "Timeline of the trials": figures.timeline_figure(table, steps),
            "BIC against K": figures.mixture_figure(table),
        },
    )  # fmt: skip


def print_best(
    table: pd.DataFrame,
    options: SearchOptions,
    evaluations: Sequence[dict[str, Any]],
    finalists: pd.DataFrame,
    console: Console,
) -> None:
    """The best trials with what was swept, what the score is, and how those that were judged again did."""
    space = list(options.space)
    drawn = Table(title="best trials", title_justify="left", caption=SCORE_IN_WORDS, caption_justify="left")
    drawn.add_column("trial", no_wrap=True)
    for column in ("score", *short_names(space).values(), "steps"):
        drawn.add_column(column, justify="right")
    for row in table.head(SHOWN).to_dict("records"):
        settings = [_format(row[path]) for path in space]
        drawn.add_row(str(row["trial"]), _format(row["score"]), *settings, _format(row["steps_trained"]))
    console.print(drawn)
    for line in (*_winner(finalists, options), *_live_lines(evaluations)):
        console.print(line, markup=False, soft_wrap=True)


def _winner(finalists: pd.DataFrame, options: SearchOptions) -> list[str]:
    """What training again with fresh seeds said, in a sentence: where the scores are from, what the interval covers."""
    if finalists.empty:
        return []
    rows = summary_of(finalists)
    best = rows.iloc[0]
    seeds = "1 fresh seed" if best["seeds"] == 1 else f"{best['seeds']} fresh seeds"
    scored = "and scored by its last training intervals, as in the search, not on fresh episodes"
    if options.testbed == "simulated":
        scored = f"and validated on the same {options.validation_episodes} fresh episodes"
    interval = " (one seed, no interval"
    if not math.isnan(best["half_interval"]):
        interval = f" ± {best['half_interval']:.2g} (95 %, over training seeds"
    of_several = f"; the best of {len(rows)} means)" if len(rows) > 1 else ")"
    return [
        f"Trained again with {seeds} {scored}, {best['trial']} is the best: "
        f"{_format(best['mean'])}{interval}{of_several}, {_format(best['searched'])} in the search."
    ]


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
