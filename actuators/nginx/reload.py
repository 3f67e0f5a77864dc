"""Puts changed configuration files in force by a reload: swap, signal, confirm, or roll back."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from actuators.errors import ActuationError, DeepSchedError
from actuators.processes.system import children

COMMAND_TIMEOUT_S = 20.0
"""Longest time that a short command takes, such as `nginx -t`."""


@dataclass(frozen=True)
class Change:
    """The expected old and the new content of one file."""

    old: bytes
    new: bytes


@dataclass(frozen=True)
class Reloader:
    """Reloads one running NGINX and knows when the new configuration is in force.

    Attributes:
        master_pid: process that gets SIGHUP.
        load_ms: reads `loadMsec` from the statistics over a new connection, may raise DeepSchedError; None without
            statistics. Then, and when they do not answer, new workers are the only evidence: a control must be put back
            in force where an overload or an access rule keeps the statistics from answering.
        command: reloads in place of the signal, for example through sudo; empty for the signal.
        timeout_s: seconds until the new configuration must be in force.
        drain_timeout_s: longest wait, in seconds, while an earlier generation of workers is still busy.
    """

    master_pid: int
    load_ms: Callable[[], int] | None
    command: Sequence[str] = ()
    timeout_s: float = 5.0
    drain_timeout_s: float = 31.0

    def wait_for_few_generations(self) -> None:
        """Waits until at most one old generation of workers is busy, so that at most three are alive after a reload."""
        accepting = sum(map(accepts, children(self.master_pid)))
        self._wait(
            lambda: sum(map(draining, children(self.master_pid))) <= accepting,
            "workers of two earlier configurations are still busy",
            self.drain_timeout_s,
        )

    def reload(self) -> None:
        """Returns when all workers that accept connections have the new configuration. Raises ActuationError."""
        # Workers of an NGINX that is still starting would not be seen as old ones.
        self._wait(lambda: any(map(accepts, children(self.master_pid))), "no workers yet")
        before, workers = self._loaded(), children(self.master_pid)
        self.signal()
        self._wait(lambda: not any(map(accepts, workers)), "old workers still accept connections")
        self._wait(lambda: any(map(accepts, children(self.master_pid))), "no new workers")
        if before is not None:
            self._wait(lambda: self._loaded() != before, "the statistics still show the old configuration")

    def _loaded(self) -> int | None:
        """When NGINX read its configuration, by its statistics; None without an answer: new workers are evidence."""
        try:
            return None if self.load_ms is None else self.load_ms()
        except DeepSchedError:
            return None

    def signal(self) -> None:
        """Tells NGINX to read its configuration, and returns at once. Raises ActuationError."""
        if self.command:
            run_checked(self.command, "the reload command failed")
            return
        try:
            os.kill(self.master_pid, signal.SIGHUP)
        except ProcessLookupError as error:
            raise ActuationError("NGINX is not running", where=f"pid {self.master_pid}", remedy="start it") from error
        except PermissionError as error:
            remedy = "run as root, or set reload_command to a command that sudo allows"
            raise ActuationError("may not reload NGINX", where=f"pid {self.master_pid}", remedy=remedy) from error

    def _wait(self, done: Callable[[], bool], problem: str, timeout_s: float = 0.0) -> None:
        deadline = time.monotonic() + (timeout_s or self.timeout_s)
        while not done():
            if time.monotonic() > deadline:
                raise ActuationError(f"reload not in force: {problem}", remedy="see NGINX's error log")
            select.select([], [], [], 0.002)


def put_in_force(
    changes: Mapping[Path, Change],
    reloader: Reloader,
    *,
    confirm: Callable[[], None] = lambda: None,
    patient: bool = True,
    on_step: Callable[[str], None] = lambda _: None,
) -> None:
    """Swaps the files and reloads NGINX. Every file holds its old or its new content at every moment.

    Both contents are on the disk before the first swap, so that swapping and putting back need no more room.

    Args:
        changes: path → change; the new contents must have passed `nginx -t`.
        confirm: reads back what is in force; raises DeepSchedError when it is wrong.
        patient: waits while workers of two earlier configurations are busy, which websockets may be for hours.
        on_step: called with the name of each step before it.

    Raises:
        ActuationError: the change is not in force; the old contents are on disk and in force again, but for files that
            the error names because they could not be put back.
        OSError: a file cannot be read or written, with its name; the old contents are on disk.
    """
    if patient:
        reloader.wait_for_few_generations()
    told = False
    with _prepared(changes) as swaps:
        try:
            for swap in swaps:
                on_step(f"swap {swap.path.name}")
                swap.make()
            on_step("reload")
            told = True
            reloader.reload()
            on_step("confirm")
            confirm()
        except DeepSchedError as error:
            left = _restore(swaps)
            _reload_again(reloader, error, left)
            raise ActuationError(
                f"not applied: {error.what}{left}", where=error.where, remedy=error.remedy, evidence=error.evidence
            ) from error
        except BaseException as error:
            left = _restore(swaps)
            if told:
                # Interrupted: NGINX may have read the new contents already.
                with contextlib.suppress(ActuationError):
                    reloader.signal()
            if left and isinstance(error, Exception):
                raise ActuationError(f"not applied: {error}{left}", remedy="put them back by hand") from error
            raise


@dataclass(frozen=True)
class _Swap:
    """A change of one file, made and undone by a rename: both contents are in files beside it."""

    path: Path
    change: Change
    new: Path
    old: Path

    def make(self) -> None:
        """Raises ActuationError when the content is not the expected old one, and OSError."""
        with _naming(self.path):
            if self.path.read_bytes() != self.change.old:
                what, remedy = "the file has been changed by another program", "check it and try again"
                raise ActuationError(what, where=str(self.path), remedy=remedy)
            self.new.replace(self.path)

    def undo(self) -> None:
        """Leaves the file alone when it has not the new content. Raises OSError."""
        with _naming(self.path):
            if self.path.read_bytes() == self.change.new:
                self.old.replace(self.path)


@contextlib.contextmanager
def _prepared(changes: Mapping[Path, Change]) -> Iterator[list[_Swap]]:
    """The changes with their contents on the disk, which are removed at the end. Raises OSError with a file's name."""
    with contextlib.ExitStack() as stack:

        def beside(path: Path, text: bytes) -> Path:
            with _naming(path):
                temporary = _written_beside(path, text)
            stack.callback(_discard, temporary)
            return temporary

        yield [
            _Swap(path, change, beside(path, change.new), beside(path, change.old)) for path, change in changes.items()
        ]


def _discard(temporary: Path) -> None:
    with contextlib.suppress(OSError):  # of a disk that has failed meanwhile; the next change removes it
        temporary.unlink(missing_ok=True)


def _restore(swaps: Sequence[_Swap]) -> str:
    """Puts the old contents back. Words about the files that keep the new one, to end a sentence; empty for none."""
    kept = []
    for swap in swaps:
        try:
            swap.undo()
        except OSError as error:
            kept.append(f"{swap.path} ({error.strerror})")
    return f"; these could not be put back: {', '.join(kept)}" if kept else ""


def _reload_again(reloader: Reloader, cause: DeepSchedError, left: str) -> None:
    """Puts in force what is on the disk. Raises ActuationError, with the words about files that are `left`."""
    try:
        reloader.reload()
    except DeepSchedError as error:
        back = f"{left}; the rest is back on disk" if left else "; the old configuration is back on disk"
        raise ActuationError(
            f"not applied ({cause.what}){back}, but not confirmed: {error.what}",
            remedy=cause.remedy or "check NGINX",
        ) from cause


def test_config(command: Sequence[str]) -> None:
    """Runs ``nginx -t``. Raises ActuationError with its errors."""
    run_checked(command, "nginx -t refuses the configuration")


def run_short(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs a short command to its end; bytes of its output that are not UTF-8 are replaced.

    Raises OSError when it cannot be started, and subprocess.TimeoutExpired after `COMMAND_TIMEOUT_S`.
    """
    # `nginx -t` makes log files of the configuration that are missing; NGINX's workers have to read them.
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=COMMAND_TIMEOUT_S, check=False, umask=0o022
    )


def run_checked(command: Sequence[str], problem: str) -> None:
    """Runs a short command. Raises ActuationError with the end of its stderr when it fails."""
    try:
        result = run_short(command)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ActuationError(f"{problem}: {error}", where=" ".join(command)) from error
    if result.returncode != 0:
        lines = [line for line in result.stderr.splitlines() if "[emerg]" in line] or result.stderr.splitlines()
        raise ActuationError(problem, evidence=" | ".join(lines[-3:])[:500])


def write_atomically(path: Path, text: bytes | str) -> None:
    """Replaces a file in one step; its owner, mode, ACL and extended attributes are kept, a new file is private.

    The name of the temporary file begins with a dot, so that NGINX's include patterns do not match it. Raises OSError
    with the name of the file; it is then as it was.
    """
    with _naming(path):
        temporary = _written_beside(path, text.encode() if isinstance(text, str) else text)
        try:
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Gives an OSError the name of the file in place of that of a temporary one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _written_beside(path: Path, text: bytes) -> Path:
    """A temporary file in the same folder with this content, and the rights of the file if there is one."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".deepsched")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if path.exists():
                status = path.stat()
                os.fchown(file.fileno(), status.st_uid, status.st_gid)
                os.fchmod(file.fileno(), status.st_mode & 0o7777)
                for attribute in os.listxattr(path):  # an ACL is one of them
                    os.setxattr(file.fileno(), attribute, os.getxattr(path, attribute))
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def accepts(pid: int) -> bool:
    """Whether the process is a worker that takes new connections; NGINX retitles workers that shut down."""
    return "worker process" in (title := _title(pid)) and "shutting down" not in title


def draining(pid: int) -> bool:
    """Whether the process is a worker of an earlier configuration that finishes its requests."""
    return "shutting down" in _title(pid)


def _title(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.NoSuchProcess:
        return ""
