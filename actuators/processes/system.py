"""CPU times and memory of processes, a free port for a child process, and realtime priority for the control path."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import socket
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from actuators.errors import ProcessError

BUSY = 0.9
"""Share of a core above which a single-threaded worker counts as saturated."""
_FIRST_PORT = 20_000
"""Above the ports that Ray gives to its workers, 10002 to 19999, when they start."""
_given_ports: deque[int] = deque(maxlen=1000)


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


def release_memory() -> None:
    """Gives freed memory back to the system (malloc_trim(3)); the C library keeps it otherwise."""
    with contextlib.suppress(AttributeError):  # a C library other than GNU's
        ctypes.CDLL(None).malloc_trim(0)


def busiest_share(before: Mapping[int, float], now: Mapping[int, float], elapsed_s: float) -> float:
    """CPU share of the busiest process that is in both readings; 0 when there is none."""
    spent_s = [seconds - before[pid] for pid, seconds in now.items() if pid in before]
    return max(spent_s, default=0.0) / elapsed_s if elapsed_s > 0 else 0.0


def spent_s(before: Mapping[int, float], now: Mapping[int, float]) -> float:
    """CPU seconds between two readings, of processes that began meanwhile as well; what has ended is not counted."""
    return sum(max(seconds - before.get(pid, 0.0), 0.0) for pid, seconds in now.items())


def children(pid: int) -> list[int]:
    """Process ids of the children of a process; empty when it has gone.

    Not by psutil: it looks at every process of the machine, 6 ms of CPU time with 160 of them, and this is called at
    the end of every control interval.
    """
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def boot_id() -> str:
    """Names the present boot of this machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def process_start_s() -> float:
    """When this process began: seconds since the boot, on the clock CLOCK_BOOTTIME, to a hundredth."""
    # The second field is the program's name in brackets, which may contain spaces and brackets.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def free_port(host: str = "127.0.0.1") -> int:
    """A port that is free now, below those that the system gives to connections and to other programs that ask for any.

    It is none of the last thousand that this process was given, which may not be in use yet. Another program may take
    it before the caller does. Raises ProcessError.
    """
    end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(100):
        port = secrets.choice(range(_FIRST_PORT, end)) if end > _FIRST_PORT else 0
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    remedy = "use an address of this machine"
                    raise ProcessError(f"cannot listen on {host}: {error.strerror}", remedy=remedy) from error
                continue
            found = int(probe.getsockname()[1])
        if found not in _given_ports:
            _given_ports.append(found)
            return found
    raise ProcessError(f"no port of {host} is free", remedy="end programs that listen there")


def is_listening(address: Path | str) -> bool:
    """Whether a program accepts connections on a Unix socket, or at HOST:PORT; within a second."""
    unix = isinstance(address, Path)
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as probe:
        probe.settimeout(1.0)
        host, _, port = str(address).rpartition(":")
        return probe.connect_ex(str(address) if unix else (host, int(port))) == 0


def set_realtime_priority() -> bool:
    """Schedules all threads of this process before ordinary ones, for good; False where the system forbids it.

    For processes that work a few milliseconds per interval, on a machine that also runs the servers. Later threads
    inherit the priority: those of gRPC, which carry Ray's calls, start and end all the time. Child processes inherit it
    too, except those under a guardian: an NGINX or a load engine sets its own priority.
    """
    return _set(os.SCHED_RR, 1)


@contextlib.contextmanager
def realtime_priority() -> Iterator[None]:
    """`set_realtime_priority` for a block that waits or is short; threads and processes begun in it do not inherit it.

    Nothing changes where the process has realtime priority already.
    """
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
            continue  # it has ended since
        except PermissionError:
            return False
    return True
