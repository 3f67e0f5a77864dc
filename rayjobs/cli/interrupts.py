"""Ctrl-C and SIGTERM as exceptions in the main thread, so that every `with` and `finally` runs."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

GRACE_S = 10.0
"""How long further signals are ignored after the first: `make` passes a signal on, which must not stop the clean-up."""

_FOLLOW = "DEEPSCHED_FOLLOWS_PARENT"
_PR_SET_PDEATHSIG = 1
_first_s: float | None = None
_clean_up_s: float | None = None
_closing_line: Callable[[], str] = str


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived; handled like Ctrl-C, but the exit status is 143."""


def claim_signals() -> None:
    """Handles SIGINT and SIGTERM: the main thread gets KeyboardInterrupt or Terminated, once.

    `ray.init` replaces the handler of SIGTERM: call this again after it.
    """
    signal.signal(signal.SIGINT, _raise_once)
    signal.signal(signal.SIGTERM, _raise_once)


def exit_within(clean_up_s: float, closing_line: Callable[[], str] = str) -> None:
    """From now on, an interrupted process exits after that many seconds even if its clean-up has not ended.

    `closing_line` returns the line to print then, which the interrupted code cannot print any more.
    """
    global _clean_up_s, _closing_line
    _clean_up_s, _closing_line = clean_up_s, closing_line


def follow_parent() -> None:
    """Asks the kernel for a SIGTERM when the parent ends (prctl(2)), if the Makefile has set DEEPSCHED_FOLLOWS_PARENT.

    Not by default: a run under `nohup` outlives its shell on purpose.
    """
    if os.environ.pop(_FOLLOW, ""):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def release_signals() -> None:
    """Restores the default handlers at the end of a verb.

    After an interruption SIGTERM stays ignored: `make` passes it on a second time, and the default handler would kill
    the interpreter while Ray cleans up at its exit.
    """
    global _first_s
    interrupted, _first_s = _first_s is not None, None
    signal.signal(signal.SIGTERM, signal.SIG_IGN if interrupted else signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _raise_once(number: int, frame: FrameType | None) -> None:
    global _first_s  # noqa: PLW0603 - signal handlers are per process, so is their memory
    now_s = time.monotonic()
    if _first_s is not None and now_s - _first_s < GRACE_S:
        # os.write: a handler may interrupt a print, and Python's streams are not reentrant.
        os.write(2, "cleaning up…\n".encode())
        return
    _first_s = now_s
    if _clean_up_s is not None:
        timer = threading.Timer(_clean_up_s, _exit, (128 + number,))
        timer.daemon = True
        timer.start()
    raise Terminated() if number == signal.SIGTERM else KeyboardInterrupt()


def _exit(status: int) -> None:
    try:
        os.write(2, f"the clean-up took too long; guardians end what is left\n{_closing_line()}\n".encode())
    finally:
        os._exit(status)
