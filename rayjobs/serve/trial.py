"""A bundle that was swapped in and fails on requests that the bundle before decides: when it is taken back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from rayjobs.serve.bundles import InUse, LoadedBundle
from rayjobs.serve.telemetry import event

FAILURES = 3
"""Failures in a row, without a decision between them, after which the bundle is taken back."""
FAILING_S = 30.0
"""Least time from the first of them to the last: other clients, whom the bundle answers, have their say.

It costs nothing, because the bundle before answers meanwhile.
"""

Decided = dict[str, Any]
"""The body of an answer."""


class Trial:
    """Decides by the bundle in use, and by the one before where the bundle in use fails.

    A request that both fail on is the request's fault and counts for nothing. Belongs to one replica.
    """

    def __init__(self) -> None:
        self._of: InUse | None = None
        self._failures, self._since_s, self._why = 0, 0.0, ""

    def decide(self, in_use: InUse, decide: Callable[[LoadedBundle], Decided]) -> Decided:
        """`decide` of the bundle in use, or of the one before. Raises what `decide` raises with the bundle in use."""
        if not in_use.on_trial:
            return decide(in_use.bundle)
        try:
            decided = decide(in_use.bundle)
        except Exception as error:
            instead, why = _decided_before(in_use, decide), f"{type(error).__name__}: {error}"
            if instead is None:
                raise
        else:
            if not decided["problem"]:
                self.passed(decided)
                return decided
            instead, why = _decided_before(in_use, decide), decided["problem"]
            if instead is None:
                return decided
        self._failed(in_use, why)
        return instead

    def passed(self, decided: Decided) -> None:
        """The bundle in use has decided this without a problem."""
        if decided["policy"] is not None:
            self._failures = 0

    def lost(self) -> tuple[InUse, str] | None:
        """What is to be taken back, and why; None when nothing is. Counts anew afterwards."""
        if self._of is None or self._failures < FAILURES or time.monotonic() - self._since_s < FAILING_S:
            return None
        self._failures = 0
        return self._of, self._why

    def _failed(self, in_use: InUse, why: str) -> None:
        if in_use is not self._of:
            self._of, self._failures = in_use, 0
            event("bundle fails", logging.WARNING, folder=str(in_use.bundle.folder), why=why)
        if not self._failures:
            self._since_s = time.monotonic()
        self._failures, self._why = self._failures + 1, why


def _decided_before(in_use: InUse, decide: Callable[[LoadedBundle], Decided]) -> Decided | None:
    """What the policy of the bundle before decides; None when it fails, too, or there is nothing to decide."""
    assert in_use.before is not None
    try:
        decided = decide(in_use.before)
    except Exception:  # noqa: BLE001 - the client hears of the failure of the bundle in use
        return None
    return None if decided["policy"] is None else decided
