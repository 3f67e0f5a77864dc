"""A timer with nanosecond resolution for an event loop (timerfd_create(2)).

The timers of uvloop have whole milliseconds, which is too coarse for emulated service times.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Callable

_CLOEXEC_NONBLOCK = os.O_CLOEXEC | os.O_NONBLOCK
_ABSOLUTE = 1
_libc = ctypes.CDLL(None, use_errno=True)


class _TimerSpec(ctypes.Structure):
    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class PreciseTimer:
    """Calls `callback` once, at the time that was last `set`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop, self._callback = loop, callback
        self._fd = int(_libc.timerfd_create(time.CLOCK_MONOTONIC, _CLOEXEC_NONBLOCK))
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._spec = _TimerSpec(0, 0, 0, 0)
        self._spec_pointer = ctypes.byref(self._spec)
        self._at_s: float | None = None
        loop.add_reader(self._fd, self._fire)

    def set(self, at_s: float | None) -> None:
        """Fires at `at_s` of time.monotonic(), in place of an earlier setting; None disarms the timer."""
        if at_s == self._at_s:
            return
        self._at_s = at_s
        # A value of zero disarms; one nanosecond after boot is "at once".
        nanoseconds = max(int(at_s * 1e9), 1) if at_s is not None else 0
        self._spec.value_s, self._spec.value_ns = divmod(nanoseconds, 1_000_000_000)
        if _libc.timerfd_settime(self._fd, _ABSOLUTE, self._spec_pointer, None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _fire(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return  # set again since it became readable
        self._at_s = None
        self._callback()
