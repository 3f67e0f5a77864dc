"""A headless Chromium over the DevTools protocol, for tests that look at a page as a person would."""

from __future__ import annotations

import base64
import itertools
import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests
from websockets.sync.client import connect

from actuators.processes.process import ManagedProcess

EXECUTABLE = Path("/usr/bin/chromium")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


class Chromium:
    """One browser with one page; a context manager.

    Attributes:
        complaints: console errors, uncaught exceptions and failed requests since the last `open`.
    """

    def __init__(self, folder: Path, timeout_s: float = 30.0) -> None:
        profile, self._timeout_s = folder / "profile", timeout_s
        self.complaints: list[str] = []
        self._process = ManagedProcess(
            [str(EXECUTABLE), *_FLAGS, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"],
            name="chromium",
            log_path=folder / "chromium.log",
        )
        port_file = profile / "DevToolsActivePort"
        try:
            self._process.wait_ready(lambda: port_file.exists() and "\n" in port_file.read_text(), timeout_s)
            port = port_file.read_text().split()[0]
            targets = requests.get(f"http://127.0.0.1:{port}/json/list", timeout=timeout_s).json()
            page = next(target for target in targets if target["type"] == "page")
            self._socket = connect(page["webSocketDebuggerUrl"], max_size=2**27, open_timeout=timeout_s)
        except BaseException:
            self._process.close()
            raise
        self._numbers = itertools.count(1)
        self._events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and returns its result; events that arrive meanwhile are kept."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = self._receive()
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message.get('error')}"
                result: dict[str, Any] = message["result"]
                return result

    def look(self, width_px: int, height_px: int, scheme: str) -> None:
        """Window size and preferred colour scheme (``light`` or ``dark``) from now on."""
        self.send("Emulation.setDeviceMetricsOverride", width=width_px, height=height_px, deviceScaleFactor=1,
                  mobile=width_px < 600)  # fmt: skip
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, path: Path) -> None:
        """Loads a file and waits until the page says that it has drawn."""
        self.complaints.clear()
        self.send("Page.navigate", url=path.as_uri())
        deadline = time.monotonic() + self._timeout_s
        while self.evaluate("document.documentElement?.dataset.drawn") != "true":
            assert time.monotonic() < deadline, f"{path} did not draw: {self.complaints}"

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression, awaited when it is a promise."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Saves a PNG of the whole page or of the window."""
        picture = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole,
                            **({"clip": self._extent()} if whole else {}))  # fmt: skip
        path.write_bytes(base64.b64decode(picture["data"]))

    def close(self) -> None:
        self._socket.close()
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _extent(self) -> dict[str, float]:
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}

    def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._socket.recv(timeout=self._timeout_s))
        method, event = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(event["exceptionDetails"]["exception"].get("description", "exception"))
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(a.get("value", a.get("description"))) for a in event["args"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.complaints.append(event["entry"]["text"])
        elif method == "Network.requestWillBeSent" and not event["request"]["url"].startswith(("file:", "data:")):
            self.complaints.append(f"asked the network for {event['request']['url']}")
        return message
