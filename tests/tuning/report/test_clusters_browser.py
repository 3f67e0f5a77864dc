"""The cluster report in a real headless Chromium: drawn at both widths and in both schemes, silent, inside."""

from __future__ import annotations

from pathlib import Path

import pytest

from envs.mixture.fit import candidates, window_samples
from envs.observation.encoder import EncoderOptions
from tests.support.chromium import EXECUTABLE, Chromium
from tests.support.problems import TOPOLOGY, observed
from tuning.observing.clusters import meaning
from tuning.report.clusters import write_cluster_page
from tuning.report.page import Provenance

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not EXECUTABLE.exists(), reason=f"{EXECUTABLE} is missing: apt-get install chromium"),
]

DRAWN = """
[...document.querySelectorAll('.figure')].map(f => ({
  name: f.id,
  marks: f.querySelectorAll('.scatterlayer path, .barlayer path, .heatmaplayer image').length,
  inside: f.getBoundingClientRect().right <= innerWidth + 1,
}))
"""


def test_every_figure_is_drawn_inside_the_window_in_both_schemes(tmp_path: Path) -> None:
    problem, seen = observed().problem, observed().windows
    windows = [*seen.equal, *seen.exploring]
    samples = window_samples(windows, TOPOLOGY, problem.deadlines_s, "server")
    tried = candidates(samples, EncoderOptions(clusters=(2, 3), restarts=1), 1)
    page = tmp_path / "clusters.html"
    write_cluster_page(page, meaning(windows, TOPOLOGY, problem.deadlines_s, problem.encoder), tried, Provenance())
    with Chromium() as browser:
        for width_px, scheme in ((1400, "light"), (400, "dark")):
            browser.look(width_px, 900, scheme)
            browser.open(page)
            drawn = browser.evaluate(DRAWN)
            names = {figure["name"] for figure in drawn}
            assert {"states", "timeline", "criteria", "stability", "response-0", "transitions-0"} <= names
            assert all(figure["marks"] > 0 and figure["inside"] for figure in drawn), drawn
            assert browser.evaluate("document.documentElement.scrollWidth") <= width_px
            assert browser.complaints == []
