"""A child process group that ends with its owner, even when the owner is killed: start, readiness, log, end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from actuators.closing import Closing
from actuators.errors import ProcessError
from actuators.files import open_private

_GUARDIAN = Path(__file__).with_name("guardian.py")


class ManagedProcess(Closing):
    """A command under a guardian (`actuators.processes.guardian`); a context manager.

    Args:
        command: argument vector.
        name: of the process in errors.
        log_path: file that receives stderr (and stdout unless `pipe_stdout`); its tail is in every error.
        pipe_stdout: makes the command's stdout available as `stdout`, a binary stream.
        env: the whole environment; the owner's when None.
        stop_signal: first signal of `close`; SIGKILL follows after `grace_s` seconds.
        death_signal: what the kernel sends to the command if the guardian itself is killed.
        remove: folder that the guardian removes at the end, also when the owner was killed.

    Raises:
        ProcessError: the command could not be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str,
        log_path: Path,
        pipe_stdout: bool = False,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        death_signal: signal.Signals = signal.SIGKILL,
        grace_s: float = 3.0,
        remove: Path | None = None,
    ) -> None:
        self.name, self.log_path, self._grace_s = name, log_path, grace_s
        lifeline_read, self._lifeline = os.pipe()
        self._status_fd, status_write = os.pipe()
        guardian = [
            sys.executable, "-I", "-S", str(_GUARDIAN),
            f"--lifeline-fd={lifeline_read}", f"--status-fd={status_write}",
            f"--stop-signal={int(stop_signal)}", f"--death-signal={int(death_signal)}", f"--grace-s={grace_s}",
            f"--remove={'' if remove is None else remove.absolute()}",
        ]  # fmt: skip
        try:
            with open(log_path, "ab", opener=open_private) as log:
                self._guardian = subprocess.Popen(
                    [*guardian, "--", *map(str, command)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE if pipe_stdout else log,
                    stderr=log,
                    cwd=cwd,
                    env=env,
                    pass_fds=(lifeline_read, status_write),
                )
        except OSError as error:
            os.close(self._lifeline)
            os.close(self._status_fd)
            self._lifeline = -1  # __del__ must not close a number that by then belongs to another file
            raise ProcessError(f"{name} did not start: {error}", where=str(log_path)) from error
        finally:
            os.close(lifeline_read)
            os.close(status_write)
        self.pid = self._read_pid()

    @property
    def stdout(self) -> IO[bytes]:
        """The command's stdout; only with `pipe_stdout`."""
        if self._guardian.stdout is None:
            raise ProcessError(f"{self.name} was started without a stdout pipe")
        return self._guardian.stdout

    def poll(self) -> int | None:
        """Exit code (128 + N after signal N), None while it runs."""
        return self._guardian.poll()

    def wait(self, timeout_s: float) -> int:
        """Exit code; raises ProcessError when it still runs after `timeout_s`."""
        try:
            return self._guardian.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise self._error(f"still runs after {timeout_s:g} s") from error

    def wait_ready(self, ready: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Polls `ready` until True. Raises ProcessError with the log tail on exit or after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            if self.poll() is not None:
                raise self._error(f"ended with code {self.poll()} before it was ready")
            if time.monotonic() > deadline:
                raise self._error(f"was not ready after {timeout_s:g} s")
            select.select([], [], [], 0.01)

    def send_signal(self, number: signal.Signals) -> None:
        """Signals the command, not its guardian; no effect when it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def log_tail(self, lines: int = 5) -> str:
        """Last lines of the log, joined by ' | '."""
        try:
            text = self.log_path.read_bytes()[-8192:].decode(errors="replace")
        except FileNotFoundError:
            return ""
        return " | ".join(line.strip() for line in text.splitlines()[-lines:] if line.strip())

    def close(self) -> None:
        """Ends the command and everything it started; idempotent."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        try:
            self._guardian.wait(self._grace_s + 5.0)
        except subprocess.TimeoutExpired:
            self._guardian.kill()
            self._guardian.wait()
        if self._guardian.stdout is not None:
            self._guardian.stdout.close()
        if self._status_fd >= 0:
            os.close(self._status_fd)
            self._status_fd = -1

    def __del__(self) -> None:
        if getattr(self, "_lifeline", -1) >= 0:
            self.close()

    def _read_pid(self) -> int:
        with os.fdopen(os.dup(self._status_fd), "rb") as status:
            words = status.readline().decode(errors="replace").split(maxsplit=1)
        if len(words) == 2 and words[0] == "pid":
            return int(words[1])
        reason = words[1].strip() if len(words) == 2 else "the guardian died"
        self.close()
        raise self._error(f"did not start: {reason}")

    def _error(self, what: str) -> ProcessError:
        return ProcessError(f"{self.name} {what}", where=str(self.log_path), evidence=self.log_tail())
