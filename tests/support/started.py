"""A verb as a user starts it: a process of its own, its output in a file, and all processes that belong to it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.support.orphans import processes_with
from tests.support.waiting import PATIENCE_S

GONE_S = 10.0


class Started:
    """`python -m rayjobs.MODULE ARGUMENTS…`; `out` is the folder that its run folders and `output.txt` are in."""

    def __init__(self, out: Path, module: str, *arguments: str) -> None:
        self.out, self.marker = out, uuid.uuid4().hex
        self.log = out / "output.txt"
        out.mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"rayjobs.{module}", *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "DEEPSCHED_TEST_STARTED": self.marker},
            )

    def wait_until(self, text: str, timeout_s: float = PATIENCE_S) -> None:
        """Until its output has the text."""
        self.wait_for(lambda: text in self.log.read_text(), f"no '{text}'", timeout_s)

    def wait_for(self, met: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
        """Until the condition holds; fails when the verb ends before, or nothing but a hang explains the time."""
        deadline = time.monotonic() + timeout_s
        while not met():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"{what} after {timeout_s} s: {self.log.read_text()}"
            time.sleep(0.1)

    def children(self, word: str) -> list[int]:
        """Processes below it, at any depth, whose command line has the word, guardians only when it is theirs."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                command = " ".join(child.cmdline())
                if word in command and ("guardian.py" in word or "guardian.py" not in command):
                    found.append(child.pid)
        return found

    def left(self) -> dict[int, str]:
        """Its processes, GONE_S after its end at most. NGINX hides its environment, not its folder."""
        deadline = time.monotonic() + GONE_S
        while True:
            found = processes_with(self.marker) | processes_with(f"{self.out}/")
            found.pop(self.process.pid, None)
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.1)

    @property
    def folder(self) -> Path:
        """Its only run folder."""
        (folder,) = (path for path in self.out.iterdir() if path.is_dir())
        return folder
