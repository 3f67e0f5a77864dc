"""What the load engine and NGINX counted in one block, per request type, and whether the two agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actuators.contract import histogram
from actuators.contract.arrays import FloatArray, IntArray
from actuators.contract.window import Window
from actuators.errors import DataError

ERROR_ANSWER_S = 1.0
"""An error costs at least what an answer of this many seconds costs (docs/studies.md#cost-of-an-error)."""

_COUNTS = ("planned", "sent", "answered", "late", "retried", "nginx_requests", "nginx_errors", "uncounted")


@dataclass(frozen=True, eq=False)
class BlockTally:
    """Sums over the windows of one block. Arrays are ``[groups]`` unless said otherwise.

    Attributes:
        planned, sent, answered, late, retried, errors, latency_counts, latency_s_sum: as in `LoadWindow`;
            `errors` has one more class, ``unanswered``: sent, and neither answered nor given up at the end. Where
            clients repeat, all of these but `planned` count attempts.
        nginx_requests: requests (attempts) that NGINX counted in the same windows.
        nginx_errors: those of them with a 5xx status.
        uncounted: requests sent to a balancer that is not ours and keeps no count.
    """

    planned: IntArray
    sent: IntArray
    answered: IntArray
    late: IntArray
    retried: IntArray
    errors: dict[str, IntArray]
    latency_counts: IntArray
    latency_s_sum: FloatArray
    nginx_requests: IntArray
    nginx_errors: IntArray
    uncounted: IntArray

    @classmethod
    def of(cls, windows: Sequence[Window], *, counted: bool = True) -> BlockTally:
        """Sums the windows of one block, the drain included. Raises DataError without a load engine's view."""
        clients = [window.client for window in windows if window.client is not None]
        if not clients:
            raise DataError(
                "no window carries the load engine's view", where="block", remedy="judge with a load engine"
            )
        errors: dict[str, IntArray] = {}
        for client in clients:
            for name, counts in client.errors.items():
                errors[name] = errors.get(name, np.zeros_like(counts)) + counts
        sent, answered = sum(c.sent for c in clients), sum(c.answered for c in clients)
        given_up = errors.get("timeout", 0) + errors.get("closed", 0)
        errors["unanswered"] = np.maximum(sent - answered - given_up, 0)
        return cls(
            planned=np.sum([c.planned for c in clients], axis=0),
            sent=np.asarray(sent),
            answered=np.asarray(answered),
            late=np.sum([c.late for c in clients], axis=0),
            retried=np.sum([c.retried for c in clients], axis=0),
            errors=errors,
            latency_counts=np.sum([c.latency_counts for c in clients], axis=0),
            latency_s_sum=np.sum([c.latency_s_sum for c in clients], axis=0),
            nginx_requests=np.sum([w.requests.sum(axis=1) for w in windows], axis=0),
            nginx_errors=np.sum([w.server_errors.sum(axis=1) for w in windows], axis=0),
            uncounted=np.zeros_like(sent) if counted else np.asarray(sent),
        )

    @classmethod
    def total(cls, tallies: Sequence[BlockTally]) -> BlockTally:
        """Sum of at least one tally."""
        names = {name for tally in tallies for name in tally.errors}
        zero = np.zeros_like(tallies[0].sent)
        return cls(
            **{name: np.sum([getattr(t, name) for t in tallies], axis=0) for name in (*_COUNTS, "latency_s_sum")},
            errors={name: np.sum([t.errors.get(name, zero) for t in tallies], axis=0) for name in names},
            latency_counts=np.sum([t.latency_counts for t in tallies], axis=0),
        )

    @property
    def error_count(self) -> IntArray:
        """``[groups]``: requests that got no good answer, of every class."""
        return sum(self.errors.values(), start=np.zeros_like(self.sent))

    @property
    def due(self) -> IntArray:
        """``[groups]``: good answers and errors; equals `sent` when everything could be sent."""
        total: IntArray = self.latency_counts.sum(axis=1) + self.error_count
        return total

    def tardiness(self, deadlines_s: FloatArray) -> tuple[FloatArray, IntArray]:
        """Relative tardiness summed, and deadlines missed, each ``[groups]``; an error misses its deadline.

        An error costs as much as an answer after 1 s, after the worst latency of its type or after
        twice its deadline, whichever is longest, so that failing fast can never pay.
        """
        seconds, deadline = histogram.midpoints_s(), deadlines_s[:, None]
        over = np.maximum(seconds[None, :] - deadline, 0.0)
        worst = np.where(self.latency_counts > 0, seconds, 0.0).max(axis=1)
        error_s = np.maximum(np.maximum(ERROR_ANSWER_S, worst), 2 * deadlines_s)
        error_cost = (error_s - deadlines_s) / deadlines_s
        total = (over / deadline * self.latency_counts).sum(axis=1) + error_cost * self.error_count
        missed = np.where(over > 0, self.latency_counts, 0).sum(axis=1) + self.error_count
        return total, missed

    def accounting(self) -> dict[str, Any]:
        """Requests on the two sides of the wire, their difference and what explains it.

        `difference` is NGINX's count minus what was sent through it; `causes` bound it from what both sides know,
        `unexplained` is what they leave over (0 when every request is accounted for).
        """
        uncounted = int(self.uncounted.sum())
        difference = int(self.nginx_requests.sum() + uncounted - self.sent.sum())
        causes = self._causes(difference)
        return {
            "sent": int(self.sent.sum()),
            "answered": int(self.answered.sum()),
            "errors": {name: int(counts.sum()) for name, counts in sorted(self.errors.items()) if counts.any()},
            "nginx_requests": int(self.nginx_requests.sum()),
            "uncounted": uncounted,
            "difference": difference,
            "causes": causes,
            "unexplained": max(abs(difference) - sum(causes.values()), 0),
            "explanation": _explain(difference, causes),
        }

    def _causes(self, difference: int) -> dict[str, int]:
        by_class = {name: int(counts.sum()) for name, counts in self.errors.items()}
        refused = int(self.nginx_errors.sum()) - by_class.get("status_5xx", 0)
        if difference > 0:
            causes = {"tried again at another server": refused, "sent again by the client": int(self.retried.sum())}
        else:
            causes = {
                "answered by NGINX without a server": -refused,
                "given up by the client": by_class.get("timeout", 0) + by_class.get("closed", 0),
                "still unanswered at the end": by_class.get("unanswered", 0),
            }
        return {name: count for name, count in causes.items() if count > 0 and difference != 0}

    def to_json(self) -> dict[str, Any]:
        """Plain values; the histogram as ``[bucket, count]`` pairs per type."""
        return {
            **{name: getattr(self, name).tolist() for name in (*_COUNTS, "latency_s_sum")},
            "errors": {name: counts.tolist() for name, counts in self.errors.items()},
            "latency_counts": [
                [[int(bucket), int(row[bucket])] for bucket in np.flatnonzero(row)] for row in self.latency_counts
            ],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> BlockTally:
        """Inverse of `to_json`; raises KeyError or TypeError for a dict of another shape."""
        counts = np.zeros((len(data["latency_counts"]), histogram.SIZE), dtype=np.int64)
        for row, pairs in zip(counts, data["latency_counts"], strict=True):
            for bucket, count in pairs:
                row[bucket] = count
        known = {"uncounted": [0] * len(counts), **data}
        return cls(
            **{name: np.asarray(known[name], dtype=np.int64) for name in _COUNTS},
            errors={name: np.asarray(values, dtype=np.int64) for name, values in data["errors"].items()},
            latency_counts=counts,
            latency_s_sum=np.asarray(data["latency_s_sum"], dtype=float),
        )


def sides(evaluation: Mapping[str, Any]) -> str:
    """Who sent and who counted how many requests, in words; the names of peers that keep no count.

    Args:
        evaluation: the content of an `evaluation.json` with finished blocks.
    """
    accounts = evaluation["accounting"]
    if evaluation["testbed"] == "live":
        line = f"{accounts['sent']:,} requests sent, {accounts['nginx_requests']:,} counted by NGINX"
    else:
        line = (
            f"{accounts['sent']:,} requests simulated, {accounts['nginx_requests']:,} counted by the simulated balancer"
        )
    silent = [name for name, row in evaluation["policies"].items() if (row.get("accounting") or {}).get("uncounted")]
    if silent:
        line += f", {accounts['uncounted']:,} sent to {', '.join(silent)}, which keep no count that we can read"
    return line


def _explain(difference: int, causes: dict[str, int]) -> str:
    if difference == 0:
        return "every request that was sent was counted"
    side = "more" if difference > 0 else "fewer"
    known = ", ".join(f"{name}: at most {count}" for name, count in causes.items()) or "nothing known explains it"
    return f"{abs(difference)} {side} were counted than were sent; {known}"
