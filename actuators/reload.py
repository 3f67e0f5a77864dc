"""Put a new text of one config file in force by a reload: test, swap, signal, confirm, or roll everything back."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from actuators.errors import ActuationError, DeepSchedError


@dataclass(frozen=True)
class Reload:
    """How to change one file of one running NGINX.

    Attributes:
        file: the config file that changes; at every moment it is the old or the new text, whole.
        test: command that tests the candidate (``nginx -t …``) before the file is touched.
        candidate: where the text is put for that test.
        master_pid: process that gets SIGHUP.
        load_ms: reads `loadMsec` from the statistics over a new connection; raises DeepSchedError.
        timeout_s: until the new configuration must be in force.
        drain_timeout_s: how long to wait while two generations of old workers are still busy.
    """

    file: Path
    test: Sequence[str]
    candidate: Path
    master_pid: int
    load_ms: Callable[[], int]
    timeout_s: float = 5.0
    drain_timeout_s: float = 31.0

    def replace(self, text: str, confirm: Callable[[], None] = lambda: None) -> None:
        """Returns when `text` is in force in every worker that accepts connections.

        `confirm` reads back what is in force and raises when it is not what was wanted.
        Raises ActuationError; the old text is then in force again and on disk.
        """
        old = self.file.read_text()
        write_atomically(self.candidate, text)
        test_config(self.test)
        self._wait_for_few_generations()
        write_atomically(self.file, text)
        try:
            self._reload()
            confirm()
        except DeepSchedError as error:
            self._roll_back(old, error)
            raise ActuationError(f"not applied: {error.what}", where=error.where, evidence=error.evidence) from error
        except BaseException:
            write_atomically(self.file, old)
            raise

    def _reload(self) -> None:
        before, workers = self.load_ms(), children(self.master_pid)
        try:
            os.kill(self.master_pid, signal.SIGHUP)
        except ProcessLookupError as error:
            raise ActuationError("NGINX is not running", where=f"pid {self.master_pid}", remedy="start it") from error
        self._wait(lambda: not any(map(accepts, workers)), "old workers still accept connections")
        self._wait(lambda: self.load_ms() != before, "the statistics still show the old configuration")

    def _wait_for_few_generations(self) -> None:
        """At most one old generation may be busy, so that no more than three are ever alive."""
        workers = children(self.master_pid)
        accepting = sum(map(accepts, workers))
        self._wait(
            lambda: sum(map(draining, children(self.master_pid))) <= accepting,
            "workers of two earlier configurations are still busy",
            self.drain_timeout_s,
        )

    def _roll_back(self, old: str, cause: DeepSchedError) -> None:
        write_atomically(self.file, old)
        try:
            self._reload()
        except DeepSchedError as error:
            raise ActuationError(
                f"not applied ({cause.what}); the old configuration is back on disk, but not confirmed: {error.what}",
                where=str(self.file),
                remedy="check NGINX",
            ) from cause

    def _wait(self, done: Callable[[], bool], problem: str, timeout_s: float = 0.0) -> None:
        deadline = time.monotonic() + (timeout_s or self.timeout_s)
        while not done():
            if time.monotonic() > deadline:
                remedy = "see NGINX's error log"
                raise ActuationError(f"reload not in force: {problem}", where=str(self.file), remedy=remedy)
            select.select([], [], [], 0.002)


def test_config(command: Sequence[str]) -> None:
    """Runs ``nginx -t``; raises ActuationError with its complaint."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ActuationError(f"nginx -t did not run: {error}", where=" ".join(command)) from error
    if result.returncode != 0:
        lines = [line for line in result.stderr.splitlines() if "[emerg]" in line] or result.stderr.splitlines()
        raise ActuationError("nginx -t refuses the configuration", evidence=" | ".join(lines[-3:])[:500])


def write_atomically(path: Path, text: str) -> None:
    """The file is the old text or the new one, never a part; owner and mode are kept."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".deepsched")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            if path.exists():
                status = path.stat()
                os.fchown(file.fileno(), status.st_uid, status.st_gid)
                os.fchmod(file.fileno(), status.st_mode & 0o7777)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def children(pid: int) -> list[int]:
    """Child processes of a master; empty when it has gone."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def accepts(pid: int) -> bool:
    """A worker that still takes new connections; NGINX retitles it when it begins to shut down."""
    return b"worker process" in (title := _title(pid)) and b"shutting down" not in title


def draining(pid: int) -> bool:
    """A worker of an earlier configuration that finishes its requests."""
    return b"shutting down" in _title(pid)


def _title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
