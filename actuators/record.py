"""Record snapshots at an even pace, through restarts and outages of NGINX, until told to stop."""

from __future__ import annotations

import time
from collections.abc import Callable

from actuators.collect import StatusReader
from actuators.errors import StatusError
from actuators.snapshots import SnapshotWriter

_LONGEST_BACKOFF_S = 5.0


def record(
    reader: StatusReader,
    writer: SnapshotWriter,
    interval_s: float,
    pause: Callable[[float], bool],
    note: Callable[[str], None] = lambda _: None,
) -> None:
    """Writes a snapshot every `interval_s` seconds until `pause` says so, one more at the end.

    Args:
        pause: waits that many seconds, or less; True when the recording is to end.
        note: told once when NGINX becomes unreachable and once when it is back.

    Raises DataError when the file cannot be written. An unreadable NGINX is noted as a gap and tried
    again, less and less often, up to every 5 s.
    """
    silent, due_s = 0, time.monotonic()
    last = False
    while True:
        try:
            writer.write(reader.snapshot())
            if silent:
                note(f"NGINX answers again after {silent} attempts")
            silent = 0
        except StatusError as error:
            writer.write_gap(str(error), time.time())
            silent += 1
            if silent == 1:
                note(f"a gap: {error}")
        if last:
            return
        now_s = time.monotonic()
        # Late readings do not shift later ones; missed ones are not made up for.
        due_s = max(min(due_s, now_s) + interval_s, now_s) if not silent else now_s + _backoff_s(interval_s, silent)
        last = pause(due_s - now_s)


def _backoff_s(interval_s: float, attempts: int) -> float:
    return max(interval_s, min(interval_s * 2.0 ** min(attempts - 1, 10), _LONGEST_BACKOFF_S))
