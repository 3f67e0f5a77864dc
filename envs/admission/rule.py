"""What a limit on requests in flight becomes after a tick; the order of operations is docs/admission.md#the-tick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np

from actuators.contract.admission import Admission, AdmissionRule
from actuators.contract.arrays import BoolArray, FloatArray, IntArray
from actuators.errors import ConfigError

PEAK_MEMORY_S = 30.0
"""Time constant with which the highest in-flight count of ticks in time is forgotten."""
REFUSED_MEMORY_S = 10.0
"""Time constant of the counts that cap the refused share."""
BUFFER = 0.25
"""`gradient`: by how much the response time may exceed the idle one, as Envoy's default."""

FOLLOWING: tuple[AdmissionRule, ...] = ("aimd_thresh", "aimd", "gradient")
"""Rules whose multiple follows the system."""


@dataclass(frozen=True, eq=False)
class TickCounts:
    """What one machine counted in a tick; ``[n, groups]`` but for `peak`.

    Attributes:
        offered: requests that arrived, let in or not.
        over: those of them that found their limit reached, whether they were refused or not.
        refused: those of them that were refused.
        finished: requests that ended after they were let in, but for the quick errors.
        late: those of them that took longer than their deadline, were given up by the client, or failed.
        quick: requests that ended with a 5xx in less than the group's idle response time.
        response_s: seconds, sum over `finished` from arrival to the end.
        in_flight: at the tick's end.
        peak: ``[n]``, largest total in flight at any moment of the tick.
    """

    offered: IntArray
    over: IntArray
    refused: IntArray
    finished: IntArray
    late: IntArray
    quick: IntArray
    response_s: FloatArray
    in_flight: IntArray
    peak: IntArray

    @classmethod
    def none(cls, n: int, groups: int) -> TickCounts:
        """Nothing was counted."""
        zeros = np.zeros((n, groups), np.int64)
        return cls(*(zeros,) * 6, np.zeros((n, groups)), zeros, np.zeros(n, np.int64))

    def plus(self, later: TickCounts) -> TickCounts:
        """Of this time and a later one."""
        sums = {field.name: getattr(self, field.name) + getattr(later, field.name) for field in fields(self)}
        return TickCounts(**{**sums, "in_flight": later.in_flight, "peak": np.maximum(self.peak, later.peak)})


@dataclass(frozen=True, eq=False)
class LimitState:
    """What is carried from tick to tick.

    Attributes:
        multiple: ``[n]``, of the nominal in-flight count.
        held: ``[n]``, highest in-flight count of recent ticks in time, decayed.
        in_time: ``[n]``, whether it was when the limits moved last.
        silent_s: ``[n, groups]``, for how long requests have been in flight and none has ended.
        in_flight: ``[n, groups]``, at the end of the last tick.
        offered, refused: ``[n, groups]``, decayed counts for the cap.
        moved: ``[n]``, whether the last tick moved the limits.
        pending, elapsed_s: what was counted since they moved, and ``[n]`` for how many seconds.
    """

    multiple: FloatArray
    held: FloatArray
    in_time: BoolArray
    silent_s: FloatArray
    in_flight: IntArray
    offered: FloatArray
    refused: FloatArray
    moved: BoolArray
    pending: TickCounts
    elapsed_s: FloatArray


Counted = TypeVar("Counted", LimitState, TickCounts)


def where(chosen: BoolArray, one: Counted, other: Counted) -> Counted:
    """The chosen ``[n]`` environments of one, the rest of the other."""
    if chosen.all():
        return one

    def pick(a: Any, b: Any) -> Any:
        return (
            where(chosen, a, b)
            if isinstance(a, TickCounts)
            else np.where(chosen if a.ndim == 1 else chosen[:, None], a, b)
        )

    return type(one)(
        **{field.name: pick(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)}
    )


class Limits:
    """The limits of `n` environments, each with its own numbers and values.

    Raises ConfigError when the rules, the groups or the ticks' lengths differ.
    """

    def __init__(self, admissions: Sequence[Admission]) -> None:
        first = admissions[0]
        self.rule, self.tick_s = first.rule, first.numbers.tick_s
        kinds = {(a.rule, a.numbers.tick_s, len(a.topology.groups)) for a in admissions}
        if len(kinds) > 1:
            raise ConfigError("rules, ticks or groups differ", where="admission of a batch", remedy="use one rule")
        self.deadlines_s, self.idle_s = (
            _rows([a.deadlines_s for a in admissions]),
            _rows([a.idle_s for a in admissions]),
        )
        self.nominal = np.array([a.nominal for a in admissions])
        self._never = np.array([np.isinf(a.importance) for a in admissions])
        weights = _rows([a.weights() * a.rates_rps for a in admissions])
        self._weights = weights / weights.sum(axis=1, keepdims=True)
        equal = self.rule not in ("thresh", "aimd_thresh")
        shares = _rows([np.where(np.isinf(a.importance), np.inf, 1.0) if equal else a.shares() for a in admissions])
        self._plain_shares = shares
        self.set_factors(_rows([a.factors for a in admissions]))
        names = (
            "multiple",
            "start",
            "late_share",
            "cut",
            "rise",
            "least",
            "most",
            "most_refused",
            "headroom",
            "least_answers",
        )
        self._numbers = {name: np.array([float(getattr(a.numbers, name)) for a in admissions]) for name in names}

    @property
    def most_refused(self) -> FloatArray:
        """``[n]``, largest share of a group's requests that is refused."""
        return self._numbers["most_refused"]

    def set_factors(self, factors: FloatArray) -> None:
        """Other factors ``[n, groups]`` on the limits than those of the admissions."""
        self._shares = self._plain_shares * factors

    def start(self) -> LimitState:
        """Before the first tick."""
        n, groups = self.idle_s.shape
        none = np.zeros((n, groups))
        first = self._numbers["start" if self.rule in FOLLOWING else "multiple"]
        return LimitState(
            first, np.zeros(n), np.ones(n, bool), none, none.astype(np.int64), none, none, np.zeros(n, bool),
            TickCounts.none(n, groups), np.zeros(n),
        )  # fmt: skip

    def of(self, state: LimitState) -> FloatArray:
        """``[n, groups]``: a request that finds at least so many in flight at the machine is over its limit; >= 1."""
        if self.rule == "none":
            return np.full(self.idle_s.shape, np.inf)
        limits: FloatArray = np.maximum((state.multiple * self._present(state))[:, None] * self._shares, 1.0)
        return limits

    def _present(self, state: LimitState) -> FloatArray:
        """The nominal in-flight count, or a larger one that what was in flight in time needs."""
        number = self._numbers
        present: FloatArray = np.maximum(self.nominal, number["headroom"] * state.held / number["most"])
        return present

    def after(self, state: LimitState, counts: TickCounts) -> LimitState:
        """The state after one more tick; the limits move in the environments in which enough was answered."""
        silent_s = self._silent_s(state, counts)
        seen, elapsed_s = state.pending.plus(counts), state.elapsed_s + self.tick_s
        answered = seen.finished.sum(axis=1) >= self._numbers["least_answers"]
        moved = answered | self._silent(silent_s).any(axis=1)
        state = where(moved, self._step(state, seen, silent_s, elapsed_s), state)
        n, groups = counts.finished.shape
        none = TickCounts.none(n, groups)
        return replace(
            state, silent_s=silent_s, in_flight=counts.in_flight, moved=moved, pending=where(moved, none, seen),
            elapsed_s=np.where(moved, 0.0, elapsed_s),
        )  # fmt: skip

    def _step(self, state: LimitState, seen: TickCounts, silent_s: FloatArray, elapsed_s: FloatArray) -> LimitState:
        shares = self._late_shares(silent_s, seen)
        most = self._numbers["late_share"]
        at_risk = (self._never & (shares > most[:, None] / 3)).any(axis=1)
        in_time = ((self._weights * shares).sum(axis=1) <= most) & ~at_risk
        unrestrained = (seen.over.sum(axis=1) == 0) | self._at_most(state)
        held = state.held * np.exp(-elapsed_s / PEAK_MEMORY_S)
        held = np.where(in_time & unrestrained, np.maximum(held, seen.peak), held)
        forget = np.exp(-elapsed_s / REFUSED_MEMORY_S)[:, None]
        return replace(
            state, multiple=self._multiple(state, seen, in_time), held=held, in_time=in_time,
            offered=(state.offered + seen.offered) * forget, refused=(state.refused + seen.refused) * forget,
        )  # fmt: skip

    def _silent_s(self, state: LimitState, counts: TickCounts) -> FloatArray:
        stuck = (counts.finished + counts.quick == 0) & (state.in_flight > 0)
        return np.where(stuck, state.silent_s + self.tick_s, 0.0)

    def _silent(self, silent_s: FloatArray) -> BoolArray:
        return (silent_s > 0) & (silent_s >= self.deadlines_s)

    def _late_shares(self, silent_s: FloatArray, counts: TickCounts) -> FloatArray:
        return np.where(counts.finished > 0, counts.late / np.maximum(counts.finished, 1), self._silent(silent_s))

    def _at_most(self, state: LimitState) -> BoolArray:
        """Whether the rule would go higher if it might."""
        return (state.multiple >= self._numbers["most"]) & (self.rule in FOLLOWING)

    def _multiple(self, state: LimitState, counts: TickCounts, in_time: BoolArray) -> FloatArray:
        number, z = self._numbers, state.multiple
        if self.rule not in FOLLOWING:
            return z
        if self.rule == "gradient":
            return np.where(counts.finished.sum(axis=1) > 0, self._by_gradient(z, counts), z)
        cut, risen = np.maximum(number["cut"] * z, number["least"]), np.minimum(z + number["rise"], number["most"])
        following: FloatArray = np.where(in_time, risen, cut)
        return following

    def _by_gradient(self, multiple: FloatArray, counts: TickCounts) -> FloatArray:
        idle_s, seen_s = (counts.finished * self.idle_s).sum(axis=1), counts.response_s.sum(axis=1)
        gradient = np.clip((1 + BUFFER) * idle_s / np.maximum(seen_s, 1e-9), 0.5, 2.0)
        limit = multiple * self.nominal * gradient
        wanted: FloatArray = (limit + np.sqrt(limit)) / self.nominal
        return np.clip(wanted, self._numbers["least"], self._numbers["most"])


def _rows(values: Sequence[FloatArray]) -> FloatArray:
    return np.array(values, dtype=np.float64)
