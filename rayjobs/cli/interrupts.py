"""Ctrl-C, SIGTERM and SIGHUP as exceptions in the main thread, so that every `with` and `finally` runs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

CLEAN_UP_S = 9.0
"""How long the clean-up after a signal may take by default; guardians end what is left."""
GRACE_S = 10.0
"""How long further signals are ignored after the first: `make` passes a signal on, which must not stop the clean-up."""

_FOLLOW = "DEEPSCHED_FOLLOWS_PARENT"
_PR_SET_PDEATHSIG = 1


@dataclass
class _State:
    """Signals are of the process, and so is what they leave.

    Attributes:
        first_s: when the first signal arrived; None before.
        clean_up_s, closing_line: how long the clean-up after it may take, and what is said then; see `kept`.
        reserved_s: how much longer it may take; see `reserved`.
        terminated: it was SIGTERM or SIGHUP.
        timer: ends the process when the clean-up takes too long.
        status: exit status then.
    """

    first_s: float | None = None
    clean_up_s: float | None = None
    reserved_s: float = 0.0
    closing_line: Callable[[], str] = str
    terminated: bool = False
    timer: threading.Timer | None = None
    status: int = 0


_state = _State()


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP arrived; handled like Ctrl-C, but the exit status is 143 or 129."""


def claim_signals() -> None:
    """Handles SIGINT, SIGTERM and SIGHUP: the main thread gets KeyboardInterrupt or Terminated, once.

    SIGHUP is that of a closed terminal or a lost ssh; under `nohup` it stays ignored. `ray.init` replaces the handler
    of SIGTERM: call this again after it.
    """
    signal.signal(signal.SIGINT, _raise_once)
    signal.signal(signal.SIGTERM, _raise_once)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _raise_once)


def terminated() -> str:
    """The name of the signal, empty when it was Ctrl-C; libraries (`ray.wait`) raise a KeyboardInterrupt of their own
    in its place."""
    return signal.Signals(_state.status - 128).name if _state.terminated else ""


@contextlib.contextmanager
def kept(line: Callable[[], str], *also: type[Exception], clean_up_s: float = CLEAN_UP_S) -> Iterator[None]:
    """Says at an interruption of the block, and at the errors `also`, what it leaves: prints `line()` on stderr.

    The process exits `clean_up_s` after the signal even if its clean-up has not ended, and prints the line then, too.
    """
    before = _state.clean_up_s, _state.closing_line
    ends: tuple[type[BaseException], ...] = (KeyboardInterrupt, *also)
    _state.clean_up_s, _state.closing_line = clean_up_s, line
    try:
        yield
    except ends:
        with contextlib.suppress(OSError):  # a terminal that has gone
            print(line(), file=sys.stderr, flush=True)
        _state.closing_line = str
        raise
    finally:
        if _state.first_s is None:
            _state.clean_up_s, _state.closing_line = before


@contextlib.contextmanager
def reserved(seconds: float) -> Iterator[None]:
    """The clean-up after a signal in the block may take so much longer, as one that ends with a copy to a storage."""
    _state.reserved_s += seconds
    try:
        yield
    finally:
        _state.reserved_s -= seconds


def end_now(line: str, status: int) -> NoReturn:
    """Ends the process from any thread, without clean-up: prints `line` and what is kept; guardians end the rest."""
    try:
        os.write(2, f"{line}\n{_state.closing_line()}".rstrip("\n").encode() + b"\n")
    finally:
        os._exit(status)


def follow_parent() -> None:
    """Asks the kernel for a SIGTERM when the parent ends (prctl(2)), if the Makefile has set DEEPSCHED_FOLLOWS_PARENT.

    Not by default: a run under `nohup` outlives its shell on purpose.
    """
    if os.environ.pop(_FOLLOW, ""):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def release_signals() -> None:
    """Restores the default handlers at the end of a verb, whose clean-up has ended.

    After an interruption SIGTERM stays ignored: `make` passes it on a second time, and the default handler would kill
    the interpreter while Ray cleans up at its exit.
    """
    interrupted, _state.first_s = _state.first_s is not None, None
    if _state.timer is not None:
        _state.timer.cancel()
        _state.clean_up_s, _state.closing_line, _state.timer = None, str, None
    signal.signal(signal.SIGTERM, signal.SIG_IGN if interrupted else signal.SIG_DFL)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_IGN if interrupted else signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _raise_once(number: int, frame: FrameType | None) -> None:
    now_s = time.monotonic()
    if _state.first_s is not None and now_s - _state.first_s < GRACE_S:
        # os.write: a handler may interrupt a print, and Python's streams are not reentrant.
        os.write(2, "cleaning up…\n".encode())
        return
    _state.first_s, _state.terminated = now_s, number != signal.SIGINT
    _state.status = 128 + number
    if _state.clean_up_s is not None:
        _give_up_after(_state.clean_up_s + _state.reserved_s)
    raise Terminated() if _state.terminated else KeyboardInterrupt()


def _give_up_after(seconds: float) -> None:
    _state.timer = threading.Timer(seconds, _give_up)
    _state.timer.daemon = True
    _state.timer.start()


def _give_up() -> None:
    end_now("the clean-up took too long; guardians end what is left", _state.status)
