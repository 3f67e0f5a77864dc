"""The report in a real headless Chromium: at both widths and in both schemes, drawn, silent and inside the window."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from tests.support.chromium import EXECUTABLE, Chromium
from tests.support.report_data import evaluate, run_data
from tests.support.waiting import wait_until
from tuning.report.run import RunData, write_report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not EXECUTABLE.exists(), reason=f"{EXECUTABLE} is missing: apt-get install chromium"),
]

# Marks that plotly.js has drawn, by kind of trace, inside one figure.
DRAWN = """
[...document.querySelectorAll('.figure')].filter(f => f.offsetParent).map(f => ({
  name: f.id,
  marks: f.querySelectorAll('.scatterlayer path, .barlayer path, .heatmaplayer image').length,
  inside: f.getBoundingClientRect().right <= innerWidth + 1,
}))
"""
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
LINE = "document.querySelector('#tail .scatterlayer .trace path').style.stroke"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "report.html"
    write_report(path, run_data(evaluate(rounds=3, measure_s=2.0)))
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium() as browser:
        yield browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width_px", [1400, 400])
def test_every_figure_is_drawn_inside_the_window_and_the_console_is_silent(
    browser: Chromium, report: Path, width_px: int, scheme: Literal["light", "dark"]
) -> None:
    browser.look(width_px, 900, scheme)
    browser.open(report)
    drawn = browser.evaluate(DRAWN)
    assert {"latency-all", "ratio-all", "tail", "weights-learned-0", "timeline", "states", "bic", "training-0"} <= {
        figure["name"] for figure in drawn
    }
    assert all(figure["marks"] > 0 and figure["inside"] for figure in drawn), drawn
    assert browser.evaluate("document.documentElement.scrollWidth") <= width_px
    assert browser.complaints == []


def test_tabs_draw_the_figures_that_they_show(browser: Chromium, report: Path) -> None:
    browser.look(1400, 900, "light")
    browser.open(report)
    tabs = browser.evaluate("document.querySelectorAll('[role=tab]').length")
    assert tabs == 6
    for number in range(tabs):
        browser.evaluate(f"document.querySelectorAll('[role=tab]')[{number}].click()")
        assert all(figure["marks"] > 0 for figure in browser.evaluate(DRAWN))
    assert browser.complaints == []


@pytest.mark.slow
def test_the_figures_follow_a_change_of_the_colour_scheme(browser: Chromium, report: Path) -> None:
    browser.look(1400, 900, "light")
    browser.open(report)
    background, line = browser.evaluate(BACKGROUND), browser.evaluate(LINE)
    browser.look(1400, 900, "dark")
    wait_until(lambda: browser.evaluate(LINE) != line, "the lines kept their colour")
    assert browser.evaluate(BACKGROUND) != background


@pytest.mark.slow
def test_a_run_without_learning_says_so_and_draws_the_rest(browser: Chromium, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", RunData(evaluate(rounds=1, measure_s=1.0).to_json()))
    browser.look(400, 900, "light")
    browser.open(tmp_path / "report.html")
    assert browser.evaluate("document.querySelectorAll('.empty').length") >= 5
    assert all(figure["marks"] > 0 for figure in browser.evaluate(DRAWN))
    assert browser.complaints == []


def test_the_driver_hears_what_goes_wrong(browser: Chromium, tmp_path: Path) -> None:
    """Without this, silence would prove nothing."""
    page = tmp_path / "broken.html"
    page.write_text(
        "<!doctype html><html data-drawn=true><script>console.error('heard')</script><script>nothing()</script>"
    )
    browser.open(page)
    browser.evaluate("new Promise(done => setTimeout(done, 50))")
    assert any("heard" in complaint for complaint in browser.complaints)
    assert any("nothing is not defined" in complaint for complaint in browser.complaints)


@pytest.mark.slow
def test_every_scenario_of_a_run_is_drawn_under_its_own_tab(browser: Chromium, tmp_path: Path) -> None:
    first = evaluate(rounds=2, measure_s=1.0).to_json()
    write_report(tmp_path / "report.html", RunData(first, others=[{**first, "scenario": "the other"}]))
    browser.look(400, 900, "light")
    browser.open(tmp_path / "report.html")
    assert "All scenarios" in browser.evaluate("document.body.innerText")
    assert {figure["name"].split("-")[1] for figure in browser.evaluate(DRAWN) if "part" in figure["name"]} == {"0"}
    browser.evaluate("[...document.querySelectorAll('[role=tab]')].find(t => t.innerText == 'the other').click()")
    drawn = [figure for figure in browser.evaluate(DRAWN) if "part" in figure["name"]]
    assert {"part-1-latency-all", "part-1-tail", "part-1-weights-learned-0"} <= {figure["name"] for figure in drawn}
    assert all(figure["marks"] > 0 and figure["inside"] for figure in drawn), drawn
    assert browser.evaluate("document.documentElement.scrollWidth") <= 400
    assert browser.complaints == []
