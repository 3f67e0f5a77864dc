"""What a proxy is judged by: the checks, their limits, and the verdict on measured numbers. Measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np

from actuators.contract.arrays import FloatArray, IntArray

LEAST_SHARE = 0.9
"""Of a server's fair share, while all are equal and after one has come back."""
MOST_OF_FAILING = 0.02
"""Share of the requests that a server which fails at once may get, from a second after it began to."""
MOST_P99 = 1.2
"""99th percentile with a slow server over that of the pool without it."""
LEAST_BEFORE = 0.5
"""Of its fair share that a server must get before its fault: the fault of an unused server has no effect."""
BACK_WITHIN_S = 5.0
"""A server that came back has its share this long after its first successful answer."""

State = Literal["pass", "fail", "n/a"]


@dataclass(frozen=True)
class Check:
    """One row of the contract.

    Attributes:
        limit: the requirement in words, with its number.
    """

    key: str
    title: str
    limit: str


CHECKS = (
    Check("fair", "Equal servers", "requests of three types: every share ≥ 0.9 of fair, no server without one for 1 s"),
    Check("back", "Return", "a server that comes back has 90 % of its share 5 s after its first successful answer"),
    Check("cold", "Slow start", "a server that comes back at a fifth of its speed has at most as many requests waiting "
          "as it serves at once"),
    Check("slow", "Slow server", "one of the servers ten times slower: p99 ≤ 1.2 × that of the pool without it"),
    Check("failing", "Fast failure", "a server that answers 500 after 1 ms gets ≤ 2 % of the requests after 1 s"),
    Check("weights", "Weights", "changed five times under load: no request is lost, no long one is cut off"),
    Check("reload", "Reload", "twice under load: no request is lost, no long one is cut off"),
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """The outcome of a check.

    Attributes:
        figure: what was measured; for "n/a" the reason.
    """

    key: str
    state: State
    figure: str


@dataclass(frozen=True)
class Judged:
    """One proxy with its verdicts, in the order of `CHECKS`.

    Attributes:
        what: program and method in words.
        required: a failure of it is an exit status of 1.
    """

    name: str
    what: str
    required: bool
    verdicts: tuple[Verdict, ...]
    seconds: float = 0.0

    @property
    def failed(self) -> tuple[str, ...]:
        """Keys of the checks that it failed."""
        return tuple(verdict.key for verdict in self.verdicts if verdict.state == "fail")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Inverse of `to_json`; raises TypeError or KeyError for a dict of another shape."""
        return cls(**{**data, "verdicts": tuple(Verdict(**each) for each in data["verdicts"])})


def shares_of_fair(counts: IntArray) -> FloatArray:
    """``[servers]``: each server's requests over an equal share of all; 0 without requests."""
    total = int(counts.sum())
    shares: FloatArray = counts * len(counts) / total if total else np.zeros(len(counts))
    return shares


def judge_fair(by_second: Sequence[IntArray]) -> Verdict:
    """Of equal servers.

    Args:
        by_second: requests per server ``[servers]`` of every second.
    """
    shares = shares_of_fair(np.sum(by_second, axis=0))
    starved = int(sum((counts == 0).any() for counts in by_second))
    figure = f"shares {shares.min():.2f} to {shares.max():.2f} of fair"
    if starved:
        figure += f"; in {starved} of {len(by_second)} seconds a server got none"
    return _verdict("fair", shares.min() >= LEAST_SHARE and not starved, figure)


def judge_failing(failing: int, total: int) -> Verdict:
    """Of a server that fails: its requests and all requests of the same time."""
    share = failing / total if total else 1.0
    return _verdict("failing", share <= MOST_OF_FAILING, f"{share:.2%} of {total} requests")


def judge_slow(with_ms: float, without_ms: float, lost: int) -> Verdict:
    """99th percentiles with a slow server and without it; `lost` requests had no answer in the first case."""
    ratio = with_ms / without_ms
    figure = f"p99 {ratio:.2f}× ({with_ms:.0f} to {without_ms:.0f} ms)"
    figure += f"; {lost} requests lost" if lost else ""
    return _verdict("slow", bool(ratio <= MOST_P99) and not lost, figure)


def judge_back(share: float | None, tried_s: float | None) -> Verdict:
    """Of a server that came back.

    Args:
        share: of fair, from `BACK_WITHIN_S` after its first successful answer.
        tried_s: from its return to that answer; None when it never answered.
    """
    if share is None or tried_s is None:
        return Verdict("back", "fail", "got no request after its return")
    return _verdict("back", share >= LEAST_SHARE, f"{share:.2f} of fair; first answer {tried_s:.1f} s after its return")


def judge_cold(most_waiting: int | None, workers: int) -> Verdict:
    """Of a server that came back cold: the most requests that waited at it; None when it never got one."""
    if most_waiting is None:
        return Verdict("cold", "fail", "got no request after its return")
    return _verdict("cold", most_waiting <= workers, f"up to {most_waiting} waiting, {workers} served at once")


def judge_unused(key: str, share: float) -> Verdict:
    """Of a server that was to go away or fail, but had too little of its fair share before."""
    return Verdict(key, "fail", f"had {share:.2f} of fair before its fault")


def judge_change(key: str, sent: int, lost: str, cut_off: int, long: int, effect: str = "") -> Verdict:
    """Of changes under load.

    Args:
        lost: what happened to requests that were not answered with success, in words; empty for none.
        cut_off: of `long` requests that were in flight during the changes.
        effect: what the change did, in words.
    """
    figure = f"{sent} requests, {f'lost: {lost}' if lost else 'none lost'}; {long - cut_off} of {long} long ones whole"
    return _verdict(key, not lost and not cut_off, "; ".join(filter(None, (figure, effect))))


def not_applicable(key: str, reason: str) -> Verdict:
    """A check that says nothing about this proxy."""
    return Verdict(key, "n/a", reason)


def _verdict(key: str, holds: bool, figure: str) -> Verdict:
    return Verdict(key, "pass" if holds else "fail", figure)
