"""Ctrl-C and SIGTERM as exceptions in the main thread, so that every `with` and `finally` gets its turn."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

GRACE_S = 10.0
"""How long a further signal is ignored after the first: cleaning up must not be cut short by `make` passing it on."""

_FOLLOW = "DEEPSCHED_FOLLOWS_PARENT"
_PR_SET_PDEATHSIG = 1
_first_s: float | None = None
_clean_up_s: float | None = None
_last_words: Callable[[], str] = str


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived; handled like Ctrl-C, but the exit code is 143."""


def claim_signals() -> None:
    """Routes SIGINT and SIGTERM here; the main thread gets KeyboardInterrupt or Terminated, once.

    `ray.init` installs a SIGTERM handler of its own: call this again after it.
    """
    signal.signal(signal.SIGINT, _raise_once)
    signal.signal(signal.SIGTERM, _raise_once)


def leave_within(clean_up_s: float, last_words: Callable[[], str] = str) -> None:
    """From now on an interrupted process is gone after that many seconds, whatever its cleaning up waits for.

    `last_words` gives the line to say then, as the interrupted code does not come to say it.
    """
    global _clean_up_s, _last_words
    _clean_up_s, _last_words = clean_up_s, last_words


def follow_parent() -> None:
    """Asks the kernel for a SIGTERM when the parent ends, if the Makefile wished it (prctl(2)).

    Not by default: a run under `nohup` outlives its shell on purpose.
    """
    if os.environ.pop(_FOLLOW, ""):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def release_signals() -> None:
    """Gives the signals back at the end of a verb.

    After an interruption SIGTERM stays ignored: `make` passes it on a second time, and while the interpreter ends
    (Ray cleans up then) it would find Python's default, death.
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
        os.write(2, "still ending what was started…\n".encode())
        return
    _first_s = now_s
    if _clean_up_s is not None:
        leave = threading.Timer(_clean_up_s, _leave, (128 + number,))
        leave.daemon = True
        leave.start()
    raise Terminated() if number == signal.SIGTERM else KeyboardInterrupt()


def _leave(code: int) -> None:
    try:
        words = _last_words()
        os.write(2, f"cleaning up took too long: leaving; guardians end what is left\n{words}\n".encode())
    finally:
        os._exit(code)
