"""Control before load: on a machine that also plays the servers, the control path must not queue behind them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


def go_first() -> bool:
    """Lets all threads of this process run before ordinary ones, for good; False where the system forbids it.

    For processes that work a few milliseconds per interval. Threads that are begun later go first, too: gRPC's,
    on which Ray's calls come and go, are begun and ended all the time. So do its children, but for those under a
    guardian: an NGINX or a load engine has a priority of its own.
    """
    return _set(os.SCHED_RR, 1)


@contextmanager
def going_first() -> Iterator[None]:
    """As `go_first` for the block, which must wait or be short, and without what it begins; nothing changes where it
    is so already."""
    ordinary = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK == os.SCHED_OTHER
    if not ordinary or not _set(os.SCHED_RR | os.SCHED_RESET_ON_FORK, 1):
        yield
        return
    try:
        yield
    finally:
        _set(os.SCHED_OTHER, 0)


def _set(policy: int, priority: int) -> bool:
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setscheduler(int(thread), policy, os.sched_param(priority))
        except ProcessLookupError:
            continue  # it ended while we looked
        except PermissionError:
            return False
    return True
