"""A balancing rule as one plain function, for program search to begin with and to change; evaluator.py scores it."""

from typing import Any

import numpy as np


def weights(seen: dict[str, np.ndarray], memory: dict[str, Any]) -> np.ndarray:
    """One system's weights for the next second, ``[groups, servers]``, positive; only ratios within a group matter.

    Args:
        seen: of the last second, each ``[groups, servers]``: `requests`, `errors`, `response_s` (the mean; nan without
            an answer) and `in_flight` (now).
        memory: this system's alone, empty at the start; what the rule puts there is there in the next second.
    """
    mean_s = np.where(seen["errors"] > 0, np.nan_to_num(seen["response_s"]) + 0.1, seen["response_s"])
    before = memory.get("response_s", mean_s)
    smooth = np.where(np.isnan(mean_s), before, np.where(np.isnan(before), mean_s, 0.5 * (before + mean_s)))
    memory["response_s"] = smooth
    return 1.0 / np.clip(np.nan_to_num(smooth, nan=0.01), 1e-4, 10.0)
