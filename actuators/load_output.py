"""Reads what a running load engine writes, in a thread, so that neither side ever waits for the other."""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from typing import IO, Any

from actuators.load_summary import LoadSummary


class EngineOutput:
    """The JSON lines of one run of the engine, sorted by kind as they come.

    Attributes:
        begin: the ``start`` line, None until it came.
        summary: what the ``summary`` line says, None until it came.
        ended: the engine has closed its output.
    """

    def __init__(self, stdout: IO[bytes]) -> None:
        self.begin: dict[str, Any] | None = None
        self.summary: LoadSummary | None = None
        self.ended = False
        self._windows: deque[LoadSummary] = deque()
        self._news = threading.Condition()
        # A descriptor of our own: the process may close its stream while we read.
        descriptor = os.dup(stdout.fileno())
        threading.Thread(target=self._read, args=(descriptor,), name="load-engine-output", daemon=True).start()

    def take_windows(self) -> list[LoadSummary]:
        """Windows that came since the last call, in order; never waits."""
        with self._news:
            windows = list(self._windows)
            self._windows.clear()
        return windows

    def wait_begin(self, timeout_s: float) -> bool:
        """True once the engine has begun or ended; False after `timeout_s` seconds."""
        with self._news:
            return self._news.wait_for(lambda: self.begin is not None or self.ended, timeout_s)

    def wait_end(self, timeout_s: float) -> bool:
        """True once the engine has ended; False after `timeout_s` seconds."""
        with self._news:
            return self._news.wait_for(lambda: self.ended, timeout_s)

    def _read(self, descriptor: int) -> None:
        try:
            with os.fdopen(descriptor, "rb") as stream:
                for line in stream:
                    self._sort(line)
        finally:
            with self._news:
                self.ended = True
                self._news.notify_all()

    def _sort(self, line: bytes) -> None:
        if not line.endswith(b"\n"):
            return  # torn: the engine was killed while it wrote
        # Parsed as it comes, not when it is asked for: at an interval's end every millisecond counts.
        content = json.loads(line)
        summary = None if content["kind"] == "start" else LoadSummary.from_json(content)
        with self._news:
            if summary is None:
                self.begin = content
            elif content["kind"] == "window":
                self._windows.append(summary)
            else:
                self.summary = summary
            self._news.notify_all()
