"""What one stand-in server counts by itself, to be compared with what NGINX and the client saw."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any


class Counters:
    """Counts since the plan began.

    Attributes:
        answered: (request type, status) → answers.
        rejected: refused for a full queue (503), also in `answered`.
        hung: requests that came during a hang.
        reset: connections that a crash reset.
        write_retries: attempts to write while another server wrote.
        store_errors: requests that the database failed (500), also in `answered`.
        service_s: sum of the emulated service times, at the speed of their arrival.
        late_s: sum of the delays between a finish time and its answer.
    """

    def __init__(self) -> None:
        self.answered: Counter[tuple[str, int]] = Counter()
        self.rejected = self.hung = self.reset = self.write_retries = self.store_errors = 0
        self.service_s = self.late_s = 0.0
        self._start_s, self._cpu_start_s = time.monotonic(), time.process_time()

    def count(self, request_type: str, status: int) -> None:
        self.answered[request_type, status] += 1

    def to_json(self) -> dict[str, Any]:
        """`requests` is request type → status → answers; the rest as above, with age and CPU seconds."""
        requests: dict[str, dict[str, int]] = {}
        for (request_type, status), count in sorted(self.answered.items()):
            requests.setdefault(request_type, {})[str(int(status))] = count
        return {
            "requests": requests,
            "rejected": self.rejected,
            "hung": self.hung,
            "reset": self.reset,
            "write_retries": self.write_retries,
            "store_errors": self.store_errors,
            "service_s": self.service_s,
            "late_s": self.late_s,
            "age_s": time.monotonic() - self._start_s,
            "cpu_s": time.process_time() - self._cpu_start_s,
        }
