"""How long the machine lets those wait that want a core: what a stalled or overloaded machine does to every latency.

The load engine runs ahead of everyone else and does not feel it; NGINX and the servers do.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

PERIOD_S = 0.01


class CoreWait:
    """While it is entered, a thread sleeps and notes how much later than due it gets its core back.

    Attributes:
        mean_ms: mean of what it has seen so far, 0 before the first time.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="core-wait", daemon=True)
        self._late_s, self._times = 0.0, 0

    @property
    def mean_ms(self) -> float:
        return 1e3 * self._late_s / max(self._times, 1)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            due_s = time.monotonic() + PERIOD_S
            if self._stop.wait(PERIOD_S):
                return
            self._late_s += time.monotonic() - due_s
            self._times += 1
