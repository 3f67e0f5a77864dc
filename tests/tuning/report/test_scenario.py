"""The page of a scenario shows the load and the speeds that the script holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from actuators.contract.topology import social_network
from envs.scenarios.lookup import scenario
from envs.scenarios.timeline import server_speeds
from tests.support.chromium import EXECUTABLE, Chromium
from tests.support.pages import page_figures
from tuning.report.scenario import write_scenario_page

TOPOLOGY = social_network(("server-1:80", "server-2:80", "server-3:80"))


def test_the_figures_hold_the_script(tmp_path: Path) -> None:
    chosen = scenario("S7", None)
    script = chosen.script(TOPOLOGY, 101)
    write_scenario_page(tmp_path / "s7.html", script, chosen.summary)
    page = (tmp_path / "s7.html").read_text()
    load, speed = page_figures(page)
    assert [trace["name"] for trace in speed["traces"]] == ["server 0", "server 1", "server 2"]
    for number, trace in enumerate(speed["traces"]):
        assert trace["y"] == [server_speeds(script, at_s)[number] for at_s in trace["x"]]
    assert min(speed["traces"][0]["y"]) == 0
    assert load["traces"][0]["y"] == pytest.approx([0.55] * len(load["traces"][0]["x"]))
    assert "seed 101" in page


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(not EXECUTABLE.exists(), reason=f"{EXECUTABLE} is missing: apt-get install chromium")
def test_the_page_is_drawn_on_a_phone_in_the_dark(tmp_path: Path) -> None:
    chosen = scenario("S3", None)
    write_scenario_page(tmp_path / "s3.html", chosen.script(TOPOLOGY, 101), chosen.summary)
    with Chromium() as browser:
        browser.look(390, 900, "dark")
        browser.open(tmp_path / "s3.html")
        assert browser.evaluate("document.querySelectorAll('#speed .scatterlayer .trace').length") == 3
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390
        assert browser.complaints == []
