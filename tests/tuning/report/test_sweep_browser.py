"""A sweep's page in a real headless Chromium: figures in both schemes, nothing asked of the network, no complaint."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from tests.support.chromium import EXECUTABLE, Chromium
from tests.support.sweep_trials import SPACE, finalists, trials
from tuning.report.sweep import render_sweep_page
from tuning.search.space import SearchOptions

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not EXECUTABLE.exists(), reason=f"{EXECUTABLE} is missing: apt-get install chromium"),
]
MARKS = {
    "history": ".scatterlayer path.point",
    "finalists": ".scatterlayer path.point",
    "parallel": "g.parcoords .y-axis",
    "slice-0": ".scatterlayer path.point",
    "slice-1": ".scatterlayer path.point",
    "mixture": ".scatterlayer path.point",
    "importance": ".barlayer .point",
    "training": ".scatterlayer .trace",
    "timeline": ".barlayer .point",
}
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_drawn_at_both_widths(tmp_path: Path, scheme: Literal["light", "dark"]) -> None:
    count = 24
    table = trials(count).assign(clusters=np.arange(count) % 3 + 2)
    histories = {str(name): [(100, 0.1), (200, 0.2)] for name in table["trial"]}
    page = tmp_path / "report.html"
    page.write_text(render_sweep_page(table, histories, SearchOptions(space=SPACE), [], finalists()))
    with Chromium() as browser:
        for width_px in (1280, 400):
            browser.look(width_px, 900, scheme)
            browser.open(page)
            counts = {name: f"document.querySelectorAll('#{name} {marks}').length" for name, marks in MARKS.items()}
            drawn = {name: browser.evaluate(script) for name, script in counts.items()}
            assert drawn == {
                "history": count, "finalists": 2 + 6 + 2, "parallel": len(SPACE) + 1, "slice-0": count,
                "slice-1": count, "mixture": count, "importance": len(SPACE), "training": count, "timeline": count,
            }  # fmt: skip
            assert browser.evaluate("document.documentElement.scrollWidth") <= width_px
            dark = browser.evaluate(BACKGROUND) == "rgb(17, 19, 23)"
            assert dark == (scheme == "dark")
            # Parallel coordinates are drawn with WebGL, which a browser without a graphics card remarks upon.
            assert [text for text in browser.complaints if "WebGL" not in text] == []
