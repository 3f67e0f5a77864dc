"""A headless Chromium, driven by Playwright, for tests that look at a page as a person would."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from playwright.sync_api import ConsoleMessage, Error, Request, sync_playwright

EXECUTABLE = Path("/usr/bin/chromium")
_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


class Chromium:
    """One browser with one page; a context manager.

    Attributes:
        complaints: console errors, uncaught exceptions and requests to the network since the last `open`.
    """

    def __init__(self, timeout_s: float = 30.0) -> None:
        self.complaints: list[str] = []
        self._driver = sync_playwright().start()
        try:
            self._browser = self._driver.chromium.launch(
                executable_path=EXECUTABLE, args=list(_FLAGS), timeout=1e3 * timeout_s
            )
        except BaseException:
            self._driver.stop()
            raise
        self._page = self._browser.new_page()
        self._page.set_default_timeout(1e3 * timeout_s)
        self._page.on("console", self._hear_console)
        self._page.on("pageerror", self._hear_error)
        self._page.on("request", self._hear_request)

    def look(self, width_px: int, height_px: int, scheme: Literal["light", "dark"]) -> None:
        """Window size and preferred colour scheme from now on."""
        self._page.set_viewport_size({"width": width_px, "height": height_px})
        self._page.emulate_media(color_scheme=scheme)

    def open(self, page: Path | str, *, drawn: bool = True) -> None:
        """Loads a file or URL; `drawn` waits until the page has set `data-drawn` on its root element."""
        # The page before, which may poll its server, must not complain from here on.
        self._page.goto("about:blank")
        self.complaints.clear()
        self._page.goto(page.as_uri() if isinstance(page, Path) else page)
        if drawn:
            self._page.wait_for_selector('html[data-drawn="true"]', state="attached")

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression, awaited when it is a promise."""
        return self._page.evaluate(expression)

    def screenshot(self, path: Path) -> None:
        """Saves a PNG of the whole page."""
        self._page.screenshot(path=path, full_page=True)

    def press(self, key: str) -> None:
        """Presses and releases a key, such as `Tab` or `Enter`, where the focus is."""
        self._page.keyboard.press(key)

    def accessibility_nodes(self) -> list[dict[str, Any]]:
        """Nodes of the accessibility tree: what a screen reader finds, as the DevTools protocol describes them."""
        session = self._page.context.new_cdp_session(self._page)
        nodes: list[dict[str, Any]] = session.send("Accessibility.getFullAXTree")["nodes"]
        session.detach()
        return nodes

    def close(self) -> None:
        """Ends the browser and its driver."""
        self._browser.close()
        self._driver.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _hear_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning", "assert"):
            self.complaints.append(message.text)

    def _hear_error(self, error: Error) -> None:
        self.complaints.append(error.message)

    def _hear_request(self, request: Request) -> None:
        if not request.url.startswith(("file:", "data:")):
            self.complaints.append(f"asked the network for {request.url}")
