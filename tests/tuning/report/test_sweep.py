"""A sweep's figures and page: what mattered is found, and what cannot be drawn is said."""

from __future__ import annotations

import re

import numpy as np

from tests.support.pages import page_figures
from tests.support.sweep_trials import PATHS, SPACE, trials
from tuning.report.sweep import (
    history_figure,
    importance_figure,
    importances,
    mixture_figure,
    parallel_figure,
    render_sweep_page,
)
from tuning.search.space import SearchOptions


def test_the_setting_that_matters_is_found() -> None:
    shares = importances(trials(24), PATHS)
    assert shares[PATHS[0]] > 0.9
    assert sum(shares.values()) == 1.0 or abs(sum(shares.values()) - 1) < 1e-9


def test_a_wide_range_has_a_logarithmic_axis_and_words_have_places() -> None:
    drawn = parallel_figure(trials(12), PATHS)
    rate, covariance, score = drawn.traces[0]["dimensions"]
    assert -4 <= min(rate["values"]) < max(rate["values"]) <= -2
    assert covariance["ticktext"] == ["diag", "full"]
    assert score["values"] == sorted(score["values"], reverse=True)


def test_too_few_trials_are_said_in_a_sentence() -> None:
    few = trials(3)
    assert "at least 8" in importance_figure(few, PATHS).empty
    assert history_figure({}).empty == "No trial has a score."
    empty = few.assign(score=np.nan)
    assert parallel_figure(empty, PATHS).empty == "No trial has a score."
    assert mixture_figure(empty).empty == "No trial fitted a mixture."


def test_the_page_stands_alone_and_cannot_be_broken_by_a_name() -> None:
    table = trials(12)
    table.loc[table.index[0], "error"] = "</script><b>"
    page = render_sweep_page(table, {"</script>": [(1, 0.5), (2, 0.7)]}, SearchOptions(space=SPACE), [])
    assert "http" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL).replace("http-equiv", "")
    assert "</script><b>" not in page
    assert [figure["name"] for figure in page_figures(page)] == ["parallel", "mixture", "importance", "history"]


def test_the_page_says_where_the_scores_come_from() -> None:
    simulated, live = (
        render_sweep_page(trials(3), {}, SearchOptions(space=SPACE, testbed=testbed), [])
        for testbed in ("simulated", "live")
    )
    assert "on the validation episodes" in simulated
    assert "simulated" not in live.partition("<h2>Trials")[0]
    assert "on the same testbeds" in live
