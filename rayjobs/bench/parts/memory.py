"""Whether the memory of a process grows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def growth_percent(series_mb: Sequence[float], warm_up: int) -> float:
    """Of the median of the last values over that of the first after the warm-up: a minute of them, of one a second.

    Args:
        series_mb: ascending in time.
        warm_up: values at the start that do not count, at most a quarter of all.
    """
    after = series_mb[min(warm_up, len(series_mb) // 4) :]
    part = max(min(len(after) // 4, 60), 1)
    return 100.0 * float(np.median(after[-part:]) / np.median(after[:part]) - 1.0)
