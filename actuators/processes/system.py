"""CPU time of a process and its children from /proc: was NGINX itself the bottleneck?

A port for a program that we start ourselves.

Control before load: on a machine that also plays the servers, the control path must not queue behind them.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from actuators.errors import ProcessError

BUSY = 0.9
"""Share of a core from which on a single-threaded worker is taken for saturated."""


def family_cpu_s(pid: int) -> dict[int, float]:
    """Process id → CPU seconds so far, user and system, of the process and its children; empty when it has gone."""
    used_s = {}
    for member in (pid, *children(pid)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = psutil.Process(member).cpu_times()
            used_s[member] = times.user + times.system
    return used_s


def resident_mb(pid: int | None = None) -> float:
    """Resident memory of a process in MiB, of this one by default; 0 when it has gone."""
    try:
        return float(psutil.Process(pid).memory_info().rss) / 2**20
    except psutil.NoSuchProcess:
        return 0.0


def busiest_share(before: Mapping[int, float], now: Mapping[int, float], elapsed_s: float) -> float:
    """CPU share of the busiest process that was there at both readings, 0 when there is none."""
    spent_s = [seconds - before[pid] for pid, seconds in now.items() if pid in before]
    return max(spent_s, default=0.0) / elapsed_s if elapsed_s > 0 else 0.0


def children(pid: int) -> list[int]:
    """Process ids of the children of a process; empty when it has gone.

    Not by psutil: it looks at every process of the machine, 6 ms of CPU time with 160 of them, and this is called at
    the end of every control interval.
    """
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def free_port(host: str = "127.0.0.1") -> int:
    """A port that was free a moment ago; another program may take it first. Raises ProcessError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.bind((host, 0))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise ProcessError(
            f"cannot listen on {host}: {error.strerror}", remedy="use an address of this machine"
        ) from error


def set_realtime_priority() -> bool:
    """Lets all threads of this process run before ordinary ones, for good; False where the system forbids it.

    For processes that work a few milliseconds per interval. Threads that are begun later go first, too: gRPC's,
    on which Ray's calls come and go, are begun and ended all the time. So do its children, but for those under a
    guardian: an NGINX or a load engine has a priority of its own.
    """
    return _set(os.SCHED_RR, 1)


@contextlib.contextmanager
def realtime_priority() -> Iterator[None]:
    """As `set_realtime_priority` for the block, which must wait or be short, and without what it begins; nothing changes where it
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
