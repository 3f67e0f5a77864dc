"""How busy a run keeps the cores of this machine: CPU time of the processes of one Ray and of their driver."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from typing import Any, Self

import psutil

EVERY_S = 0.5
_ATTRIBUTES = ["ppid", "create_time", "cpu_times", "cmdline"]


def session_name() -> str:
    """Session name of the connected Ray; every process of it, or an ancestor, has this name in its command line."""
    import ray

    return str(ray.get_runtime_context().get_session_name())


class CpuUsage:
    """CPU seconds of this process and of all processes of a Ray on this machine while the block runs.

    Processes are found every 0.5 s by a word in their command line, with all their descendants; the CPU time of a
    process after the last sample before its end is not counted. `summary` also has the rest of the cores' time.

    Args:
        word: that only processes of this Ray have in their command line: its session name.
    """

    def __init__(self, word: str) -> None:
        self._word = word
        self._first: dict[tuple[int, float], float] = {}
        self._last: dict[tuple[int, float], float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="cpu-usage", daemon=True)
        self.elapsed_s = self.idle_s = self.stolen_s = 0.0
        self._phases: dict[str, dict[str, float]] = {}
        self._phase = ""

    def __enter__(self) -> Self:
        self._began_s, self._before_s = time.monotonic(), _unused_s()
        self._turned_s, self._turned_idle_s = self._began_s, self._before_s[0]
        self._look(first=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        self.phase("")
        self.elapsed_s = time.monotonic() - self._began_s
        self.idle_s, self.stolen_s = (now - before for now, before in zip(_unused_s(), self._before_s, strict=True))

    def phase(self, name: str) -> None:
        """Begins a phase: `summary` has the seconds and the idle CPU seconds of each phase."""
        if name == self._phase:
            return
        now_s, idle_s = time.monotonic(), _unused_s()[0]
        if self._phase:
            spent = self._phases.setdefault(self._phase, {"seconds": 0.0, "idle_s": 0.0})
            spent["seconds"] += now_s - self._turned_s
            spent["idle_s"] += idle_s - self._turned_idle_s
        self._phase, self._turned_s, self._turned_idle_s = name, now_s, idle_s

    @property
    def cpu_s(self) -> float:
        """CPU seconds, user and system, while the block ran."""
        return sum(used - self._first[key] for key, used in self._last.items())

    @property
    def share(self) -> float:
        """CPU seconds per second and core of this machine, 0…1."""
        return self.cpu_s / self.elapsed_s / (os.cpu_count() or 1) if self.elapsed_s > 0 else 0.0

    @property
    def share_of_free(self) -> float:
        """CPU seconds divided by CPU and idle seconds, 0…1.

        Only an upper bound beside many other programs: while they use a core, a pause of this run costs nothing.
        """
        return self.cpu_s / (self.cpu_s + self.idle_s) if self.cpu_s > 0 else 0.0

    @property
    def others_s(self) -> float:
        """CPU seconds of all other programs and of the system."""
        return max(self.elapsed_s * (os.cpu_count() or 1) - self.cpu_s - self.idle_s - self.stolen_s, 0.0)

    def summary(self) -> dict[str, Any]:
        """Values for a file of results; the four kinds of CPU seconds add up to the time of all cores."""
        return {
            "seconds": self.elapsed_s,
            "cores": os.cpu_count(),
            "cpu_s": self.cpu_s,
            "idle_s": self.idle_s,
            "others_s": self.others_s,
            "stolen_s": self.stolen_s,
            "busy_share": self.share,
            "share_of_free": self.share_of_free,
            "phases": self._phases,
        }

    def _watch(self) -> None:
        while not self._stop.wait(EVERY_S):
            self._look()

    def _look(self, *, first: bool = False) -> None:
        listed = {process.pid: process.info for process in psutil.process_iter(_ATTRIBUTES)}
        for pid in self._own(listed):
            times = listed[pid]["cpu_times"]
            used_s, key = times.user + times.system, (pid, listed[pid]["create_time"])
            # A process that began after us began with nothing.
            self._first.setdefault(key, used_s if first else 0.0)
            self._last[key] = used_s

    def _own(self, listed: Mapping[int, Mapping[str, Any]]) -> set[int]:
        """This process, those with the word, and all descendants of those."""
        marked = {pid for pid, about in listed.items() if self._word in " ".join(about["cmdline"] or ())}
        children: dict[int, list[int]] = {}
        for pid, about in listed.items():
            children.setdefault(about["ppid"], []).append(pid)
        waiting = [child for pid in marked for child in children.get(pid, [])]
        while waiting:
            pid = waiting.pop()
            if pid not in marked:
                marked.add(pid)
                waiting += children.get(pid, [])
        return marked | ({os.getpid()} & set(listed))


def _unused_s() -> tuple[float, float]:
    """Seconds of all cores since boot: idle or waiting for a disk; given to other machines by the host."""
    times = psutil.cpu_times()
    return times.idle + times.iowait, times.steal
