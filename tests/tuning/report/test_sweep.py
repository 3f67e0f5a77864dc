"""A sweep's figures, table and page: what mattered is found, and what cannot be drawn is said."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from tests.support.pages import page_figures
from tests.support.sweep_trials import PATHS, SPACE, finalists, trials
from tuning.report.page import Provenance
from tuning.report.sweep import print_best, render_sweep_page, write_sweep_report
from tuning.report.sweep_figures import (
    finalists_figure,
    history_figure,
    importance_figure,
    importances,
    mixture_figure,
    parallel_figure,
    slice_figures,
    summary_of,
    timeline_figure,
    training_figure,
)
from tuning.search.space import Range, SearchOptions

NONE = pd.DataFrame()


def test_the_setting_that_matters_is_found_with_an_interval() -> None:
    shares = importances(trials(24), PATHS)
    low, share, high = shares[PATHS[0]]
    assert share > 0.9
    assert 0.8 < low <= share <= high <= 1.0
    assert sum(middle for _, middle, _ in shares.values()) == pytest.approx(1)
    drawn = importance_figure(trials(24), PATHS).traces[0]
    assert drawn["x"][-1] + drawn["error_x"]["array"][-1] == pytest.approx(high)


def test_a_logarithmic_range_has_round_ticks_and_words_have_places() -> None:
    rate, covariance, score = parallel_figure(trials(12), SPACE).traces[0]["dimensions"]
    assert -4 <= min(rate["values"]) < max(rate["values"]) <= -2
    assert set(rate["ticktext"]) <= {"0.0001", "0.0002", "0.0005", "0.001", "0.002", "0.005", "0.01"}
    assert [round(10 ** float(tick), 9) for tick in rate["tickvals"]] == [float(text) for text in rate["ticktext"]]
    assert covariance["ticktext"] == ["diag", "full"]
    assert score["values"] == sorted(score["values"], reverse=True)


def test_cluster_counts_are_whole() -> None:
    space = {"encoder.clusters": (2, 4, 8), "training.episode_steps": Range(low=20, high=60, integer=True)}
    table = trials(6).assign(
        **{"encoder.clusters": [2, 4, 8, 8, 4, 2], "training.episode_steps": [20, 31, 42, 60, 25, 50]}
    )
    clusters, steps, _ = parallel_figure(table, space).traces[0]["dimensions"]
    assert clusters["label"] == "K"
    assert clusters["ticktext"] == ["2", "4", "8"]
    assert all(float(text).is_integer() for text in steps["ticktext"])
    k_axis = slice_figures(table, space)["K"].layout["xaxis"]
    assert k_axis["tickvals"] == [2, 4, 8]


def test_a_slice_has_the_axis_of_its_setting() -> None:
    drawn = slice_figures(trials(12), SPACE)
    rate, covariance = drawn.values()
    assert list(drawn) == ["learning rate", "covariance"]
    assert rate.layout["xaxis"]["type"] == "log"
    assert covariance.layout["xaxis"]["type"] == "category"
    assert len(rate.traces[0]["x"]) == 12


def test_listed_numbers_that_would_lie_on_each_other_have_places() -> None:
    space = {"training.algorithm.entropy_coefficient": (0.0, 0.001, 0.01)}
    table = trials(4).assign(**{"training.algorithm.entropy_coefficient": [0.01, 0.001, 0.0, 0.01]})
    entropy, _ = parallel_figure(table, space).traces[0]["dimensions"]
    assert entropy["ticktext"] == ["0", "0.001", "0.01"]
    assert entropy["values"] == [2, 1, 0, 2]
    (drawn,) = slice_figures(table, space).values()
    assert drawn.layout["xaxis"]["categoryarray"] == ["0", "0.001", "0.01"]
    assert set(drawn.traces[0]["x"]) == {"0", "0.001", "0.01"}


def test_the_history_has_the_best_so_far_in_the_order_of_time() -> None:
    points, best = history_figure(trials(12)).traces
    assert points["text"] == [f"trial-{number}" for number in range(12)]
    assert best["y"] == np.maximum.accumulate(points["y"]).tolist()


def test_the_timeline_tells_trials_apart_by_their_end() -> None:
    table = trials(6)
    table.loc[table["trial"] == "trial-0", "steps_trained"] = 50
    table.loc[table["trial"] == "trial-5", "error"] = "it broke"
    bars = {trace["name"]: trace for trace in timeline_figure(table, 100).traces}
    assert {name: len(trace["x"]) for name, trace in bars.items()} == {
        "all its steps": 4,
        "ended early": 1,
        "failed": 1,
    }
    assert bars["ended early"]["base"] == [0.0]
    assert bars["ended early"]["x"] == [pytest.approx(50 / 60)]


def test_fresh_seeds_have_a_mean_and_an_interval_and_change_the_winner() -> None:
    first, second = summary_of(finalists()).to_dict("records")
    assert (first["trial"], first["seeds"], first["mean"]) == ("trial-2", 3, pytest.approx(0.2))
    # Student's t of two degrees of freedom, 4.303, over the root of 3.
    assert first["half_interval"] == pytest.approx(4.303 * 0.02 / 3**0.5, rel=1e-3)
    assert second["searched"] == 0.3
    drawn = finalists_figure(finalists())
    assert [len(trace["x"]) for trace in drawn.traces] == [2, 6, 2]


def test_too_few_trials_are_said_in_a_sentence() -> None:
    few = trials(3)
    assert "at least 8" in importance_figure(few, PATHS).empty
    assert training_figure({}).empty == "No trial has a score."
    assert "search.finalists" in finalists_figure(NONE).empty
    empty = few.assign(score=np.nan)
    assert history_figure(empty).empty == "No trial has a score."
    assert parallel_figure(empty, SPACE).empty == "No trial has a score."
    assert {figure.empty for figure in slice_figures(empty, SPACE).values()} == {"No trial has a score."}
    assert mixture_figure(empty).empty == "No trial fitted a mixture."
    assert timeline_figure(few.assign(began_s=np.nan), 100).empty == "No trial has a result."


def test_the_page_stands_alone_and_cannot_be_broken_by_a_name() -> None:
    table = trials(12)
    table.loc[table.index[0], "error"] = "</script><b>"
    page = render_sweep_page(table, {"</script>": [(1, 0.5), (2, 0.7)]}, SearchOptions(space=SPACE), [], finalists())
    assert "http" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL).replace("http-equiv", "")
    assert "</script><b>" not in page
    assert [figure["name"] for figure in page_figures(page)] == [
        "history", "finalists", "parallel", "slice-0", "slice-1", "importance", "training", "timeline", "mixture",
    ]  # fmt: skip


def test_the_page_says_where_the_scores_come_from() -> None:
    simulated, live = (
        render_sweep_page(trials(3), {}, SearchOptions(space=SPACE, testbed=testbed), [], NONE)
        for testbed in ("simulated", "live")
    )
    assert "on the validation episodes" in simulated
    assert "simulated" not in live.partition("<h2>")[0].partition("<header>")[2]
    assert "on the same testbeds" in live


def test_the_terminals_table_shows_what_is_swept_and_what_the_score_is() -> None:
    file = io.StringIO()
    print_best(trials(12), SearchOptions(space=SPACE), [], finalists(), Console(file=file, width=100))
    said = file.getvalue()
    assert re.search(r"trial .*score .*learning rate .*covariance .*steps", said)
    assert re.search(r"trial-\d+ .* (diag|full) ", said)
    assert "score: mean over the intervals" in said
    assert "3 fresh seeds and validated on the same 8 fresh episodes, trial-2 is the best" in said
    assert "0.2 ± 0.05 (95 %, over training seeds; the best of 2 means), 0.2 in the search." in said


def test_finalists_on_live_testbeds_are_not_said_to_be_validated() -> None:
    page = render_sweep_page(trials(3), {}, SearchOptions(space=SPACE, testbed="live"), [], finalists())
    lead = page.partition('<p class="lead">')[2].partition("</p>")[0]
    assert "scored by its last training intervals, as in the search, not on fresh episodes" in lead
    assert "over training seeds; the best of 2 means" in lead
    assert "validated" not in lead


def test_a_mean_of_one_seed_is_drawn_without_an_interval() -> None:
    one_seed = finalists().drop(index=[1, 2])
    *_, known, unknown = finalists_figure(one_seed).traces
    assert (known["y"], len(known["error_x"]["array"])) == (["trial-2"], 1)
    assert (unknown["y"], unknown["customdata"]) == (["trial-1"], ["no interval, seeds: 1"])
    assert "error_x" not in unknown
    file = io.StringIO()
    print_best(trials(3), SearchOptions(space=SPACE), [], one_seed.iloc[:1], Console(file=file, width=100))
    assert "1 fresh seed and validated" in file.getvalue()
    assert "0.1 (one seed, no interval), 0.3 in the search." in file.getvalue()


def test_headline_and_bundle_are_of_the_trial_that_was_chosen(tmp_path: Path) -> None:
    table = trials(6)
    first, chosen = table["trial"].iloc[:2]
    for name in (first, chosen):
        (tmp_path / "bundles" / name).mkdir(parents=True)
        (tmp_path / "bundles" / name / "bundle.json").write_text(name)
    options = SearchOptions(space=SPACE)
    page = write_sweep_report(tmp_path, table, {}, options, [], NONE, Provenance(), chosen).read_text()
    assert (tmp_path / "best" / "bundle.json").read_text() == chosen
    assert f"best trial {chosen}<" in page
    assert f"The best trial scores {table['score'].iloc[1]:.4g}:" in page
    # A sweep that goes on and of which nothing is left has no best bundle either.
    write_sweep_report(tmp_path, table, {}, options, [], NONE, Provenance(), "")
    assert not (tmp_path / "best").exists()


def test_settings_with_the_same_last_name_are_told_apart() -> None:
    space = {"encoder.kind": ("server", "joint"), "training.decision.action.kind": ("residual", "increments")}
    table = trials(12).assign(
        **{
            "encoder.kind": ["server"] * 6 + ["joint"] * 6,
            "training.decision.action.kind": ["residual", "increments"] * 6,
        }
    )
    names = ["encoder kind", "action kind"]
    assert list(slice_figures(table, space)) == names
    dimensions = parallel_figure(table, space).traces[0]["dimensions"]
    assert [one["label"] for one in dimensions] == [*names, "score"]
    assert sorted(importance_figure(table, list(space)).traces[0]["y"]) == sorted(names)
