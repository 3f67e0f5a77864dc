"""The live page in a real Chromium, in front of a controller that steers a live testbed."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from actuators.nginx.config import NginxOptions
from actuators.testbed.options import LiveOptions
from rayjobs.serve.__main__ import serving
from rayjobs.serve.options import ServeOptions, make_settings
from rayjobs.steer.site import Site, embedded_site
from tests.support.chromium import EXECUTABLE, Chromium
from tests.support.paths import DATA
from tests.support.served import TOKENS, role_files
from tests.support.steer_site import Uneven, controller_process, decisions
from tests.support.steering_cases import recorded, trained_bundle
from tests.support.waiting import wait_until
from tuning.steering.audit import append_line, read_lines
from tuning.steering.options import GUARDS

pytestmark = [pytest.mark.browser, pytest.mark.nginx, pytest.mark.skipif(not EXECUTABLE.exists(), reason="no Chromium")]


@dataclass
class Page:
    browser: Chromium
    url: str
    token: str
    site: Site
    folder: Path

    def enter(self, token: str) -> None:
        self.browser.evaluate(f"document.getElementById('token').value = {token!r}")

    def text(self, selector: str) -> str:
        return str(self.browser.evaluate(f"document.querySelector({selector!r})?.textContent ?? ''"))

    def api(self) -> dict[str, Any]:
        value: dict[str, Any] = requests.get(f"{self.url}/v1/live", timeout=5).json()
        return value

    def open(self) -> None:
        self.browser.open(self.url)
        self.until(lambda: self.browser.evaluate("document.querySelectorAll('tr[data-server]').length") == 9)

    def until(self, met: Callable[[], bool]) -> None:
        wait_until(met, lambda: f"{self.text('main')[:600]} {self.browser.complaints}")

    def version(self) -> int:
        """Number of the decision that the page shows."""
        return int(self.browser.evaluate("document.body.dataset.version"))

    def complaints(self) -> list[str]:
        return [c for c in self.browser.complaints if not c.startswith(f"asked the network for {self.url}")]


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with tempfile.TemporaryDirectory(prefix="ds-") as name:
        folder = Path(name)
        trained_bundle().save(folder / "bundle")
        options = ServeOptions.model_validate(
            {"bundle": folder / "bundle", "port": 0, "front": "uvicorn", "folder": folder / "state",
             "steer_folder": folder}
        )  # fmt: skip
        settings = make_settings(options)
        live = LiveOptions(nginx=NginxOptions(method="round_robin", admission=True))
        admission = (
            "--admission-calibration", str(DATA / "runs" / "calibration.json"),
            "--set", "admission.guards.proving_windows=100000",
        )  # fmt: skip
        with (
            embedded_site(live, Uneven(), folder / "testbed", 1, 600.0) as site,
            controller_process(folder, site, *admission),
            serving(options, settings) as address,
            Chromium() as browser,
        ):
            url = f"http://{address}"
            wait_until(lambda: bool(requests.get(f"{url}/v1/live", timeout=5).json()["alive"]), "no controller")
            yield Page(browser, url, settings.rules.tokens.admin, site, folder)


def test_its_numbers_are_the_apis(page: Page) -> None:
    page.browser.look(1280, 900, "light")
    page.open()
    # Page and API are two readings: they are compared when both show the same decision.
    shown: dict[str, Any] = {}
    api: dict[str, Any] = {}

    def both_show_the_same_decision() -> bool:
        shown.update(page.browser.evaluate(
            """({version: document.body.dataset.version, rows: [...document.querySelectorAll('tr[data-server]')]
              .map(row => [...row.cells].map(cell => cell.textContent))})"""
        ))  # fmt: skip
        api.update(page.api())
        return int(shown["version"]) == api["version"]

    page.until(both_show_the_same_decision)
    servers = [server for group in api["groups"] for server in group["servers"]]
    for row, server in zip(shown["rows"], servers, strict=True):
        assert row[0].startswith(server["name"])
        shares = [float(text.removesuffix(" %")) for text in row[1:4]]
        wanted = [100 * server[name] for name in ("share", "policy_share", "baseline_share")]
        assert shares == pytest.approx(wanted, abs=0.051)
        assert float(row[4]) == pytest.approx(server["rate_rps"], abs=0.51)
        assert float(row[5]) == pytest.approx(server["p50_ms"], abs=0.051)
        assert float(row[6]) == pytest.approx(server["p99_ms"], abs=0.051)
        assert float(row[7].removesuffix(" %")) == pytest.approx(100 * server["late_share"], abs=0.051)
    rows: list[list[str]] = []

    def all_groups_enter() -> bool:
        # A busy machine may have an interval without a request of a group.
        rows[:] = page.browser.evaluate(
            "[...document.querySelectorAll('#admission-groups tr')].map(row => [...row.cells].map(e => e.textContent))"
        )
        return all(float(row[1]) > 0 for row in rows)

    page.until(all_groups_enter)
    assert [row[0] for row in rows] == [group["name"] for group in page.api()["admission"]["groups"]]
    assert all(row[2] == "0.00 %" for row in rows), rows
    assert page.text("#admission-rule") == "aimd_thresh, 0 %"
    assert "only counts until 100000 windows" in page.text("#admission-reason")
    assert page.text("#source") in ("policy", "baseline", "hold")
    assert page.complaints() == []


HELD = {
    "holds": True, "reason": "requests wait for a slot", "state": "holding", "order": "response_ratio",
    "slots": [4, 4, 4],
    "since_start": {"asked": 2000, "would": 0, "held": 175, "refused": 50, "hopeless": 0, "gone": 3, "answered": 1950,
                    "late": 125},
}  # fmt: skip


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a page about a controller that has ended, under which requests were held."""
    tmp_path = tmp_path_factory.mktemp("held")
    recorded(tmp_path / "first.jsonl", 25)
    header, *lines = read_lines(tmp_path / "first.jsonl")
    log, now = tmp_path / "audit.jsonl", time.time()
    append_line(log, {**header, "time": now})
    for index, line in enumerate(lines):
        line["window"]["holding"]["state"] = "holding"
        more = {"in_force": line["weights"], "holding": HELD, "latency_ms": {"total": 3.0}}
        append_line(log, {**line, **more, "time": now - len(lines) + index})
    trained_bundle().save(tmp_path / "bundle")
    options = ServeOptions.model_validate(
        {"bundle": tmp_path / "bundle", "port": 0, "front": "uvicorn", "folder": tmp_path / "state",
         "steer_folder": tmp_path}
    )  # fmt: skip
    with serving(options, make_settings(options)) as address:
        yield f"http://{address}"


@pytest.mark.parametrize(("width_px", "scheme"), [(1280, "light"), (390, "dark")])
def test_it_tells_what_is_held_and_which_times_contain_the_hold(
    page: Page, held: str, width_px: int, scheme: str, tmp_path: Path
) -> None:
    browser = page.browser
    browser.look(width_px, 844, scheme)
    browser.open(held)
    wait_until(lambda: browser.evaluate("document.querySelectorAll('polyline').length") >= 9)
    first = "[...document.querySelectorAll('#holding-groups tr')[0].cells].map(cell => cell.textContent)"
    assert browser.evaluate(first) == [
        "compose_backend", "80.0", "0.00 %", "8.75 %", "0.5", "1.0", "2.50 %", "6.41 %", "0",
    ]  # fmt: skip
    assert page.text("#holding-state") == "holding"
    assert "slots 4, 4, 4" in page.text("#holding-reason")
    assert "2000 requests, 175 held" in page.text("#holding-sum")
    assert "from arrival, hold included; servers: without it" in page.text("#group-compose_backend caption")
    captions = browser.evaluate("[...document.querySelectorAll('figcaption')].map(e => e.textContent)")
    assert sum("Time from arrival, hold included, ms" in text for text in captions) == 1
    assert browser.evaluate("document.documentElement.scrollWidth") <= width_px
    cells = "[...document.querySelectorAll('#holding th, #holding td')]"
    cut = f"{cells}.filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent)"
    assert browser.evaluate(cut) == []
    target = Path(os.environ.get("DEEPSCHED_PICTURES", tmp_path)) / f"held-{width_px}-{scheme}.png"
    browser.screenshot(target)
    assert [each for each in browser.complaints if not each.startswith(f"asked the network for {held}")] == []


@pytest.mark.parametrize(
    ("width_px", "scheme"),
    [
        (1440, "light"),
        (390, "dark"),
        pytest.param(1440, "dark", marks=pytest.mark.slow),
        pytest.param(390, "light", marks=pytest.mark.slow),
    ],
)
def test_it_fits_every_screen_and_scheme(page: Page, width_px: int, scheme: str, tmp_path: Path) -> None:
    page.browser.look(width_px, 844, scheme)
    page.open()
    assert page.browser.evaluate("document.documentElement.scrollWidth") <= width_px
    dark = page.browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 22, 28)"
    assert dark == (scheme == "dark")
    page.until(lambda: page.browser.evaluate("document.querySelectorAll('polyline').length") >= 9)
    # Every chart says what it shows, in which unit and over which time, and has axes with numbers.
    captions = page.browser.evaluate("[...document.querySelectorAll('figcaption')].map(e => e.textContent)")
    assert len(captions) == 9
    assert all(re.search(r", (%|ms), last \d+ min$", caption) for caption in captions), captions
    assert page.browser.evaluate(
        "[...document.querySelectorAll('.chart')].every(c => c.querySelectorAll('text').length > 3)"
    )
    assert page.browser.evaluate(
        "[...document.querySelectorAll('.chart text')].every(text => { const box = text.getBBox();"
        " return box.x >= 0 && box.x + box.width <= text.ownerSVGElement.viewBox.baseVal.width; })"
    )
    assert "The bundle holds no evaluation" in page.text("#gain")
    target = Path(os.environ.get("DEEPSCHED_PICTURES", tmp_path)) / f"live-{width_px}-{scheme}.png"
    page.browser.screenshot(target)
    assert target.stat().st_size > 10_000
    assert page.complaints() == []


def test_it_can_be_used_without_a_mouse_and_read_aloud(page: Page) -> None:
    page.browser.look(1280, 900, "light")
    page.open()
    unnamed = page.browser.evaluate(
        """[...document.querySelectorAll('button, input, a')].filter(e =>
           !(e.textContent.trim() || e.labels?.length || e.getAttribute('aria-label'))).length"""
    )
    assert unnamed == 0
    assert page.browser.evaluate("document.documentElement.lang") == "en"
    assert page.browser.evaluate("[...document.querySelectorAll('svg[role=img] title')].every(t => t.textContent)")
    reached = []
    for _ in range(14):
        page.browser.press("Tab")
        reached.append(page.browser.evaluate(
            "(e => e.getAttribute('aria-label') || e.id || e.textContent)(document.activeElement)"))  # fmt: skip
    assert reached == [
        "token", "Shadow", "Canary", "Active", "percent", "Pause", "Resume", "Revert", "Servers of compose",
        "Servers of home_read", "Servers of user_read", "Admission per group",
        "Changes and alarms, newest first", "API",
    ]  # fmt: skip


@pytest.mark.parametrize("width_px", [1280, 390])
def test_a_screen_reader_finds_tables_and_what_stays_is_not_written_anew(page: Page, width_px: int) -> None:
    page.browser.look(width_px, 900, "light")
    page.open()
    nodes = page.browser.accessibility_nodes()
    spoken = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    roles = Counter(role for role, _ in spoken)
    assert (roles["table"], roles["rowheader"], roles["row"]) == (4, 12, 16)
    assert roles["columnheader"] >= 28
    assert (roles["alert"], roles["banner"], roles["main"], roles["contentinfo"]) == (1, 1, 1, 1)
    must = ("button", "textbox", "spinbutton", "link", "image", "table")
    assert [role for role, name in spoken if role in must and not name] == []
    names = [name.lower() for role, name in spoken if role == "heading"]
    assert names[1:] == ["now", "mode and orders", "traffic and shares", "admission", "what the policy is worth",
                         "state of each server", "changes and alarms, 15 minutes", "guards",
                         "what the words mean"]  # fmt: skip
    assert page.browser.evaluate("[...document.querySelectorAll('#guards li')].length") == len(GUARDS)
    page.browser.evaluate(
        "window.kept = [...document.querySelectorAll('tr, #guards li, #states li, #facts dd, #gain dd')]"
    )
    version = page.version()
    page.until(lambda: page.version() != version)
    assert page.browser.evaluate("kept.every(element => element.isConnected)")


def test_orders_need_the_token_and_show_within_seconds(page: Page) -> None:
    page.browser.look(1280, 900, "light")
    page.open()
    page.browser.evaluate("document.querySelector('[data-override=paused]').click()")
    page.until(lambda: "token" in page.text("#answer"))
    page.enter(page.token)
    page.browser.evaluate("document.querySelector('[data-override=paused]').click()")
    page.until(lambda: "paused by the operator" in page.text("#reason"))
    assert page.browser.evaluate("document.querySelector('[data-override=paused]').ariaPressed") == "true"
    page.browser.evaluate("document.querySelector('[data-override=\"\"]').click()")
    page.until(lambda: "paused" not in page.text("#reason"))
    page.browser.evaluate("document.getElementById('percent').value = '25'")
    page.browser.evaluate("document.querySelector('[data-mode=canary]').focus()")
    page.browser.press("Enter")
    page.until(lambda: "canary 25 %" in page.text("#facts"))
    page.browser.evaluate("document.querySelector('[data-mode=active]').click()")
    page.until(lambda: "canary" not in page.text("#facts"))


@contextmanager
def with_tokens(page: Page, folder: Path) -> Iterator[str]:
    """HOST:PORT of a server in front of the same controller that asks for the tokens of `TOKENS`."""
    options = ServeOptions(
        bundle=page.folder / "bundle", port=0, front="uvicorn", folder=folder / "state", steer_folder=page.folder,
        **role_files(folder, "order", "read"),
    )  # fmt: skip
    with serving(options, make_settings(options)) as address:
        yield address


def test_a_token_for_reading_shows_everything_and_orders_nothing(page: Page, tmp_path: Path) -> None:
    with with_tokens(page, tmp_path) as address:
        page.browser.open(f"http://{address}", drawn=False)
        page.until(lambda: page.text("#link") == "enter the token")
        page.enter(TOKENS["read"])
        page.until(lambda: page.browser.evaluate("document.querySelectorAll('tr[data-server]').length") == 9)
        page.browser.evaluate("document.querySelector('[data-override=paused]').click()")
        page.until(lambda: "it needs that of --order-token-file" in page.text("#answer"))
        page.enter(TOKENS["order"])
        page.browser.evaluate("document.querySelector('[data-override=\"\"]').click()")
        page.until(lambda: "order written" in page.text("#answer"))


def test_decisions_of_long_ago_are_no_lost_server(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "steer"
    folder.mkdir(0o700)
    recorded(folder / "audit.jsonl", 5)
    options = ServeOptions(
        bundle=page.folder / "bundle", port=0, front="uvicorn", folder=tmp_path / "state", steer_folder=folder
    )
    with serving(options, make_settings(options)) as address:
        page.browser.open(f"http://{address}")
        page.until(lambda: page.text("#link") == "the controller is silent")
        monkeypatch.setattr("rayjobs.serve.live.HISTORY_S", 0.0)
        wait_until(lambda: "groups" not in requests.get(f"http://{address}/v1/live", timeout=5).json())
        page.browser.evaluate("document.querySelector('#link').textContent = ''")
        page.until(lambda: page.text("#link") != "")
        assert page.text("#link") == "the controller is silent"
        assert page.browser.evaluate("document.body.classList.contains('silent')")


def test_the_interface_page_asks_for_the_token(page: Page, tmp_path: Path) -> None:
    with with_tokens(page, tmp_path) as address:
        page.browser.open(f"http://{address}/docs", drawn=False)
        page.until(lambda: "enter the token" in page.text("#operations"))
        page.browser.evaluate(
            f"document.querySelector('#token').value = '{TOKENS['read']}';"
            "document.querySelector('#entry button').click()"
        )
        page.until(lambda: "/v1/weights" in page.text("#operations"))


def _fails(line: dict[str, Any], name: str) -> bool:
    """Whether a server has errors, no requests, or is down, in the window of an audit line."""
    window = line["window"]
    s = window["servers"].index(name)
    return any(
        window["down"][g][s] or window["errors"][g][s] or not window["requests"][g][s]
        for g in range(len(window["groups"]))
        if line["in_force"][g][s] > 0
    )


def test_a_killed_server_shows_with_the_decision_that_has_its_errors(page: Page) -> None:
    page.browser.look(1280, 900, "light")
    page.open()
    page.browser.complaints.clear()
    name = page.site.topology.servers[-1]
    marked = (
        f"[...document.querySelectorAll('tr[data-server=\"{name}\"]')].some(r => r.className === 'silent'"
        " || r.cells[8].textContent !== '0')"
    )
    # The number of every decision that the page draws from now on, and whether the server is marked there.
    page.browser.evaluate(
        f"window.drawn = []; new MutationObserver(() => drawn.push([+document.body.dataset.version, {marked}]))"
        ".observe(document.body, {attributeFilter: ['data-version']})"
    )
    page.site.servers[-1].close()
    page.until(lambda: page.browser.evaluate("drawn.some(([, marked]) => marked)"))
    drawn = page.browser.evaluate("drawn")
    lines = decisions(page.folder)
    assert [marks for _, marks in drawn] == [_fails(lines[version - 1], name) for version, _ in drawn]
    assert page.complaints() == []
