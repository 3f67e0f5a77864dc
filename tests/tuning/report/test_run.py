"""The run report without a browser: honest words, nothing from outside, every figure drawn or explained."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pages import page_figures
from tests.support.queue_testbed import Fixed, InverseLatency
from tests.support.report_data import evaluate, run_data
from tuning.judging.evaluation import Evaluation
from tuning.report.axes import held, log_range, log_ticks, measured, ratio_ticks, spread
from tuning.report.figures import steering_policies, tail_figure, weight_figure
from tuning.report.learning import EncoderSummary, StateVisit, TrainingPoint, timeline_figure, training_figures
from tuning.report.page import Provenance
from tuning.report.run import RunData, write_report
from tuning.report.summary import headline, subline


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluate(rounds=3, measure_s=2.0)


@pytest.fixture(scope="module")
def content(evaluation: Evaluation) -> dict[str, Any]:
    return evaluation.to_json()


@pytest.fixture(scope="module")
def page(evaluation: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("run") / "report.html"
    write_report(path, run_data(evaluation))
    return path.read_text()


class Elements(HTMLParser):
    """Counts tags, keeps attributes that point somewhere, and visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.text: list[str] = []
        self.ids: list[str] = []
        self._hidden = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden = tag if tag in ("script", "style") else self._hidden
        for name, value in attrs:
            if name in ("src", "href") and value is not None:
                self.links.append(value)
            if name == "id" and value is not None:
                self.ids.append(value)

    def handle_endtag(self, tag: str) -> None:
        self._hidden = "" if tag == self._hidden else self._hidden

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text.append(data)


def test_the_page_holds_plotly_once_and_points_nowhere(page: str) -> None:
    assert page.count("* plotly.js v") == 1
    assert Elements(page).links == ["data:,"]
    assert "default-src 'none'" in page


def test_every_figure_has_its_element_and_data(page: str) -> None:
    ids = Elements(page).ids
    drawn = page_figures(page)
    assert len(drawn) >= 18
    for figure in drawn:
        assert ids.count(figure["name"]) == 1
        assert any(len(trace.get("x", [])) > 0 for trace in figure["traces"]), figure["name"]


def test_what_is_missing_is_explained_on_the_page(content: dict[str, Any], tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", RunData(content))
    page = (tmp_path / "report.html").read_text()
    text = " ".join(Elements(page).text)
    for reason in ("Nothing was trained", "No mixture was fitted", "No windows were encoded", "was given, not chosen",
                   "command was not recorded", "configuration was not recorded"):  # fmt: skip
        assert reason in text
    assert {"training-0", "timeline", "states", "bic"}.isdisjoint(figure["name"] for figure in page_figures(page))


def test_an_evaluation_without_a_usable_block_still_makes_a_page(content: dict[str, Any], tmp_path: Path) -> None:
    spoiled = Evaluation.from_json(content)
    blocks = [{**block, "usable": False, "flags": ["saturated_client: planted"]} for block in content["blocks"]]
    spoiled = Evaluation.from_json({**content, "blocks": blocks})
    write_report(tmp_path / "report.html", RunData(spoiled.to_json()))
    text = " ".join(Elements((tmp_path / "report.html").read_text()).text)
    assert "0 of 12 blocks are behind these numbers" in text
    assert "saturated_client: planted" in text
    assert "beats" not in text


def test_names_and_commands_cannot_inject_anything(content: dict[str, Any], tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    data = RunData(
        {**content, "scenario": evil},
        training=[TrainingPoint(1, 0.5, evil), TrainingPoint(2, 0.6, evil)],
        provenance=Provenance(evil, evil, {evil: evil}),
    )
    write_report(tmp_path / "report.html", data)
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in page
    assert page_figures(page)


def test_the_words_are_those_of_the_intervals(content: dict[str, Any]) -> None:
    words = headline(content) + " " + subline(content)
    for metric, name in (("mean_ms", "mean"), ("p99_ms", "p99")):
        low, high = content["policies"]["learned"]["intervals"][metric]
        ratio = content["policies"]["learned"]["ratios"][metric]
        is_claimed = f"{name} ({ratio:.2f}×)" in headline(content)
        assert is_claimed == (high < 1 or low > 1)
    assert f"Against {content['best_heuristic']['policy']}" in words


def test_an_unlearned_evaluation_and_a_single_round_claim_nothing() -> None:
    single = evaluate(rounds=1, measure_s=1.0).to_json()
    assert "too little to tell" in headline(single)
    plain = evaluate(rounds=2, measure_s=1.0, learned=None,
                     controllers=[Fixed("least_conn", "least_conn"), InverseLatency()]).to_json()  # fmt: skip
    assert headline(plain) == "2 policies, compared side by side on S2b strong"


def test_only_policies_that_changed_their_control_are_drawn_as_steering(content: dict[str, Any]) -> None:
    assert steering_policies(content) == ["learned", "inverse_latency"]
    figure = weight_figure(content, "learned", 0)
    drawn = [trace for trace in figure.traces if trace["mode"] == "lines"]
    lines = [trace for trace in drawn if trace["line"]["dash"] != "dot"]
    assert (len(lines), len(drawn)) == (3, 6)
    true = np.array([line["y"] for line in drawn if line["line"]["dash"] == "dot"], dtype=float)
    assert np.nansum(true, axis=0)[~np.isnan(true[0])] == pytest.approx(100, abs=0.01)
    asked = np.array([[np.nan if v is None else v for v in line["y"]] for line in lines])
    assert np.nansum(asked, axis=0)[~np.isnan(asked[0])] == pytest.approx(100, abs=0.01)


def test_a_share_is_drawn_from_the_beginning_of_the_first_window_that_it_held_in(content: dict[str, Any]) -> None:
    points = measured(content, "learned")
    x, y = held(points, [float(point.round) for point in points], 0.5)
    assert x[0] == 0.0
    assert [value for at, value in zip(x, y, strict=True) if at == 2.0] == [0.0, None, 1.0]


def test_the_tail_marks_rounds_and_what_the_scenario_did(content: dict[str, Any]) -> None:
    figure = tail_figure(content)
    assert [shape["x0"] for shape in figure.layout["shapes"]] == [2.0, 4.0]
    events = next(trace for trace in figure.traces if trace["name"] == "scenario events")
    assert events["text"] == ["server-2:80 0.60 of its speed"] * 3
    assert events["x"] == [1.5, 3.5, 5.5]
    points = measured(content, "learned")
    assert [point.at_s for point in points] == pytest.approx(np.arange(0.5, 6.5, 0.5))


def test_the_timeline_joins_windows_of_a_state_and_sets_novel_ones_apart() -> None:
    visits = [StateVisit(float(t), (0.9, 0.1)) for t in range(3)] + [StateVisit(3.0, (0.2, 0.8))]
    visits += [StateVisit(4.0, (0.5, 0.5), is_novel=True), StateVisit(9.0, (0.2, 0.8))]
    figure = timeline_figure(EncoderSummary(("a",), ((0.0,), (1.0,)), (0.5, 0.5), visits=tuple(visits)))
    rows = {trace["name"]: (trace["base"], trace["x"]) for trace in figure.traces}
    assert rows == {"novel": ([4.0], [1.0]), "state 1": ([0.0], [3.0]), "state 2": ([3.0, 9.0], [1.0, 1.0])}


def test_servers_with_states_of_their_own_get_a_row_each() -> None:
    visits = [StateVisit(float(t), (0.9, 0.1), server="server 1") for t in range(3)]
    visits += [StateVisit(float(t), (0.3, 0.7), server="server 2") for t in range(3)]
    figure = timeline_figure(EncoderSummary(("a",), ((0.0,), (1.0,)), (0.5, 0.5), visits=tuple(visits)))
    assert [(trace["name"], trace["y"], trace["x"], trace["text"]) for trace in figure.traces] == [
        ("state 1", ["server 1"], [3.0], ["1"]),
        ("state 2", ["server 2"], [3.0], ["2"]),
    ]
    assert figure.layout["showlegend"]


def test_training_phases_get_axes_of_their_own() -> None:
    points = [TrainingPoint(i, float(i), "simulated") for i in range(6)] + [TrainingPoint(0, 3.0, "live")]
    figures = training_figures(points)
    assert list(figures) == ["simulated", "live"]
    dots, line = figures["simulated"].traces
    assert dots["y"] == [0, 1, 2, 3, 4, 5]
    assert line["y"][5] == pytest.approx(np.mean([1, 2, 3, 4, 5]))
    assert figures["live"].traces[0]["y"] == [3.0]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8))
def test_labels_are_spread_in_order_and_inside(values: list[float]) -> None:
    placed = spread(values, gap=10, low=0, high=100)
    order = sorted(range(len(values)), key=lambda i: values[i])
    gaps = np.diff([placed[i] for i in order])
    assert (gaps >= 10 - 1e-9).all()
    assert max(placed) <= 100


@given(st.lists(st.floats(0.01, 1e5), min_size=1, max_size=20))
def test_log_axes_hold_all_values_and_have_ticks(values: list[float]) -> None:
    limits = log_range(values)
    assert limits[0] < np.log10(min(values)) <= np.log10(max(values)) < limits[1]
    assert log_ticks(limits)["tickvals"]


def test_ratio_ticks_always_show_one() -> None:
    assert "1×" in ratio_ticks((-0.3, 0.2))["ticktext"]
    assert "1×" in ratio_ticks((-0.01, 0.01))["ticktext"]
