"""When the host of a virtual machine did not let it run: one watcher per core, before all else on it.

What is measured meanwhile is the host's doing. A bench that looks at single milliseconds leaves it out, and says how
often it did.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from types import TracebackType
from typing import Self

PERIOD_S = 0.002
STALL_S = 0.003
"""Later than due by more than this, at the highest priority, with nothing else to wait for."""
END_TIMEOUT_S = 10.0
_PRIORITY = 50


class StallWatch:
    """While it is entered, every core has a watcher; afterwards `stalled` knows.

    Attributes:
        stalls: (start, end) in seconds of `time.monotonic`, of all cores.
        watching: False where the system forbids the priority: a watcher that waits for others would see stalls
            everywhere.
    """

    def __init__(self) -> None:
        self.stalls: list[tuple[float, float]] = []
        self.watching = False
        self._watchers: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        for core in sorted(os.sched_getaffinity(0)):
            command = [sys.executable, "-m", "rayjobs.bench.parts.stalls", str(core)]
            self._watchers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        said = [watcher.stdout.readline().strip() for watcher in self._watchers if watcher.stdout]
        self.watching = all(word == "watching" for word in said)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for watcher in self._watchers:
            # A watcher ends when its standard input does, so that it never outlives us.
            said, _ = watcher.communicate(timeout=END_TIMEOUT_S)
            self.stalls += [(start_s, end_s) for start_s, end_s in json.loads(said)]

    def stalled(self, start_s: float, end_s: float) -> bool:
        """Whether any core stood still at any time between these."""
        return any(began_s < end_s and ended_s > start_s for began_s, ended_s in self.stalls)


def _watch() -> list[tuple[float, float]]:
    """Until standard input ends: the times at which this core came late."""
    stalls: list[tuple[float, float]] = []
    while True:
        due_s = time.monotonic() + PERIOD_S
        over = select.select([sys.stdin], [], [], PERIOD_S)[0]
        now_s = time.monotonic()
        if now_s - due_s > STALL_S:
            stalls.append((due_s, now_s))
        if over:
            return stalls


def _main(core: int) -> None:
    os.sched_setaffinity(0, {core})
    allowed = "refused"
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
        allowed = "watching"
    print(allowed, flush=True)
    print(json.dumps(_watch()), flush=True)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
