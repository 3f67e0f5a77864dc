"""Waiting until something is so, for as long as only a hang takes."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 120.0
"""Far above what anything here takes on a busy machine: a longer wait means a hang."""
_PAUSE_S = 0.01


def wait_until(met: Callable[[], bool], what: str | Callable[[], str] = "it did not come true") -> None:
    """Returns when the condition holds. Raises AssertionError with `what` when only a hang explains that it does not.

    Args:
        what: for the error; a function is called only then.
    """
    deadline_s = time.monotonic() + PATIENCE_S
    while not met():
        assert time.monotonic() < deadline_s, what if isinstance(what, str) else what()
        time.sleep(_PAUSE_S)
