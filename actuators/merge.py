"""Adjacent windows put together: sums of counters, the later one's state, all faults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from actuators import histogram
from actuators.window import LoadWindow, Window


def merge_load_windows(windows: Sequence[LoadWindow], groups: int) -> LoadWindow:
    """One LoadWindow for all; empty arrays when there are none. CPU share is weighted by duration."""
    zeros = np.zeros(groups, dtype=np.int64)
    if not windows:
        counts = np.zeros((groups, histogram.SIZE), dtype=np.int64)
        return LoadWindow(0.0, 0.0, zeros, zeros, zeros, {}, zeros, zeros, counts, np.zeros(groups))
    kinds = sorted({kind for window in windows for kind in window.errors})
    duration_s = sum(w.end_s - w.start_s for w in windows)
    busy_s = sum(w.cpu_share * (w.end_s - w.start_s) for w in windows)
    return LoadWindow(
        start_s=windows[0].start_s,
        end_s=windows[-1].end_s,
        planned=np.sum([w.planned for w in windows], axis=0),
        sent=np.sum([w.sent for w in windows], axis=0),
        answered=np.sum([w.answered for w in windows], axis=0),
        errors={kind: np.sum([w.errors.get(kind, zeros) for w in windows], axis=0) for kind in kinds},
        late=np.sum([w.late for w in windows], axis=0),
        retried=np.sum([w.retried for w in windows], axis=0),
        latency_counts=np.sum([w.latency_counts for w in windows], axis=0),
        latency_s_sum=np.sum([w.latency_s_sum for w in windows], axis=0),
        send_delay_p99_ms=max(w.send_delay_p99_ms for w in windows),
        cpu_share=busy_s / duration_s if duration_s > 0 else 0.0,
        saturated=any(w.saturated for w in windows),
    )


def merge_windows(first: Window, second: Window) -> Window:
    """The window from the start of `first` to the end of `second`, which must follow it."""
    clients = [w.client for w in (first, second) if w.client is not None]
    return replace(
        second,
        start_s=first.start_s,
        requests=first.requests + second.requests,
        in_bytes=first.in_bytes + second.in_bytes,
        out_bytes=first.out_bytes + second.out_bytes,
        responses=first.responses + second.responses,
        response_ms_sum=first.response_ms_sum + second.response_ms_sum,
        latency_histogram=first.latency_histogram + second.latency_histogram,
        faults=first.faults + second.faults,
        client=merge_load_windows(clients, first.topology.shape[0]) if clients else None,
    )
