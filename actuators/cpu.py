"""CPU time of a process and its children from /proc: was NGINX itself the bottleneck?"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

BUSY = 0.9
"""Share of a core from which on a single-threaded worker is taken for saturated."""

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def family_cpu_s(pid: int, proc: Path = Path("/proc")) -> dict[int, float]:
    """Process id → CPU seconds so far, of the process and its children; empty when it has gone."""
    found = {}
    for one in (pid, *_children(pid, proc)):
        try:
            # The name in parentheses may hold spaces; user and system time are the 12th and 13th field after it.
            fields = (proc / str(one) / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found[one] = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    return found


def busiest_share(before: Mapping[int, float], now: Mapping[int, float], elapsed_s: float) -> float:
    """CPU share of the busiest process that was there at both readings, 0 when there is none."""
    spent_s = [seconds - before[pid] for pid, seconds in now.items() if pid in before]
    return max(spent_s, default=0.0) / elapsed_s if elapsed_s > 0 else 0.0


def _children(pid: int, proc: Path) -> list[int]:
    try:
        return [int(word) for word in (proc / str(pid) / "task" / str(pid) / "children").read_text().split()]
    except OSError:
        return []
